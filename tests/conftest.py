import gc
from pathlib import Path

import pytest
import torch

from masktorch._kernels import chunked, random, top_k
from tools.models import Small

# The files whose tests take longest, because they start processes of their own.
LONGEST = ("test_wheel.py", "test_parallel.py", "test_distributed.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Start the longest files first, so that no worker waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Hide what is imported by now from later garbage collections: torch is large."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    # The benchmarks flush denormals, and so does some code that was compiled.
    torch.set_flush_denormal(False)


@pytest.fixture
def small():
    return Small()


@pytest.fixture
def batch():
    """Images and labels for `small`."""
    return torch.randn(8, 3, 6, 6), torch.randint(0, 2, (8,))


@pytest.fixture
def committed_results():
    """The folder of committed results, which a source distribution leaves out."""
    root = Path(__file__).parents[1]
    if (root / "PKG-INFO").exists():
        pytest.skip("a source distribution has no results")
    return root / "benchmarks" / "results"


@pytest.fixture
def dynamo():
    """Nothing compiled before or after."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(params=["whole", "chunks"])
def size(request, monkeypatch):
    """Kernels compute a tensor as they do small ones, or as large ones: in chunks."""
    if request.param == "chunks":
        monkeypatch.setattr(chunked, "CHUNK", 6)
        monkeypatch.setattr(random, "SMALL", 0)
        monkeypatch.setattr(top_k, "FEW", 0)
