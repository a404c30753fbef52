"""Where numbers come from: the software, the machine, the command."""

import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import masktorch


def environment(device: torch.device) -> dict[str, Any]:
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return {
        "masktorch": masktorch.__version__,
        "torch": torch.__version__,
        "commit": commit,
        "dirty": None if commit is None else bool(changes),
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
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


def emulates_bfloat16() -> bool:
    """Whether the processor says what it can do, and bfloat16 is not in it."""
    return bool(flags := _cpuinfo("flags", "Features")) and "bf16" not in flags[0]


def _cpu_name() -> str:
    return (_cpuinfo("model name") or [platform.processor()])[0]


def _cpuinfo(*names: str) -> list[str]:
    """What Linux says of each processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(names)]
