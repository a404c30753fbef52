"""The benchmarks are a consumer: public names of masktorch only, and arrows in one direction."""

import ast
from pathlib import Path

import pytest

import benchmarks
import masktorch

FILES = sorted(Path(benchmarks.__file__).parent.glob("*.py"))
OUTSIDE = {"matplotlib", "kornia", "numpy", "sklearn", "torch", "tqdm", "typer"}
LEVELS = (
    ["__init__"],
    ["atomic", "configuration", "networks", "augmentation", "rivals", "timing", "child"],
    ["data", "download"],
    ["training"],
    ["results"],
    ["reference", "experiment", "paired"],
    ["table", "figures", "settings"],
    ["categorical", "kinds", "literature", "sweep"],
    ["facts"],
    ["reproduction"],
    ["steps"],
    ["memory"],
    ["floor", "costs"],
    ["speed", "speed_figure"],
    ["speed_page"],
    ["__main__"],
)
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports(path):
    tree = ast.parse(path.read_text())
    names = set(imported(tree))
    library = {name for name in names if name.startswith("masktorch")}
    assert library <= {"masktorch"}, "import masktorch, and use what it has at its top"
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "masktorch"
    }
    assert used <= {*masktorch.__all__, "__version__"}
    packages = {name.partition(".")[0] for name in names}
    assert packages - OUTSIDE - {"masktorch", "benchmarks"} <= set(
        __import__("sys").stdlib_module_names
    )
    below = {name.split(".")[1] for name in names if name.startswith("benchmarks.")} & set(LEVEL)
    assert all(LEVEL[name] < LEVEL[path.stem] for name in below)
