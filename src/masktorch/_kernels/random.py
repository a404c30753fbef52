"""Random masks, each entry kept with the probability `p = sigma(s)` of its score, and noise.

A draw is a function of the scores and of a seed, PyTorch's own `randint`, which no compiler merges
with another: in compiled code one operation, which may be computed again at will.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.random import SFC64
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor, nn

from masktorch._kernels.chunked import Out, by_numpy, chunkwise
from masktorch._kernels.selecting import compared


def drawn_mask(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """A drawn mask, in bytes (inductor stores them twice as fast as bools)."""
    scores = scores.detach()
    if scores.device.type == "cpu" and type(scores) in (Tensor, nn.Parameter):
        seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        # one operation to compilers and transforms, whatever it does within
        return cast(Tensor, (_draw if by_numpy(scores) else _operation)(scores, seed))
    u = uniform_like(scores, generator)
    return (~(torch.sigmoid(scores.to(u.dtype)) <= u)).to(torch.uint8)


def uniform_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers from the open interval (0, 1), shaped like the scores: float32, or float64 for it."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if (
        generator is None
    ):  # of all that draws, what every compiler knows and never merges
        u = torch.rand_like(scores, dtype=dtype)
    else:
        u = torch.rand(
            scores.shape, generator=generator, dtype=dtype, device=scores.device
        )
    return u.clamp(min=torch.finfo(dtype).eps / 4)  # PyTorch's own are from [0, 1)


class _Start(int, ISeedSequence):
    """All that a bit generator starts from: numpy's hash takes longer than to draw a small mask."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.full(n_words, self, dtype)


def _draw(scores: Tensor, seed: Tensor) -> Tensor:
    """On a CPU, by few random bits, for these take the time: 15 an entry, four entries to a number.
    Once in 2^15 the next one's decide too: neighbours' covariance is at most 2^-15 p (1 - p)."""
    generator = SFC64(cast(Any, _Start(seed)))  # numpy's types know only its own

    @chunkwise
    def mask(scores: Tensor, out: Out) -> Tensor:
        p = torch.sigmoid(scores.to(torch.promote_types(scores.dtype, torch.float32)))
        words = generator.random_raw(p.numel() // 4 + 1)
        words &= np.uint64(
            0x7FFF_7FFF_7FFF_7FFF
        )  # 15 of 16 bits, so that no int16 is negative
        bits = torch.from_numpy(words.view(np.int16))
        high, low = (bits.as_strided(p.shape, p.stride(), first) for first in (0, 1))
        # each step is exact, or else too far from 0 for the next to change the sign
        p.sub_(high, alpha=2**-15).sub_(low, alpha=2**-30)
        return compared(lambda v: ~(v <= 0), p, out)

    return mask(scores).view(torch.uint8)


_operation = torch.library.custom_op("masktorch::draw", _draw, mutates_args=())


@_operation.register_fake
def _(scores: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.uint8)


@_operation.register_vmap
def _(info: Any, in_dims: Any, scores: Tensor, seed: Tensor) -> tuple[Tensor, int]:
    """With `randomness="different"` the seed has a batch, with "same" it has none."""
    tensors = zip((scores, seed), in_dims, strict=True)
    parts = (
        [t] * info.batch_size if dim is None else t.unbind(dim) for t, dim in tensors
    )
    return torch.stack([*map(_operation, *parts)]), 0
