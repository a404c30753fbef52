"""The source distribution, and the wheel built from it; the suite passes against it."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import masktorch

ROOT = Path(__file__).parents[1]
FOLDERS = [".ci", ".github", "benchmarks", "docs", "examples", "src", "tests"]
FILES = [
    *[
        "CHANGELOG.md",
        "CITATION.cff",
        "CODE_OF_CONDUCT.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "MANIFEST.in",
        "Makefile",
        "README.md",
        "RELEASING.md",
        "SECURITY.md",
    ],
    *[
        "constraints.txt",
        "mkdocs.yml",
        "pyproject.toml",
        "setup.py",
        ".gitignore",
        ".editorconfig",
        ".pre-commit-config.yaml",
    ],
]


def run(*command, cwd=None, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def files(folder):
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The unpacked source distribution and the wheel built of it."""
    tmp = tmp_path_factory.mktemp("built")
    source, unpacked = tmp / "source", tmp / f"masktorch-{masktorch.__version__}"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    copied = files(source)
    build = ["-m", "build", "--no-isolation", "--outdir", tmp]
    run(*build, "--sdist", source)
    with tarfile.open(f"{unpacked}.tar.gz") as archive:
        archive.extractall(tmp)
    run(*build, "--wheel", unpacked)
    (wheel,) = tmp.glob("*.whl")
    return copied, unpacked, wheel


@pytest.mark.slow
def test_the_source_distribution_is_the_repository_without_results(built):
    copied, unpacked, _ = built
    made = {"PKG-INFO", "setup.cfg"}
    results = {
        name
        for name in copied
        if name.startswith("benchmarks/results/") and not name.endswith("README.md")
    }
    assert len(results) > 10  # numbers that pages print; too large to ship
    assert {
        f for f in files(unpacked) if ".egg-info/" not in f and "build/" not in f
    } == (copied - results) | made


@pytest.mark.slow
def test_the_wheel_holds_only_masktorch(built):
    archive, source = zipfile.ZipFile(built[2]), ROOT / "src"
    packaged = [*(source / "masktorch").rglob("*.py"), source / "masktorch/py.typed"]
    expected = {
        path.relative_to(source).as_posix(): path.read_bytes() for path in packaged
    }
    names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name: archive.read(name) for name in names} == expected
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


@pytest.mark.slow
def test_the_page_of_a_package_index(built):
    archive = zipfile.ZipFile(built[2])
    (name,) = (n for n in archive.namelist() if n.endswith("METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    page = archive.read(name).decode().partition("\n\n")[2]
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "and your own (`docs/estimators.md`)" in page  # a page, by its name
    assert page.startswith("# masktorch\n")
    pythons = [c for c in metadata.get_all("Classifier") if "Python :: 3." in c]
    assert [c.rpartition(".")[2] for c in pythons] == ["10", "11", "12", "13"]
    assert metadata["Requires-Python"] == ">=3.10"
    needed = {
        re.split("[><=]", r)[0]
        for r in metadata.get_all("Requires-Dist")
        if "extra" not in r
    }
    assert needed == {"torch", "numpy", "typing-extensions"}


@pytest.mark.slow
def test_the_suite_passes_from_the_unpacked_folder_against_the_wheel(built, tmp_path):
    _, unpacked, wheel = built
    site = tmp_path / "site"
    run(
        "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel
    )
    (tmp_path / "where.py").write_text("import masktorch; print(masktorch.__file__)")
    wheels = {"PYTHONPATH": str(site)}
    assert run(tmp_path / "where.py", **wheels) == str(
        site / "masktorch" / "__init__.py"
    )
    # The modules are those of src, byte for byte, so compilers, tracers, other
    # libraries and damaged files find nothing else in them. Benchmarks and pages are
    # no part of the wheel.
    chosen = "not compile and not mutants"
    options = ["-q", "-m", "not slow", "-k", chosen, "-p", "no:cacheprovider"]
    others = ("benchmarks", "docs", "integrations", "torch_features")
    ignored = [f"--ignore=tests/{folder}" for folder in others]
    output = run("-m", "pytest", *options, "tests", *ignored, cwd=unpacked, **wheels)
    assert " passed" in output
