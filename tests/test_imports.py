"""The parts import only downwards, and the library nothing beyond its dependencies."""

import ast
import sys
from pathlib import Path

import pytest

import masktorch

FILES = sorted(Path(masktorch.__file__).parent.glob("*.py"))
LEVELS = {
    "blocks": set(),
    "functional": {"blocks"},
    "targets": set(),
    "estimators": {"functional"},
    "parametrization": {"estimators", "functional"},
    "model": {"targets", "parametrization", "estimators"},
    "maskfile": {"model", "parametrization"},
    "report": {"model", "parametrization"},
    "__init__": {"functional", "estimators", "model", "maskfile", "report"},
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
