"""Mark long cells while the pages are built: style.css leaves them more room."""

import html
import re
from typing import Any

_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
_TAGS = re.compile(r"<annotation.*?</annotation>|<[^>]*>", re.DOTALL)
LONG = 36
"""Characters from which a cell is long."""


def on_page_content(content: str, **_: Any) -> str:
    def marked(cell: re.Match[str]) -> str:
        text = html.unescape(_TAGS.sub("", cell[1]))
        return f'<td class="long">{cell[1]}</td>' if len(text) > LONG else cell[0]

    return _CELL.sub(marked, content)
