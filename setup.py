"""What pyproject.toml can't say: the page of a package index has no folders that links lead to."""

import re
from pathlib import Path

from setuptools import setup

readme = Path("README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", readme)  # figures
readme = re.sub(
    r"\[([^\]]*)\]\((?!https?:|#)([^)]*)\)", r"\1 (`\2`)", readme
)  # pages, by their names

setup(long_description=readme, long_description_content_type="text/markdown")
