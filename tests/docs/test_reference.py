"""The API reference: every public name once, and rendered with its signature."""

import html
import inspect
import operator
import re
from pathlib import Path

import masktorch

ROOT = Path(__file__).parents[2]


def public_names():
    """Full names of the public functions and classes, modules opened."""
    for name in masktorch.__all__:
        value = getattr(masktorch, name)
        if inspect.ismodule(value):
            for inner in names_in_module(value):
                yield f"masktorch.{name}.{inner}"
        else:
            yield f"masktorch.{name}"


def names_in_module(module):
    if hasattr(module, "__all__"):
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and name not in masktorch.__all__
    ]


def object_of(full_name):
    return operator.attrgetter(full_name.removeprefix("masktorch."))(masktorch)


def rendered_signatures(page):
    """The text of the signature below each heading of the rendered page."""
    signatures = {}
    for part in page.split('<h3 id="')[1:]:
        name = part.partition('"')[0]
        found = re.search(r'<div class="[^"]*doc-signature.*?</div>', part, re.DOTALL)
        text = re.sub(r"<[^>]*>", "", found[0]) if found else ""
        signatures[name] = " ".join(html.unescape(text).split())
    return signatures


def test_every_public_name_is_listed_once_and_in_the_summary():
    text = (ROOT / "docs" / "reference.md").read_text()
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(public_names())
    for name in masktorch.__all__:
        in_summary = f"[`{name}`](#" in text or f"[`{name}." in text
        assert in_summary, f"{name} is not in the summary"


def test_every_public_name_is_rendered_with_its_signature(site_folder):
    page = (site_folder / "reference" / "index.html").read_text()
    signatures = rendered_signatures(page)
    for full_name in public_names():
        if getattr(object_of(full_name), "_is_protocol", False):
            continue  # nobody makes an instance of it
        short = full_name.rpartition(".")[2]
        shown = signatures.get(full_name, "")
        # Empty where a module is named like the function and hides it.
        assert shown.startswith(f"{short}("), f"{full_name}: {shown!r}"
        parameters = inspect.signature(object_of(full_name)).parameters
        missing = [name for name in parameters if not re.search(rf"\b{name}\b", shown)]
        assert not missing, f"{full_name}: {shown!r} lacks {missing}"
