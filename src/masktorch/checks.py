"""What a number, a switch or a block must be: checked where it is given."""

import numbers
from math import inf
from typing import Any

Block = tuple[int | None, int | None]
"""Rows and columns of the blocks that a tensor is selected by; None is the whole dimension."""


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_number(
    caller: str, name: str, value: Any, *, above: float = -inf, below: float = inf, hint: str = ""
) -> None:
    """Raises unless it is a number between the two."""
    if is_number(value) and above < value < below:
        return
    found = f"found {value!r}. {hint}".strip()
    if is_number(value):
        raise ValueError(f"{caller} expected {name} in ({above}, {below}), {found}")
    raise TypeError(f"{caller} expected {name} to be a number, {found}")


def check_density(density: Any, caller: str) -> None:
    """Raises `ValueError` for a density outside (0, 1], `TypeError` for what is no number."""
    if is_number(density) and 0 < density <= 1:
        return
    hint = f"found {density!r}. It is the share that is kept; 0.1 keeps one in ten."
    if is_number(density):
        raise ValueError(f"{caller} expected a density in (0, 1], {hint}")
    raise TypeError(f"{caller} expected a number as density, {hint}")


def check_switch(caller: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{caller} expected {name} to be True or False, found {value!r}.")


def check_n_of_m(n: Any, m: Any) -> None:
    for name, number in (("n", n), ("m", m)):
        if type(number) is not int:
            raise TypeError(f"n of m expected whole numbers, found {name}={number!r}.")
    if not 1 <= n <= m:
        raise ValueError(
            f"n of every m entries are kept: expected 1 <= n <= m, found n={n}, m={m}."
        )


def check_block(block: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raises unless it is (rows, columns), at most one of them None, that tile the shape."""
    if not isinstance(block, tuple) or [type(n) in (int, type(None)) for n in block] != [True] * 2:
        raise TypeError(
            "expected block to be a pair (rows, columns) of whole numbers or None, such as "
            f"(1, None) for output channels, found {block!r}."
        )
    if block == (None, None) or any(length is not None and length < 1 for length in block):
        raise ValueError(
            f"expected block to have positive rows and columns, at most one None, found {block!r}."
        )
    if shape is not None and len(shape) < 2:
        raise ValueError(
            f"blocks of {block} expected two dimensions or more, found shape {shape}: leave the "
            "tensor out."
        )
    for name, length, size in zip(("rows", "columns"), block, shape or (), strict=False):
        if length is not None and size % length:
            raise ValueError(
                f"blocks of {block} don't divide shape {shape}: {size} {name} are no multiple of "
                f"{length}. Choose {name} that divide {size}, or None for all of them."
            )
