"""The dtypes of scores and of arithmetic with them."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores over a weight of this dtype, and of their arithmetic.

    In 16 bits `1 - p` would be 0, and a score of 1.0 could not move by 1e-3.
    """
    return torch.promote_types(dtype, torch.float32)
