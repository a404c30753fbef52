"""The drawing of the library, from the table by which a test holds its imports."""

import ast
import html
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARKER = "<!-- floors -->"


def on_page_content(content: str, **_: Any) -> str:
    return content.replace(MARKER, drawing()) if MARKER in content else content


def drawing() -> str:
    """The floors from the top down, each file with the first line of its docstring."""
    boxes = ["".join(box(name) for name in names) for names in reversed(floors())]
    return "\n".join(f'<ul class="floor">{files}</ul>' for files in boxes)


def floors() -> list[list[str]]:
    """FLOORS of tests/test_imports.py, from the ground up."""
    tree = ast.parse((ROOT / "tests" / "test_imports.py").read_text(encoding="utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS"
    )
    table: list[list[str]] = ast.literal_eval(value)
    return table


def box(name: str) -> str:
    source = (ROOT / "src" / "masktorch" / f"{name}.py").read_text(encoding="utf-8")
    summary = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
    code = html.escape(name.replace("/", "/\u200b"))  # where a long name may break
    return f"<li><code>{code}</code> {html.escape(summary).replace('`', '')}</li>"
