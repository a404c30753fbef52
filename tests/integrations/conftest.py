import pytest
import torch


@pytest.fixture
def tokens():
    return torch.randint(3, 31, (4, 8))
