"""Learned N:M sparsity: a pattern of n in m per group, drawn by Gumbel-softmax.

Source: Fang et al., "MaskLLM: Learnable Semi-Structured Sparsity for Large Language
Models" (arXiv 2409.17481).
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from typing_extensions import override

from masktorch._checks import check_flag, check_n_of_m, check_number
from masktorch._kernels.dtypes import at_least_float32, wide
from masktorch._kernels.random import uniform_like
from masktorch._methods.built_in import BuiltIn, straight_through, times
from masktorch._methods.n_of_m import group_length, grouped
from masktorch._sharding import whole

# Scores cost patterns / m times the memory of the weight.
MOST_PATTERNS = 256
# Standard deviation of the first scores, as in MaskLLM.
SPREAD = 0.01


def concrete_n_of_m(
    scores: Tensor,
    n: int = 2,
    m: int = 4,
    temperature: float = 1.0,
    scale: float = 1.0,
    hard: bool = False,
    generator: Generator | None = None,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Draw a pattern of `n` in `m` for each group, relaxed by a temperature.

    With `P` the matrix of the `C(m, n)` patterns and `G` Gumbel noise, forward
    `y = softmax((scale * s + G) / temperature)` over the patterns of each group, and
    `m = y @ P`; if `hard`, the pattern of the largest `y`. Backward, in both cases, the
    exact derivative of `y @ P`.

    Args:
        scores: (rows, groups, patterns), floating point; for a convolution (out
            channels, groups of input channels, kernel positions..., patterns). Patterns
            are in the order of `itertools.combinations(range(m), n)`.
        n: how many entries of a group to keep.
        m: the length of a group along dimension 1 of the mask.
        temperature: positive; towards 0 the relaxed draw becomes binary.
        scale: positive; how much the scores weigh against the noise.
        hard: return a binary mask.
        generator: where random numbers come from; PyTorch's own by default.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: unless `1 <= n <= m` with at most 256 patterns, `temperature` and
            `scale` are positive, and the last dimension of `scores` has C(m, n)
            entries.
        TypeError: if an argument is of the wrong type.

    Source: Fang et al. (arXiv 2409.17481).

    Examples:
        >>> sure = torch.tensor([[[50.0, -50.0, -50.0, -50.0, -50.0, -50.0]]])
        >>> concrete_n_of_m(sure, 2, 4, hard=True)
        tensor([[1., 1., 0., 0.]])
    """
    caller = "concrete_n_of_m()"
    check_patterns(caller, n, m)
    check_number(caller, "temperature", temperature, 0)
    check_number(caller, "scale", scale, 0)
    check_flag(caller, "hard", hard)
    _check_shape(scores, n, m)
    logits = scale * wide(scores, scores) + gumbel_like(scores, generator)
    mask = _expected_mask(logits / temperature, n, m)
    if hard:
        mask = straight_through(_likeliest_mask(logits, n, m).to(mask.dtype), mask)
    return times(weight, mask.to(scores.dtype))


def gumbel_like(scores: Tensor, generator: Generator | None) -> Tensor:
    """Return `-log(-log u)` of the scores' shape, with `u` uniform on (0, 1)."""
    return uniform_like(scores, generator).log_().neg_().log_().neg_()


def check_patterns(caller: str, n: int, m: int) -> None:
    """Raise unless there are patterns of `n` in `m`, and not too many."""
    if m is None:
        raise TypeError(f"{caller} expected whole numbers, found n={n!r}, m=None.")
    check_n_of_m(caller, n, m)
    # C(m, n) >= m for n < m; of a large m it would take long to compute.
    if n < m and (m > MOST_PATTERNS or math.comb(m, n) > MOST_PATTERNS):
        raise ValueError(
            f"{caller} expected at most {MOST_PATTERNS} patterns, there are more of "
            f"{n} in {m}. Choose another n and m; NOfM({n}, {m}) has no such limit."
        )


def _check_shape(scores: Tensor, n: int, m: int) -> None:
    count = math.comb(m, n)
    if scores.dim() < 3 or scores.shape[-1] != count:
        raise ValueError(
            f"expected scores of shape (rows, groups, ..., {count}), one for each "
            f"pattern of {n} in {m}, found {tuple(scores.shape)}."
        )


def _likeliest_mask(logits: Tensor, n: int, m: int) -> Tensor:
    """Return the patterns of the largest logits, of equal ones the first; bool."""
    patterns = _patterns(n, m, logits) > 0
    return _as_weight(patterns[logits.argmax(-1)], dim=-1)


def _expected_mask(logits: Tensor, n: int, m: int) -> Tensor:
    """Return `softmax(logits) @ P`."""
    # Patterns first: over neighbours in memory a softmax takes ten times as long.
    y = torch.softmax(logits.movedim(-1, 0), dim=0)
    # autocast would round y to 16 bits
    with torch.autocast(y.device.type, enabled=False):
        entries = torch.tensordot(_patterns(n, m, y).T, y, dims=1)
    return _as_weight(entries, dim=0)


def _as_weight(entries: Tensor, dim: int) -> Tensor:
    """Put the entries of each group, which lie along `dim`, next to each other along
    dimension 1 of the weight."""
    return entries.movedim(dim, 2).flatten(1, 2)


def _patterns(n: int, m: int, like: Tensor) -> Tensor:
    """Return `P`, of shape (C(m, n), m): 1 where a pattern keeps an entry."""
    combinations = list(itertools.combinations(range(m), n))
    kept = torch.tensor(combinations, device=like.device)
    zeros = torch.zeros(len(combinations), m, dtype=like.dtype, device=like.device)
    return zeros.scatter(1, kept, 1)


@dataclass(frozen=True)
class ConcreteNOfM(BuiltIn):
    """Learn which `n` of every `m` consecutive inputs to keep (MaskLLM).

    The formula is `masktorch.functional.concrete_n_of_m`: a pattern per group, drawn by
    Gumbel-softmax from C(m, n) logits. Groups lie along dimension 1, at each position
    of a convolution's kernel. The deterministic mask has the pattern of the largest
    logit. Scores have shape (rows, groups, C(m, n)), for a convolution (out channels,
    groups of input channels, kernel positions..., C(m, n)), and start at N(0, 0.01^2).

    Usual training: Adam, while `masktorch.set_estimator` lowers the temperature from 4
    to 0.05 and raises the scale from 100 to 500. `masktorch.set_masks` gives a prior.

    Raises:
        ValueError: unless `1 <= n <= m` with at most 256 patterns, and `temperature`
            and `scale` are positive.
        TypeError: if an argument is of the wrong type.

    Examples:
        >>> import torch
        >>> estimator = ConcreteNOfM(1, 2)
        >>> estimator.mode(torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]))
        tensor([[False,  True,  True, False]])
    """

    n: int = 2
    m: int = 4
    temperature: float = 1.0
    scale: float = 1.0
    hard: bool = False

    @override
    def __post_init__(self) -> None:
        check_patterns("ConcreteNOfM", self.n, self.m)
        self._check_number("temperature", 0)
        self._check_number("scale", 0)
        check_flag("ConcreteNOfM", "hard", self.hard)

    @override
    def init(self, weight: Tensor) -> Tensor:
        """Start at N(0, 0.01^2), from torch's random stream."""
        group_length(tuple(weight.shape), self.n, self.m)
        rows, inputs, *kernel = weight.shape
        shape = (rows, inputs // self.m, *kernel, math.comb(self.m, self.n))
        scores = weight.new_empty(shape, dtype=at_least_float32(weight.dtype))
        return scores.normal_(0.0, SPREAD)

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return concrete_n_of_m(
            scores,
            self.n,
            self.m,
            self.temperature,
            self.scale,
            self.hard,
            weight=weight,
        )

    @override
    def mode(self, scores: Tensor) -> Tensor:
        return whole(self._mode, scores.detach())

    def _mode(self, scores: Tensor) -> Tensor:
        _check_shape(scores, self.n, self.m)
        return _likeliest_mask(scores, self.n, self.m)

    def sample(self, scores: Tensor) -> Tensor:
        """Draw exactly `n` in `m`."""
        noisy = self.scale * wide(scores, scores) + gumbel_like(scores, None)
        return _likeliest_mask(noisy, self.n, self.m)

    def expected(self, scores: Tensor) -> Tensor:
        """Return the probability that a hard draw keeps an entry."""
        return _expected_mask(self.scale * scores, self.n, self.m)

    @override
    def scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        return whole(self._scores_for, scores, mask)

    def _scores_for(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Raise the logits of the given patterns, where another one is the largest.

        They lead by the spread of their group's logits: a prior that learning can
        change.
        """
        given = self._given_patterns(mask)
        settled = given.gather(-1, scores.argmax(-1, keepdim=True))
        finite = torch.nan_to_num(scores)
        largest, least = finite.amax(-1, True), finite.amin(-1, True)
        lead = torch.where(largest > least, largest - least, SPREAD)
        # `largest + lead` may round to `largest`, which would leave a tie.
        above = torch.nextafter(largest, torch.full_like(largest, math.inf))
        raised = torch.where(given, torch.maximum(largest + lead, above), finite)
        return torch.where(settled, scores, raised)

    def _given_patterns(self, mask: Tensor) -> Tensor:
        """Mark the pattern of each group; raise unless it keeps `n` of every `m`."""
        groups = grouped(mask, self.m).movedim(2, -1)
        wrong = groups.sum(-1) != self.n
        if wrong.any():
            raise ValueError(
                f"{self!r} keeps exactly {self.n} of every {self.m} entries along "
                f"dimension 1, the mask {int(groups.sum(-1)[wrong][0])} of a group. "
                f"Take NOfM({self.n}, {self.m}).mode(values) for the nearest one that "
                "does."
            )
        kept = groups.to(torch.float32)
        return kept @ _patterns(self.n, self.m, kept).T == self.n
