"""Cells of prose are marked while the pages are built, so that those of numbers need not wrap."""

import html
import re
from typing import Any

_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_CODE = re.compile(r"<code>[^<]*</code>")
_TAGS = re.compile(r"<annotation.*?</annotation>|<[^>]*>", re.DOTALL)
LONG = 36
"""Characters from which a cell is prose."""


def on_page_content(content: str, **_: Any) -> str:
    def marked(cell: re.Match[str]) -> str:
        if _CODE.fullmatch(cell[1]):
            return cell[0]
        text = html.unescape(_TAGS.sub("", cell[1]))
        return f'<td class="prose">{cell[1]}</td>' if len(text) > LONG else cell[0]

    return _CELL.sub(marked, content)
