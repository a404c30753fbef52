"""What a number or a block must be: checked where it is given."""

import inspect
import numbers
from collections.abc import Callable
from math import inf
from typing import Any

Block = tuple[int | None, int | None]  # rows and columns; None is the whole dimension


def check_number(
    caller: str,
    what: str,
    value: Any,
    low: float = -inf,
    high: float = inf,
    ends: str = "()",
) -> None:
    """Raises unless it is a number between the two; brackets as ends let in these too."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    end = number and (
        (value == low and ends[0] == "[") or (value == high and ends[1] == "]")
    )
    if not number or not (end or low < value < high):
        raise (ValueError if number else TypeError)(
            f"{caller} expected {what} in {ends[0]}{low}, {high}{ends[1]}, found {value!r}."
        )


def check_flag(caller: str, what: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(
            f"{caller} expected {what} to be True or False, found {value!r}."
        )


def check_density(density: Any, caller: str) -> None:
    check_number(caller, "a density", density, 0, 1, "(]")


def check_n_of_m(n: Any, m: Any) -> None:
    if {type(n), type(m)} != {int}:
        raise TypeError(f"n of m expected whole numbers, found n={n!r}, m={m!r}.")
    check_number("n of m", "n", n, 1, m, "[]")


def check_block(block: Any, shape: tuple[int, ...] = (0, 0)) -> None:
    """Raises unless it is (rows, columns), at most one of them None, that tile the shape."""
    pair = (
        isinstance(block, tuple)
        and [type(n) in (int, type(None)) for n in block] == [True] * 2
    )
    if not pair or block == (None, None) or any(n is not None and n < 1 for n in block):
        raise (ValueError if pair else TypeError)(
            "expected block to be (rows, columns), positive whole numbers or one None, such as "
            f"(1, None) for output channels, found {block!r}."
        )
    if len(shape) < 2 or any(
        size % (n or 1) for n, size in zip(block, shape, strict=False)
    ):
        raise ValueError(
            f"blocks of {block} don't divide shape {shape}: take others, or none."
        )


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
