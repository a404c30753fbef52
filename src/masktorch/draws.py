"""Drawing a mask: each entry kept with the probability `p = sigma(s)` of its score.

Code that is compiled draws by one operation, `torch.ops.masktorch.draw`.
"""

from typing import cast

import torch
from torch import Tensor

from masktorch.blocks import blockwise, is_plain
from masktorch.selection import exceeds


def margin_of_draw(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """`p - u`, up to a factor, for a uniform `u`: positive with probability `p`, as far as `u` is
    fine enough, 2^-24 of a float32 and 2^-30 on a CPU.

    A CPU draws one number after the other on one thread, so there an entry has 15 random bits, four
    entries to a draw, and the next one's 15 below them. These decide once in 2^15, which is all
    that two neighbours share: their covariance is at most 2^-15 p (1 - p) of the next one's p.
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)  # half precision rounds p
    p = torch.sigmoid(scores.detach().to(dtype))
    if p.device.type != "cpu" or type(p) is not Tensor:
        return p.sub_(torch.empty_like(p).uniform_(generator=generator)).to(scores.dtype)
    words = p.new_empty(p.numel() // 4 + 1, dtype=torch.int64).random_(generator=generator)
    if is_plain(p):
        bits = words.bitwise_and_(0x7FFF_7FFF_7FFF_7FFF).view(torch.int16)
        high, low = (bits[i:].as_strided(p.shape, p.stride()) for i in (0, 1))
    else:  # the same numbers; under vmap torch 2.6 can't view integers as shorter ones
        bits = (words.unsqueeze(-1) >> torch.arange(0, 64, 16)).bitwise_and(0x7FFF).flatten()
        high, low = (bits[i : i + p.numel()].view(p.shape) for i in (0, 1))
    # each step is exact, or else too far from 0 for the next to change the sign
    return p.mul_(2**15).sub_(high).sub_(low, alpha=2**-15).to(scores.dtype)


def uniform_like(scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Numbers from the open interval (0, 1), shaped like the scores: float32, or float64 for scores
    of that dtype. `generator` is PyTorch's own if left out. No two calls of compiled code are
    merged, and under `vmap` its `randomness` says whether the entries of a batch share a draw.

    Examples:
        >>> import torch
        >>> u = uniform_like(torch.zeros(3, dtype=torch.bfloat16))
        >>> u.dtype, bool(((u > 0) & (u < 1)).all())
        (torch.float32, True)
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if generator is None:  # of all that draws, what every compiler knows and never merges
        u = torch.rand_like(scores, dtype=dtype)
    else:
        u = torch.rand(scores.shape, generator=generator, dtype=dtype, device=scores.device)
    return u.clamp(min=torch.finfo(dtype).eps / 4)  # PyTorch's interval is [0, 1)


def drawn_mask(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """A drawn mask, in bytes (inductor stores them twice as fast as bools)."""
    if torch.compiler.is_compiling() and scores.device.type == "cpu" and generator is None:
        # one operation to the compiler, which neither traces random_ nor draws as fast itself
        return cast(Tensor, torch.ops.masktorch.draw(scores.detach()))
    return exceeds(margin_of_draw(scores, generator), 0.0).to(torch.uint8)


def _draw_in_blocks(scores: Tensor) -> Tensor:
    (mask,) = blockwise(lambda s: (exceeds(margin_of_draw(s, None), 0.0),), scores)
    return mask.view(torch.uint8)


def _like_a_mask(scores: Tensor) -> Tensor:
    return torch.empty_like(scores, dtype=torch.uint8)


if not hasattr(torch.ops.masktorch, "draw"):  # else this module is imported once more
    torch.library.define(
        "masktorch::draw",
        "(Tensor scores) -> Tensor",
        tags=(torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag),
    )
    torch.library.impl("masktorch::draw", "CPU", _draw_in_blocks)
    torch.library.register_fake("masktorch::draw", _like_a_mask)
