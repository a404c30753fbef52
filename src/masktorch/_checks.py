"""Checks of arguments: raise where the value is given, before anything is computed."""

import inspect
import numbers
from collections.abc import Callable
from math import inf
from typing import Any


def check_number(
    caller: str,
    what: str,
    value: Any,
    low: float = -inf,
    high: float = inf,
    *,
    closed_low: bool = False,
    closed_high: bool = False,
) -> None:
    """Raise unless `value` is a number between `low` and `high`.

    Raises:
        TypeError: for anything but a real number; True and False are not.
        ValueError: for a number outside the interval, NaN included.
    """

    def refusal() -> str:
        left, right = "[" if closed_low else "(", "]" if closed_high else ")"
        interval = f"{left}{low}, {high}{right}"
        return f"{caller} expected {what} in {interval}, found {value!r}."

    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number:
        raise TypeError(refusal())
    above_low = low <= value if closed_low else low < value
    below_high = value <= high if closed_high else value < high
    if not (above_low and below_high):
        raise ValueError(refusal())


def check_flag(caller: str, what: str, value: Any) -> None:
    """Raise a `TypeError` unless `value` is True or False; 0 and 1 are not."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{caller} expected {what} to be True or False, found {value!r}."
        )


def check_density(density: Any, caller: str) -> None:
    """Raise unless `density` is a number in (0, 1]."""
    check_number(caller, "a density", density, 0, 1, closed_high=True)


def check_n_of_m(caller: str, n: Any, m: Any) -> None:
    """Raise unless `n` and `m` are whole numbers, 1 <= n <= m; `m` may be None."""
    if not is_whole_number(n) or not (m is None or is_whole_number(m)):
        raise TypeError(f"{caller} expected whole numbers, found n={n!r}, m={m!r}.")
    if m is None:
        check_number(caller, "n", n, 1, closed_low=True)
    else:
        check_number(caller, "n", n, 1, m, closed_low=True, closed_high=True)


def is_whole_number(value: Any) -> bool:
    """Whether `value` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_takes(expected: str, function: Callable[..., Any], arguments: int) -> None:
    """Raise unless a function can be called with so many positional arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C do not tell
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"{expected}, found {name}{signature}: {error}.") from error
