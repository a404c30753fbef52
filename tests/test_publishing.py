"""Facts stated twice agree: versions, addresses, papers, commands of `make lint`."""

import re
import runpy
import textwrap
from dataclasses import dataclass
from email.message import Message
from importlib import metadata
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import masktorch
from masktorch._kernels import dtypes
from masktorch._methods import score_threshold

ROOT = Path(__file__).parents[1]
CITATION = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version():
    assert re.findall(r"^version: (.*)$", CITATION, re.MULTILINE) == [
        masktorch.__version__
    ]


def test_the_citation_has_the_repository_that_pyproject_names():
    urls = PYPROJECT.partition("[project.urls]")[2].partition("\n[")[0]
    repository = re.findall(r'^Repository = "(.*)"$', urls, re.MULTILINE)
    cited = re.findall(r"^repository-code: \"?([^\"\n]*)", CITATION, re.MULTILINE)
    assert cited == repository


def test_every_paper_of_the_library_is_cited():
    sources = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    papers = set(re.findall(r"\b\d{4}\.\d{5}\b", sources))
    assert papers <= set(re.findall(r"arXiv:(\d{4}\.\d{5})", CITATION))
    assert len(papers) > 5


def test_pre_commit_runs_what_lint_runs():
    makefile = (ROOT / "Makefile").read_text()
    schema = re.search(r"^SCHEMA := (.*)$", makefile, re.MULTILINE)[1]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1]
    commands = [
        line.strip().replace("$(SCHEMA)", schema) for line in recipe.splitlines()
    ]
    commands = [command.replace("$(BIN)", ".venv/bin") for command in commands]
    configuration = (ROOT / ".pre-commit-config.yaml").read_text()
    folded = re.sub(r">-\n +(.*)\n +(.*)", r"\1 \2", configuration)
    entries = re.findall(r"entry: (.*)", folded)
    for entry, command in zip(entries, commands, strict=True):
        assert command.startswith(entry)
        assert " -" not in command.removeprefix(entry)  # the rest is names of files


def test_actions_are_pinned_by_commit_with_their_version():
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"uses: (.*)", workflow.read_text()):
            local = action.startswith("$/.github/workflows/")
            assert local or re.fullmatch(r"\S+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def built_page(tmp_path, urls, monkeypatch):
    """One page of a small site with the theme and the hook of the real one."""
    pytest.importorskip("material")
    build = pytest.importorskip("mkdocs.commands.build")
    config = pytest.importorskip("mkdocs.config")
    package = Message()
    for url in urls:
        package["Project-URL"] = url
    monkeypatch.setattr(metadata, "metadata", lambda name: package)
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Title\n")
    hook = ROOT / "docs" / "hooks" / "repository.py"
    (tmp_path / "mkdocs.yml").write_text(
        f"site_name: small\nhooks: [{str(hook)!r}]\nplugins: []\n"
        "theme:\n  name: material\n  features: [content.action.edit]\n"
    )
    build.build(config.load_config(str(tmp_path / "mkdocs.yml")))
    return (tmp_path / "site" / "index.html").read_text()


def test_pages_link_to_the_repository_once_there_is_one(tmp_path, monkeypatch):
    urls = ["Repository, https://git.example/m", "Documentation, https://m.example/"]
    page = built_page(tmp_path, urls, monkeypatch)
    assert 'href="https://git.example/m/edit/main/docs/index.md"' in page
    assert '<link rel="canonical" href="https://m.example/">' in page
    assert 'href="https://git.example/m" title' in page
    assert (
        'data-md-component="source"' not in page
    )  # which makes the page ask for stars


def test_pages_without_a_repository_have_no_link_to_one(tmp_path, monkeypatch):
    page = built_page(tmp_path, [], monkeypatch)
    assert "md-source" not in page
    assert 'rel="edit"' not in page


def test_the_drawing_has_every_file_with_what_it_is_about():
    hook = runpy.run_path(str(ROOT / "docs" / "hooks" / "architecture.py"))
    page = (ROOT / "docs" / "architecture.md").read_text()
    drawn = hook["on_page_content"](page).replace("\u200b", "")
    library = ROOT / "src" / "masktorch"
    files = [
        path.relative_to(library).with_suffix("") for path in library.rglob("*.py")
    ]
    names = {file.as_posix() for file in files if "/__init__" not in file.as_posix()}
    boxes = dict(re.findall(r"<li><code>(.*?)</code> (.*?)</li>", drawn))
    assert boxes.keys() == names
    assert boxes["__init__"] == "Learnable weight masks for PyTorch."
    assert all(boxes.values())
    assert drawn.index("<code>__init__<") < drawn.index("<code>_checks<")


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_path_in_contributing_exists():
    named = set(re.findall(r"`((?:\.?\w+/)+[\w.]*)`|\]\(([\w./]+)\)", CONTRIBUTING))
    paths = {path for pair in named for path in pair if path} - {"site/"}
    within = [ROOT, ROOT / "benchmarks", ROOT / "src" / "masktorch"]
    assert len(paths) > 20
    for path in paths - {".venv/bin"}:
        assert any((folder / path).exists() for folder in within), path


def test_the_estimator_of_contributing_has_the_gradient_that_it_states():
    (block,) = re.findall(
        r"^   ```py\n(.*?)^   ```$", CONTRIBUTING, re.DOTALL | re.MULTILINE
    )
    namespace = {
        "ClassVar": ClassVar,
        "Tensor": Tensor,
        "dataclass": dataclass,
        "override": override,
        "torch": torch,
    }
    namespace |= {
        "Thresholded": score_threshold.Thresholded,
        "masked_above": score_threshold.masked_above,
        "wide": dtypes.wide,
    }
    exec(textwrap.dedent(block), namespace)
    layer = masktorch.wrap(
        nn.Linear(4, 3).double(), namespace["Hyperbolic"](), init=0.3
    )
    layer(torch.eye(4, dtype=torch.float64)).sum().backward()
    weight = layer.parametrizations.weight.original.detach()
    found = layer.parametrizations.weight.scores.grad
    np.testing.assert_allclose(found, weight * (1 - np.tanh(0.3) ** 2), rtol=1e-12)
