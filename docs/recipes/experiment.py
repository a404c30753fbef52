"""What the recipes share: MNIST, a small network, training, and a record of a run."""

import gzip
import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn


def mnist(folder):
    """(images, labels) for training and for testing, images as 784 numbers around 0."""

    def read(name):
        (path,) = Path(folder).rglob(f"{name}-ubyte.gz")
        data = gzip.decompress(path.read_bytes())
        numbers = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
        return torch.from_numpy(numbers.copy())

    return tuple(
        ((read(f"{part}-images-idx3").view(-1, 784).float() - 33.3) / 78.6,
         read(f"{part}-labels-idx1").long())
        for part in ("train", "t10k")
    )  # fmt: skip


def network():
    """LeNet-300-100."""
    return nn.Sequential(
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def train(model, optimiser, images, labels, epochs, batch_size=128):
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(batch_size):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()


@torch.no_grad()
def accuracy(model, images, labels):
    return (model.eval()(images).argmax(1) == labels).double().mean().item()


def record(path, rows, script, arguments, **settings):
    """Writes what came out of a run, with what made it."""

    def git(*words):
        run = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.strip()

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    arguments = sys.argv[1:] if arguments is None else arguments
    shown = shlex.join(
        ["python", f"docs/recipes/{Path(script).name}", "DATA", *arguments[1:]]
    )
    content = {
        "command": shown,
        "settings": settings,
        "environment": {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--", ".", "../../src")),
            "device": f"cpu, {torch.get_num_threads()} thread, "
            f"{names[0] if names else '?'}",
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "masktorch")},
        },
        "rows": rows,
    }
    text = json.dumps(content, indent=1)
    Path(path).write_text(text + "\n") if path else sys.stdout.write(text + "\n")
    return content
