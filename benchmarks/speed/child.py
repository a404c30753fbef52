"""A function called in a fresh process: with environment variables that are read at its start, and
memory that nothing else has touched."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import BenchmarkError

ROOT = Path(__file__).parents[2]


def call(function: Callable[..., Any], *arguments: Any, variables: Mapping[str, str]) -> Any:
    """What `function(*arguments)` returns; both go through JSON."""
    job = [function.__module__, function.__name__, arguments]
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.child", json.dumps(job)],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode:
        raise BenchmarkError(
            f"expected {function.__name__}{arguments} to end well in a process of its own, found "
            f"exit status {child.returncode}; what it said stands above. (-9: the machine had no "
            "memory left. Leave the part out with --only.)"
        )
    return json.loads(child.stdout.splitlines()[-1])


if __name__ == "__main__":
    module, name, given = json.loads(sys.argv[1])
    print(json.dumps(getattr(importlib.import_module(module), name)(*given)))
