"""The built wheel holds only masktorch, and the library's tests pass against it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, **environment):
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_the_suite_passes_against_the_wheel(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "src" / "masktorch", source / "src" / "masktorch")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source)

    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"masktorch/{path.name}" for path in (ROOT / "src" / "masktorch").glob("*.py")}
    assert {n for n in names if ".dist-info/" not in n} == modules | {"masktorch/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)

    run("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel)
    (tmp_path / "where.py").write_text("import masktorch; print(masktorch.__file__)")
    wheels = {"PYTHONPATH": str(site)}
    assert run(tmp_path / "where.py", **wheels) == str(site / "masktorch" / "__init__.py")
    tests = [p for p in (ROOT / "tests").glob("test_*.py") if p.stem != "test_wheel"]
    options = ["-q", "-m", "not slow", "-p", "no:cacheprovider"]
    assert " passed" in run("-m", "pytest", *options, *tests, **wheels)
