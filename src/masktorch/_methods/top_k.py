"""Keep a fixed share of each tensor: its largest scores.

Sources: edge-popup, Ramanujan et al., "What's Hidden in a Randomly Weighted Neural
Network?" (arXiv 1911.13299); with `absolute=False`, movement pruning, Sanh et al.
(arXiv 2005.07683).
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from typing_extensions import override

from masktorch._checks import check_density, check_flag
from masktorch._kernels.autograd import masked
from masktorch._kernels.selecting import select
from masktorch._kernels.top_k import Selection, count, largest_of, select_largest
from masktorch._methods.ranked import Ranked
from masktorch._methods.rules import straight_rule
from masktorch._sharding import is_sharded, whole


def topk(
    scores: Tensor,
    density: float | Tensor,
    *,
    absolute: bool = True,
    weight: Tensor | None = None,
) -> Tensor:
    """Keep the largest scores.

    Forward `m = 1` at the `k = max(1, floor(density * n + 1/2))` largest `|s|` of the
    `n` entries; backward `dL/ds = g * sign(s)` with `sign(0) = 1`. With
    `absolute=False` the `k` largest `s`, and `dL/ds = g`. Ties go to the lower
    row-major index; -0.0 equals 0.0; NaN ranks largest.

    Args:
        scores: floating point, any shape.
        density: the share to keep; a 0-d float64 tensor is taken without a check.
        absolute: compare magnitudes.
        weight: return `weight * m` in its dtype, instead of `m` in the scores'.

    Raises:
        ValueError: if `density` is not in (0, 1].
        TypeError: if `density` is not a number or `absolute` not a bool.

    Sources: arXiv 1911.13299; with `absolute=False`, arXiv 2005.07683.

    Examples:
        >>> topk(torch.tensor([-3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([1., 0., 1., 0.])
    """
    check_flag("topk()", "absolute", absolute)
    if not isinstance(density, Tensor):
        check_density(density, "topk()")
    return _topk(scores, density, absolute, weight)


def _topk(
    scores: Tensor, density: float | Tensor, absolute: bool, weight: Tensor | None
) -> Tensor:
    source, product = _selection(scores, density, absolute)
    return masked(scores, weight, source, product, straight_rule(absolute))


def _selection(scores: Tensor, density: float | Tensor, absolute: bool) -> Selection:
    """Find what to keep, in the form that takes least time."""
    if torch.compiler.is_compiling() or is_sharded(scores):
        return Selection(topk_mask(scores, density, absolute=absolute), select)
    k = count(float(density), scores.numel())
    return select_largest(scores, k, absolute=absolute)


def topk_mask(
    scores: Tensor, density: float | Tensor, *, absolute: bool = True
) -> Tensor:
    """Return the mask of `topk`, bool, of the scores' shape."""
    return whole(lambda s: _select_or_trace(s, density, absolute), scores.detach())


def _select_or_trace(values: Tensor, density: float | Tensor, absolute: bool) -> Tensor:
    """Select now, or add one operation to a graph.

    To a compiler the density is a tensor, so that another density is not another graph.
    """
    if not torch.compiler.is_compiling():
        return _select_now(values, float(density), absolute)
    number = density * torch.ones((), dtype=torch.float64, device="cpu")
    return cast(Tensor, _operation(values, number, absolute))


def _select_now(values: Tensor, density: float, absolute: bool) -> Tensor:
    k = count(density, values.numel())
    return largest_of([values], k, absolute=absolute)[0]


@torch.library.custom_op("masktorch::largest", mutates_args=())
def _operation(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    kept = torch.empty_like(values, dtype=torch.bool)
    return kept.copy_(_select_now(values, float(density), absolute))


@_operation.register_fake
def _(values: Tensor, density: Tensor, absolute: bool) -> Tensor:
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "ONNX has no operator for exactly the k largest entries. Export "
            "masktorch.unwrap(copy.deepcopy(model)), which has the same output."
        )
    return torch.empty_like(values, dtype=torch.bool)


@dataclass(frozen=True)
class TopK(Ranked):
    """Keep the largest scores of each tensor, exactly as many as the density says.

    The formula is `masktorch.functional.topk`: edge-popup, or with `absolute=False`
    movement pruning. For whole channels or tiles see `masktorch.Blocks`. Scores start
    Kaiming-uniform (a = sqrt(5), from torch's random stream). Usual training: SGD,
    learning rate 0.1, momentum 0.9, cosine schedule, on weights from
    `masktorch.init.signed_constant_`.

    Raises:
        ValueError: if `density` is not in (0, 1].
        TypeError: if `density` is not a number or `absolute` not a bool.

    Examples:
        >>> import torch
        >>> TopK(0.5).mode(torch.tensor([-3.0, 1.0, 2.0, 0.0]))
        tensor([ True, False,  True, False])
    """

    density: float = 0.5
    absolute: bool = field(default=True, kw_only=True)
    # The density as an input of compiled code; derived, so no part of the value.
    _density_tensor: ClassVar[Tensor]

    @override
    def __post_init__(self) -> None:
        check_density(self.density, "TopK")
        check_flag("TopK", "absolute", self.absolute)
        number = torch.tensor(self.density, dtype=torch.float64, device="cpu")
        object.__setattr__(self, "density", float(self.density))
        object.__setattr__(self, "_density_tensor", number)

    def __getstate__(self) -> dict[str, Any]:
        return {
            k: value for k, value in self.__dict__.items() if k != "_density_tensor"
        }

    @override
    def product(self, scores: Tensor, weight: Tensor | None) -> Tensor:
        return _topk(scores, self._density_for_compiler(), self.absolute, weight)

    @override
    def mode(self, scores: Tensor) -> Tensor:
        return topk_mask(scores, self._density_for_compiler(), absolute=self.absolute)

    @override
    def mode_product(self, scores: Tensor, weight: Tensor) -> Tensor:
        density = self._density_for_compiler()
        source, product = _selection(scores, density, self.absolute)
        return product(source, weight)

    def _density_for_compiler(self) -> float | Tensor:
        """Return the density, as a tensor if Dynamo compiles: then it is an input."""
        dynamo = torch.compiler.is_dynamo_compiling()
        return self._density_tensor if dynamo else self.density

    @override
    def _groups(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(1, -1)
