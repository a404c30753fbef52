from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    torch.set_flush_denormal(
        False
    )  # which the benchmarks, or code that was compiled, have set


class Small(nn.Module):
    """Convolution, batch norm and linear layers, enough for every invariant."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def small():
    return Small()


@pytest.fixture
def batch():
    return torch.randn(8, 3, 6, 6), torch.randint(0, 2, (8,))


@pytest.fixture
def committed_results():
    """The folder of committed results, which a source distribution leaves out."""
    root = Path(__file__).parents[1]
    if (root / "PKG-INFO").exists():
        pytest.skip("a source distribution has no results")
    return root / "benchmarks" / "results"
