"""The architecture: who may import whom, and nothing beyond the dependencies."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import masktorch

ROOT = Path(masktorch.__file__).parent
FILES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path
    for path in sorted(ROOT.rglob("*.py"))
}

# The floors of the library, from the ground up. A file imports from lower floors, and
# from its own floor only files to its left.
FLOORS = [
    ["_checks", "_sharding"],
    [
        "_kernels/dtypes",
        "_kernels/chunked",
        "_kernels/scaling",
        "_kernels/selecting",
        "_kernels/top_k",
        "_kernels/top_k_rows",
        "_kernels/random",
        "_kernels/autograd",
    ],
    [
        "_methods/protocol",
        "_methods/built_in",
        "_methods/score_threshold",
        "_methods/rules",
    ],
    [
        "_methods/threshold",
        "_methods/bernoulli",
        "_methods/intermediate_sampling",
        "_methods/piggyback",
        "_methods/concrete",
        "_methods/hard_concrete",
    ],
    ["_methods/ranked"],
    [
        "_methods/top_k",
        "_methods/n_of_m",
        "_methods/concrete_n_of_m",
        "_methods/blocks",
        "_methods/fixed",
    ],
    [
        "_masking/names",
        "_masking/identity",
        "_masking/saved_state",
        "_masking/overrides",
        "_masking/forward_state",
        "_masking/mask",
        "_masking/assigning",
        "_masking/reading",
        "_masking/module_class",
        "_masking/places",
        "_masking/scores",
        "_masking/targets",
        "_masking/lookup",
    ],
    [
        "_wrapping",
        "_match_checkpoint",
        "_phases",
        "_masks",
        "_density",
        "_selection",
        "_reporting",
    ],
    ["_files/coding", "_files/archive", "_files/save_load"],
    ["init", "functional", "budget"],
    ["__init__"],
]
PLACES = {
    name: (floor, place)
    for floor, names in enumerate(FLOORS)
    for place, name in enumerate(names)
}
EMPTY = {
    "_kernels/__init__",
    "_methods/__init__",
    "_masking/__init__",
    "_files/__init__",
}
ALLOWED = {"torch", "numpy", "typing_extensions"} | sys.stdlib_module_names


def imported(path):
    """The full name of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def file_of(name):
    """The file of the library that defines an imported name."""
    parts = name.split(".")[1:]
    prefixes = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in FILES), "__init__")


def test_every_file_has_its_place():
    assert FILES.keys() == PLACES.keys() | EMPTY
    assert all(not FILES[name].read_text().strip() for name in EMPTY)


@pytest.mark.parametrize("name", PLACES)
def test_imports_point_downwards(name):
    names = set(imported(FILES[name]))
    packages = {imported_name.partition(".")[0] for imported_name in names}
    assert packages <= ALLOWED | {"masktorch"}
    below = {file_of(used) for used in names if used.startswith("masktorch")}
    assert [used for used in below if PLACES[used] >= PLACES[name]] == []


def test_public_names():
    assert all(hasattr(masktorch, name) for name in masktorch.__all__)
    assert list(masktorch.__all__) == sorted(masktorch.__all__)


def test_completion_shows_public_names_only():
    shown = {name for name in dir(masktorch) if not name.startswith("_")}
    assert shown == set(masktorch.__all__)


def test_a_second_import_is_the_same_library():
    script = (
        "import importlib, sys, masktorch\n"
        "importlib.reload(masktorch.functional)\n"
        "for name in [n for n in sys.modules if n.startswith('masktorch')]:\n"
        "    del sys.modules[name]\n"
        "import masktorch"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
