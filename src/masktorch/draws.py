"""Random masks, each entry kept with the probability `p = sigma(s)` of its score, and noise.

A draw takes one number from PyTorch's generator, the *seed*, and is a function of scores and seed.
In compiled code the number is PyTorch's own `randint`, which no compiler merges with another, and
the function one operation, `torch.ops.masktorch.draw`, which may be computed again at will.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.random import SFC64
from torch import Tensor, nn

from masktorch.blocks import blockwise, is_plain

BITS = np.uint64(0x7FFF_7FFF_7FFF_7FFF)
"""15 of every 16 bits, so that a quarter of a word is no negative number."""


def drawn_mask(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """A drawn mask, in bytes (inductor stores them twice as fast as bools)."""
    scores = scores.detach()
    if scores.device.type == "cpu" and type(scores) in (Tensor, nn.Parameter):
        seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        # one operation to compilers and transforms, whatever it does within
        return cast(Tensor, (_draw if is_plain(scores) else _operation)(scores, seed))
    u = uniform_like(scores, generator)
    return (~(torch.sigmoid(scores.to(u.dtype)) <= u)).to(torch.uint8)


def uniform_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers from the open interval (0, 1), shaped like the scores: float32, or float64 for scores
    of that dtype. `generator` is PyTorch's own if left out."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if generator is None:  # of all that draws, what every compiler knows and never merges
        u = torch.rand_like(scores, dtype=dtype)
    else:
        u = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    return u.clamp(min=torch.finfo(dtype).eps / 4)  # PyTorch's own are from [0, 1)


def _draw(scores: Tensor, seed: Tensor) -> Tensor:
    """On a CPU, with as few random bits as will do, for they come one number after the other.

    An entry has 15 bits, four entries to a number, and the next one's 15 below them. These decide
    once in 2^15, which is all that two neighbours share: their covariance is at most
    2^-15 p (1 - p) of the next one's p.
    """
    generator = SFC64(int(seed))

    @blockwise
    def mask(scores: Tensor) -> Tensor:
        p = torch.sigmoid(scores.to(torch.promote_types(scores.dtype, torch.float32)))
        words = generator.random_raw(p.numel() // 4 + 1)
        words &= BITS
        bits = torch.from_numpy(words.view(np.int16))
        high, low = (bits.as_strided(p.shape, p.stride(), first) for first in (0, 1))
        # each step is exact, or else too far from 0 for the next to change the sign
        p.sub_(high, alpha=2**-15).sub_(low, alpha=2**-30)
        kept = torch.empty_like(p, dtype=torch.bool)
        np.logical_not(p.numpy() <= 0, out=kept.numpy())  # numpy compares ten times faster
        return kept

    return mask(scores).view(torch.uint8)


_operation = torch.library.custom_op("masktorch::draw", _draw, mutates_args=())


@_operation.register_fake
def _(scores: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.uint8)


@_operation.register_vmap
def _(info: Any, in_dims: Any, scores: Tensor, seed: Tensor) -> tuple[Tensor, int]:
    """With `randomness="different"` the seed has a batch, with "same" it has none."""
    parts = (
        [tensor] * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip((scores, seed), in_dims, strict=True)
    )
    return torch.stack([_operation(*part) for part in zip(*parts, strict=True)]), 0
