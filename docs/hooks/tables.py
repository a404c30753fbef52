"""Long cells are marked while the pages are built: these may wrap, numbers need not."""

import html
import re
from typing import Any

_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_TAGS = re.compile(r"<annotation.*?</annotation>|<[^>]*>", re.DOTALL)
LONG = 12
"""Characters from which a cell may wrap."""


def on_page_content(content: str, **_: Any) -> str:
    def marked(cell: re.Match[str]) -> str:
        text = html.unescape(_TAGS.sub("", cell[1]))
        return f'<td class="long">{cell[1]}</td>' if len(text) > LONG else cell[0]

    return _CELL.sub(marked, content)
