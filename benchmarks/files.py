"""Files of numbers: written whole or not at all, with the software, the machine and the command."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import masktorch


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends well it takes `path`'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> Path:
    with replacing(path) as beside:
        beside.write_text(text)
    return path


def environment(device: torch.device) -> dict[str, Any]:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    names = (line for line in cpuinfo().splitlines() if line.startswith("model name"))
    processor = next(names, f": {platform.processor()}").partition(": ")[2]
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    return {
        "masktorch": masktorch.__version__,
        "torch": torch.__version__,
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "device": str(device),
        "processor": processor,
        "threads": torch.get_num_threads(),
    }


def command_line() -> str:
    """The command that is running, as it would be typed."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    """What git says about the checkout this file lies in; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpuinfo() -> str:
    """What Linux says of the processors; empty where it is not Linux."""
    return path.read_text() if (path := Path("/proc/cpuinfo")).exists() else ""
