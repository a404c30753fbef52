"""The parts import only downwards, and the library nothing beyond its dependencies."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import masktorch

FILES = sorted(Path(masktorch.__file__).parent.glob("*.py"))
LEVELS = {
    "checks": set(),
    "blocks": set(),
    "selection": {"blocks"},
    "draws": {"blocks", "selection"},
    "rules": {"blocks"},
    "ranks": {"checks", "blocks", "selection", "rules"},
    "functional": {"checks", "blocks", "selection", "draws", "rules", "ranks"},
    "targets": set(),
    "estimators": {"checks", "functional"},
    "counted": {"blocks", "checks", "estimators", "ranks", "selection"},
    "mask": {"targets", "estimators", "selection"},
    "parametrization": {"mask", "blocks"},
    "model": {"targets", "mask", "parametrization", "estimators", "selection"},
    "wrapping": {"model", "targets", "mask", "parametrization", "estimators"},
    "phases": {"model"},
    "values": {"model", "mask", "wrapping"},
    "coding": set(),
    "archive": set(),
    "maskfile": {
        "archive",
        "coding",
        "mask",
        "model",
        "parametrization",
        "targets",
        "values",
        "wrapping",
    },
    "report": {"model", "mask"},
    "budget": {"checks", "estimators", "model", "mask", "selection"},
    "init": {"checks"},
    "__init__": {
        "functional",
        "estimators",
        "counted",
        "wrapping",
        "phases",
        "budget",
        "init",
        "values",
        "maskfile",
        "report",
    },
}
ALLOWED = {"torch", "numpy", "typing_extensions"} | sys.stdlib_module_names


def imports(path):
    """(top-level package, part of masktorch or None) of every import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names = [node.module]
            if node.module == "masktorch":
                names = [f"masktorch.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            yield package, rest.partition(".")[0] if package == "masktorch" else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arrows_point_down(path):
    found = list(imports(path))
    assert {part for package, part in found if package == "masktorch"} <= LEVELS[path.stem]
    assert {package for package, _ in found} <= ALLOWED | {"masktorch"}


def test_public_names():
    assert all(hasattr(masktorch, name) for name in masktorch.__all__)
    assert list(masktorch.__all__) == sorted(masktorch.__all__)


def test_a_second_import_is_the_same_library():
    script = (
        "import importlib, sys, masktorch\n"
        "importlib.reload(masktorch.functional)\n"
        "for name in [n for n in sys.modules if n.startswith('masktorch')]: del sys.modules[name]\n"
        "import masktorch"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
