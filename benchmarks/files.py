"""Files that are written whole or not at all, and the origin of a result."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import torch

import masktorch

# What decides a result, as git names it: everything but the results, to which runs
# append.
CODE = (":(top)", ":(top,exclude)benchmarks/results")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` if all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> Path:
    """Write `text` to `path`, replacing the file as a whole."""
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path


def read_lines(path: Path) -> list[str]:
    """Read the complete lines of a file; a missing file counts as empty.

    A line is complete once its newline is written. What follows the last newline is
    being written by another process, or was left by one that was killed.
    """
    if not path.exists():
        return []
    *complete, _unfinished = path.read_text().split("\n")
    return complete


def append_line(line: str, path: Path) -> None:
    """Append a line to a file that other processes append to as well.

    Writers take turns by a lock on the file, also on several machines that share the
    folder. The remainder of a writer that was killed is removed first. If writing
    fails, the file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        _lock(file)
        file.seek(0)
        size = file.readall().rfind(b"\n") + 1
        file.truncate(size)
        try:
            _write_all(f"{line}\n".encode(), file)
        except OSError:
            file.truncate(size)
            raise


def _lock(file: FileIO) -> None:
    """Wait for an exclusive lock; closing the file releases it.

    It is a POSIX record lock, which works over NFS too. The process loses it when it
    closes *any* descriptor of the file, so the file must not be opened twice while it
    is held.
    """
    if (
        sys.platform != "win32"
    ):  # Windows has no fcntl: there one process writes at a time
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX)


def _write_all(content: bytes, file: FileIO) -> None:
    while content:  # an unbuffered write may write a part only
        content = content[file.write(content) :]
    os.fsync(file.fileno())


def environment(device: torch.device) -> dict[str, Any]:
    """Describe the software and the machine that make a result."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "-uno", "--", *CODE)
    return {
        "masktorch": masktorch.__version__,
        "torch": torch.__version__,
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "device": str(device),
        "processor": _processor(device),
        "threads": torch.get_num_threads(),
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def command_line() -> str:
    """Return the running command as one would type it."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def _git(*arguments: str) -> str | None:
    """Ask git about the checkout that holds this file; None without git or checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def cpuinfo() -> str:
    """Return Linux's description of the processors; empty on other systems."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
