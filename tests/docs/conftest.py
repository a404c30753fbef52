"""The pages, built once for all tests that read them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def build_site():
    """Build the pages of a copy of the repository, exactly as `make docs` does."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("latex2mathml")
    arguments = re.search(r"/mkdocs (build.*)", (ROOT / "Makefile").read_text())[1]

    def build(root, folder):
        return subprocess.run(
            [sys.executable, "-m", "mkdocs", *arguments.split(), "--site-dir", folder],
            cwd=root,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return build


@pytest.fixture(scope="session")
def site_folder(tmp_path_factory, build_site):
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("site")
    built = build_site(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder
