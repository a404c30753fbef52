"""Random masks that keep an entry with the probability `p = sigma(s)`, and noise.

Small tensors, and those on accelerators, compare `p` with PyTorch's own uniform
numbers. Large CPU tensors draw 15 bits an entry from numpy instead, four times as fast.
Such a draw is a pure function of scores and a seed. The seed comes from
`torch.randint`, which compilers never deduplicate, so compiled code may recompute the
draw.
"""

from typing import Any, cast

import numpy as np
import torch
from numpy.random import SFC64
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor, nn

from masktorch._kernels.chunked import Out, by_numpy, chunkwise
from masktorch._kernels.dtypes import at_least_float32, wide
from masktorch._kernels.selecting import apply_test

# Up to so many entries PyTorch draws faster than numpy, whose generator takes 60 us to
# set up. Measured: they break even at 40,000 entries.
SMALL = 2**15

# Bits of the first number drawn; a second of the same length breaks ties.
BITS = 15


def drawn_mask(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw the source of a mask for `select`: margins, or bytes if it is large.

    Margins are `p - u` with `u` from [0, 1): positive with probability `p`, and never
    where `p = 0`. Inductor stores bytes twice as fast as bools.
    """
    scores = scores.detach()
    if _takes_bits(scores):
        seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
        if by_numpy(scores):
            return _draw_by_bits(scores, seed)
        # one operation to compilers and transforms, whichever steps it takes
        return cast(Tensor, _draw_operation(scores, seed))
    p = torch.sigmoid(wide(scores, scores))
    return p - _uniform(scores, p.dtype, generator)


def _takes_bits(scores: Tensor) -> bool:
    """Whether it is a large tensor on the CPU, under any transform."""
    return (
        scores.numel() > SMALL
        and scores.device.type == "cpu"
        and type(scores) in (Tensor, nn.Parameter)
    )


def uniform_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the open interval (0, 1), shaped like the scores, at least float32."""
    dtype = at_least_float32(scores.dtype)
    return _uniform(scores, dtype, generator).clamp(min=_least(dtype))


def logistic_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw `logit(u)`, with `u` as `uniform_like` draws it."""
    dtype = at_least_float32(scores.dtype)
    return _uniform(scores, dtype, generator).logit_(_least(dtype))


def _least(dtype: torch.dtype) -> float:
    """Return what replaces a 0 drawn by PyTorch: half of the next number."""
    return torch.finfo(dtype).eps / 4


def _uniform(
    scores: Tensor, dtype: torch.dtype, generator: torch.Generator | None
) -> Tensor:
    """Draw from [0, 1), shaped like the scores."""
    if generator is None:
        # the one operation that every compiler knows and never merges with another
        return torch.rand_like(scores, dtype=dtype)
    return torch.rand(
        scores.shape, generator=generator, dtype=dtype, device=scores.device
    )


class _RawSeed(int, ISeedSequence):
    """Start a bit generator from the seed as it is.

    numpy's own hash of a seed takes longer than a small mask.
    """

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.full(n_words, self, dtype)


def _draw_by_bits(scores: Tensor, seed: Tensor) -> Tensor:
    """Draw a mask as bytes, on a CPU, from few random bits: they take most of the time.

    A generated word of 64 bits has four numbers of 15 bits, the sign bit of each int16
    cleared so that all are at least 0:

        word    0hhhhhhh hhhhhhhh 0hhhhhhh hhhhhhhh 0hhhhhhh hhhhhhhh 0hhhhhhh hhhhhhhh
        entry   i+3               i+2               i+1               i

    Entry i is kept if its 30-bit number `high_i / 2^15 + high_{i+1} / 2^30` is below p.
    The lower half is its neighbour's number, which decides once in 2^15 entries: the
    covariance of neighbours is at most 2^-15 p (1 - p).
    """
    # numpy's types know only its own seeds
    generator = SFC64(cast(Any, _RawSeed(seed)))

    @chunkwise
    def draw(scores: Tensor, out: Out) -> Tensor:
        p = torch.sigmoid(wide(scores, scores))
        words = generator.random_raw(p.numel() // 4 + 1)
        words &= np.uint64(0x7FFF_7FFF_7FFF_7FFF)
        numbers = torch.from_numpy(words.view(np.int16))
        high = numbers.as_strided(p.shape, p.stride(), 0)
        low = numbers.as_strided(p.shape, p.stride(), 1)
        # Each subtraction is exact, or its result is so far from 0 that the next one
        # can't change the sign.
        p.sub_(high, alpha=2.0**-BITS).sub_(low, alpha=2.0 ** (-2 * BITS))
        return apply_test(lambda margin: ~(margin <= 0), p, out)

    return draw(scores).view(torch.uint8)


_draw_operation = torch.library.custom_op(
    "masktorch::draw", _draw_by_bits, mutates_args=()
)


@_draw_operation.register_fake
def _(scores: Tensor, seed: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.uint8)


@_draw_operation.register_vmap
def _(info: Any, in_dims: Any, scores: Tensor, seed: Tensor) -> tuple[Tensor, int]:
    """Draw for each entry of the batch.

    The seed has a batch with `randomness="different"`, and no batch with "same".
    """
    parts = (
        [tensor] * info.batch_size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip((scores, seed), in_dims, strict=True)
    )
    masks = torch.stack([*map(_draw_operation, *parts)])
    return masks, 0
