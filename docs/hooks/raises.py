"""Turn a docstring's "Raises `ValueError` if ..." into a list of errors.

The sentence may also begin with the error.
"""

import re
from typing import Any

from griffe import Extension, Object

_SENTENCE = re.compile(
    r"(?:\bRaises\s|(?<=[.:]\s|\n\n)(?=`\w+Error`)).*?\.(?=\s+[A-Z]|\s*\Z|\n\n)",
    re.DOTALL,
)
_ERRORS = re.compile(r"((?:`\w+Error`(?: or )?)+)")


def sections(text: str) -> str:
    """The docstring with that sentence as a section before its examples."""
    found = _SENTENCE.search(text)
    if found is None:
        return text
    as_another, *parts = _ERRORS.split(" ".join(found[0].split()).removesuffix("."))
    if not parts:
        return text
    rows = [
        f"    {errors.replace('`', '').strip()}: "
        f"{re.sub(r'[,;]?( and)?$', '', words.strip())}."
        for errors, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    as_another = re.sub(r",?( and)? $", "", as_another)
    kept = as_another + "." if as_another not in ("Raises", "") else ""
    start = re.sub(r":\s$", ". ", text[: found.start()])
    rest = start + kept + text[found.end() :].removeprefix("" if kept else " ")
    before, heading, examples = rest.partition("\nExamples:")
    return "\n".join([before.rstrip(), "", "Raises:", *rows, heading + examples])


class Raises(Extension):
    """Griffe's: every docstring it reads goes through `sections`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = sections(obj.docstring.value)
