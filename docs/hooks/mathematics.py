"""Turn formulas between dollar signs into MathML while the pages are built."""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

# What pymdownx.arithmatex (generic) makes of $...$ and $$...$$.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(content: str, page: Any, **_: Any) -> str:
    def mathml(latex: str, display: str) -> str:
        converted = convert(html.unescape(latex).strip(), display=display)
        if "\\" in converted:  # an unknown command comes out as it went in
            raise PluginError(f"{page.file.src_path}: no MathML for ${latex}$")
        return str(converted)

    content = _INLINE.sub(lambda m: mathml(m[1], "inline"), content)
    return _BLOCK.sub(
        lambda m: f'<div class="formula">{mathml(m[1], "block")}</div>', content
    )
