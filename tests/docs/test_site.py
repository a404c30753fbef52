"""The built pages, in wide and narrow windows of a real browser if there is one."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from tools.browser import CHROMIUM, browser, served

ROOT = Path(__file__).parents[2]

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

FAULTS = """
const faults = [], width = document.documentElement.clientWidth
if (document.documentElement.scrollWidth > width) {
  const wide = [...document.querySelectorAll("article *")].find(
    element => element.getBoundingClientRect().right > width + 1
      && !element.closest("pre, .formula, .md-typeset__scrollwrap"))
  faults.push("wider than the window: " + (wide ? wide.outerHTML.slice(0, 200) : "?"))
}
for (const image of document.images) {
  if (!image.complete || !image.naturalWidth) faults.push("missing: " + image.src)
  if (!image.alt && image.closest("article"))
    faults.push("no alternative: " + image.src)
}
const prose = [...document.querySelectorAll("article p, article td, article li")]
  .map(element => [...element.childNodes].filter(n => n.nodeType == 3).map(n => n.data))
if (/\\$|\\\\[a-z]+/.test(prose.join())) faults.push("a formula that is not one")
for (const {textContent: text} of document.querySelectorAll("article p"))
  if (/^\\s*[-*|] |\\n\\s*[-*] \\S/.test(text))
    faults.push("a table or list that is text: " + text.slice(0, 100))
for (const example of document.querySelectorAll(".home pre > code"))
  if (example.scrollWidth > example.clientWidth) faults.push("the example scrolls")
if (width > 1000) {
  for (const frame of document.querySelectorAll("article .md-typeset__scrollwrap"))
    if (frame.scrollWidth > frame.clientWidth + 1)
      faults.push("columns out of sight: " + frame.textContent.slice(0, 100))
  for (const code of document.querySelectorAll("article pre > code"))
    if (code.scrollWidth > code.clientWidth + 1)
      faults.push("a line of code is cut: " + code.textContent.slice(0, 100))
}
const height = element => element.getBoundingClientRect().height
for (const formula of document.querySelectorAll("article .formula")) {
  if (formula.scrollHeight > formula.clientHeight)
    faults.push("a formula is cut: " + formula.textContent.slice(0, 100))
  const height = element => element.getBoundingClientRect().height
  for (const cases of formula.querySelectorAll("mo + mtable"))
    if (height(cases.previousElementSibling) < height(cases) / 2)
      faults.push("a brace does not stretch: " + formula.textContent.slice(0, 100))
}
return faults
"""


@pytest.fixture(scope="module")
def site(site_folder):
    """The folder of the pages and the address at which they are served."""
    with served(site_folder) as address:
        yield site_folder, address


def pages(folder):
    return sorted(
        str(path.parent.relative_to(folder)) + "/"
        for path in folder.rglob("index.html")
    )


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1300])
def test_pages_fit_the_window_and_log_no_errors(site, width):
    folder, address = site
    found = {}
    with browser(width) as window:
        for page in pages(folder):
            window.open(address + page)
            if faults := window.run(FAULTS) + window.console():
                found[page] = faults
    assert not found, json.dumps(found, indent=1)


LONG = "<div style='width: 2000px'>long</div>"
FAULTY = {
    LONG: "wider than the window: ",
    "<img src='no.png' alt='no'>": "missing: ",
    "<p>$x$</p>": "a formula that is not one",
    "<p>the last row\n- a bullet</p>": "a table or list that is text: ",
    "<p>| a | row |</p>": "a table or list that is text: ",
    f"<div class=md-typeset__scrollwrap style='overflow: auto'>{LONG}</div>": (
        "columns out of sight: "
    ),
    f"<pre><code style='display: block; overflow: auto'>{'x' * 999}</code></pre>": (
        "a line of code is cut: "
    ),
    "<div class=formula style='height: 1em; overflow: hidden'><math><mfrac><mi>a</mi>"
    "<mi>b</mi></mfrac></math></div>": "a formula is cut: ",
    "<div class=formula><math><mo stretchy=true maxsize=1em>{</mo><mtable>"
    "<mtr><mtd><mspace height=9em></mtd></mtr></mtable></math></div>": (
        "a brace does not stretch: "
    ),
}


@needs_browser
@pytest.mark.slow
def test_the_check_sees_each_fault(tmp_path):
    head = "<!doctype html><html><head><meta charset=utf-8></head><body><article>"
    for number, faulty in enumerate(FAULTY):
        (tmp_path / f"{number}.html").write_text(head + faulty)
    found = {}
    with served(tmp_path) as address, browser(1300) as window:
        for number, (faulty, fault) in enumerate(FAULTY.items()):
            window.open(f"{address}{number}.html")
            found[faulty] = [text[: len(fault)] for text in window.run(FAULTS)]
    assert found == {faulty: [fault] for faulty, fault in FAULTY.items()}


@pytest.mark.parametrize("link", ["[gone](gone.md)", "[gone](index.md#gone)"])
def test_a_broken_link_ends_the_build(link, build_site, tmp_path):
    for part in ("docs", "src", "tests/test_imports.py", "mkdocs.yml", "README.md"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, tmp_path / part)
    with (tmp_path / "docs" / "glossary.md").open("a") as page:
        page.write(f"\n{link}\n")
    built = build_site(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    assert "gone" in built.stderr


def test_pages_load_nothing_from_another_host(site_folder):
    for path in site_folder.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\s\">]+)", text
        )
        loaded += re.findall(
            r"<link[^>]*stylesheet[^>]*href=\"?(https?:[^\s\">]+)", text
        )
        assert not loaded, path


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("edge-popup", "estimators/"),
        ("lottery ticket", "recipes/tickets/"),
        ("density", "density/"),
        ("resume", "saving/"),
        ("set_density", "reference/"),
    ],
)
def test_search_finds(site, words, page):
    _, address = site
    with browser(1300) as window:
        window.open(f"{address}?q={words.replace(' ', '+')}")
        for _ in range(50):
            links = window.run(
                "return [...document.querySelectorAll('.md-search-result__link')]"
                ".map(a => a.href)"
            )
            if links:
                break
            time.sleep(0.1)
    assert any(link.startswith(address + page) for link in links), links
