"""Names of tensors, and the shell patterns that stand for several of them."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


def join(module_name: str, attribute: str) -> str:
    """Return the full name of a tensor."""
    return f"{module_name}.{attribute}" if module_name else attribute


def plain_name(name: str) -> str:
    """Remove what torch.compile adds, so that a compiled model has the plain names."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def is_pattern(name: str) -> bool:
    """Whether a name that no tensor has is meant as a shell pattern."""
    return any(character in name for character in "*?[")


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a shell pattern matches; `*` matches dots, too."""
    return [name for name in names if fnmatchcase(name, pattern)]


def enumerated(names: Sequence[str], most: int = 5) -> str:
    """List names for a message, and count those that are too many to list."""
    shown = ", ".join(map(repr, names[:most]))
    more = len(names) - most
    return f"{shown} and {more} more" if more > 0 else shown
