"""Every Python block of the README and the docs runs, each page from top to bottom."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, namespace = page.read_text(), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], str(page), "exec"), namespace)


def test_every_test_that_works_with_names_is_there():
    text = (ROOT / "docs" / "works-with.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    named = set(re.findall(r"`(test_\w+(?:\.py)?)`", text))
    assert len(named) > 20
    for name in named:
        assert name in files or any(f"def {name}(" in source for source in files.values()), name
    for file, kind in re.findall(r"`(test_kinds.py)`, kinds? `([^`]+)`", text):
        assert f'"{kind}"' in files[file], kind
