"""Masks put on a model, and taken off it."""

import numbers
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from masktorch._masking.lookup import (
    Masked,
    Model,
    by_name,
    check_estimator,
    check_flag,
    check_not_distributed,
    checked_masks,
    masked_tensors,
    set_trains,
    warn_if_empty,
)
from masktorch._masking.mask import Mask
from masktorch._masking.module_class import (
    attach,
    attached,
    detach,
    masked_class,
    original_class,
)
from masktorch._masking.targets import Targets, conv_and_linear, plan
from masktorch._methods.fixed import Fixed
from masktorch._methods.protocol import Estimator
from masktorch._methods.threshold import Threshold

Init = float | Callable[[Tensor], Tensor]


def wrap(
    model: Model,
    estimator: Estimator | Mapping[str, Estimator] = Threshold(),
    *,
    targets: Targets = conv_and_linear,
    bias: bool = False,
    init: Init | None = None,
    rescale: bool = False,
) -> Model:
    """Puts a learnable mask on the weights of a model, in place: the layers use `W * m`.

    The masked tensors stop training and their scores begin to; every other parameter stays as it
    was. Tied weights get one mask for all their places. On an error nothing changes.

    Args:
        estimator: how the mask follows from its scores, and the gradient they get; or a mapping
            from full tensor names to estimators, whose names are then the targets.
        targets: full names of floating-point parameters, or a function `(module_name, module) ->
            tensor names`; by default the `weight` of Conv1d-3d, ConvTranspose1d-3d and Linear.
        bias: mask the biases of the same modules too.
        init: the scores to start from, a number or a function of the weight; by default the
            estimator's own. Scores have the shape, dtype and device of the weight.
        rescale: use `W * m * numel / sum(m)`, with the gradient through `sum(m)` (dynamic
            weight rescaling, Zhou et al., arXiv 1905.01067).

    Raises `ValueError` where something can't be masked, `TypeError` where it is of the wrong kind.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> [name for name, p in model.named_parameters() if p.requires_grad and "0" in name]
        ['0.bias', '0.parametrizations.weight.scores']
    """
    check_flag("wrap", "bias", bias)
    check_flag("wrap", "rescale", rescale)
    check_not_distributed(model, "wrap", "First wrap, then DDP or fully_shard.")
    if isinstance(estimator, Mapping) and targets is conv_and_linear:
        targets = estimator.keys()
    planned = plan(model, targets, bias=bias, caller="wrap")
    chosen = by_name("wrap", "estimator", planned, estimator)
    masked = []
    for weight, places in planned:
        name, own = places[0].name, chosen[places[0].name]
        check_estimator("wrap", name, own, weight.detach())
        scores = _scores(
            name, weight, getattr(own, "init", 1.0) if init is None else init
        )
        masked.append(
            (
                Mask(
                    own,
                    scores,
                    rescale=rescale,
                    shape=weight.shape,
                    was_trainable=weight.requires_grad,
                ),
                places,
            )
        )
    _attach(masked)
    for weight, _ in planned:
        set_trains(weight, False)
    return model


def unwrap(model: Model, *, bake: bool = True) -> Model:
    """Takes all masks off a model, in place, and gives its modules their original class back.

    With `bake=True` the weights become what the layers used in evaluation, masked entries exactly
    0.0. With `bake=False` they stay what they are under the masks, bit for bit. The parameter
    objects, hooks and optimiser state survive; `requires_grad` is what it was before `wrap`.
    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import set_masks
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> unwrap(model).weight[0, 1].item()
        0.0
    """
    check_not_distributed(
        model, "unwrap", "Unwrap DDP's .module, or a gathered copy of FSDP2's."
    )
    check_flag("unwrap", "bake", bake)
    found = masked_tensors(model, "unwrap")
    inside = {
        place.module._modules["parametrizations"]
        for _, places in found
        for place in places
    }
    owners: dict[Tensor, Mask] = {}
    for mask, place in [
        (mask, place) for mask, places in found for place in places if bake
    ]:
        outside = {
            h.parameter(name)
            for h, name in mask.places()
            if mask.rescale and h not in inside
        }
        if (
            owners.setdefault(place.parameter, mask) is not mask
            or place.parameter in outside
        ):
            raise ValueError(
                f"unwrap() can't bake {place.name!r}: another mask lies on it, or a module outside "
                "is tied to it and would rescale it again. Unwrap both at once, or bake=False."
            )
    for mask, places in found:
        for parameter in {place.parameter for place in places}:
            if bake:
                with torch.no_grad():
                    parameter.copy_(mask(parameter, training=False))
            set_trains(parameter, mask.was_trainable)
    for module in {place.module for _, places in found for place in places}:
        detach(module)
    return model


def give_masks(
    model: Model,
    masks: Mapping[str, Tensor],
    *,
    rescale: bool | Mapping[str, bool],
    caller: str,
) -> Model:
    """Puts masks that do not learn, a bool per entry, on the tensors named."""
    check_not_distributed(
        model, caller, "First set the masks, then DDP or fully_shard."
    )
    planned = plan(model, masks, bias=False, caller=caller)
    wanted = checked_masks(caller, planned, masks)
    rescaled = by_name(caller, "rescale", planned, rescale)
    masked = []
    for weight, places in planned:
        name, trained = places[0].name, weight.requires_grad
        with torch.inference_mode(False):
            own = wanted[name].to(weight.device, copy=True)
        masked.append(
            (
                Mask(
                    Fixed(),
                    own,
                    rescale=rescaled[name],
                    shape=weight.shape,
                    was_trainable=trained,
                ),
                places,
            )
        )
    _attach(masked)
    for mask, (place, *_) in masked:
        warn_if_empty(place.name, mask.scores)
    return model


def _attach(masked: Masked) -> None:
    """Puts each mask on all places of its tensor, once all their classes can be subclassed."""
    homes: dict[nn.Module, dict[str, Mask]] = {}
    for mask, place in [(mask, place) for mask, places in masked for place in places]:
        homes.setdefault(place.module, {})[place.attribute] = mask
    for module, put in homes.items():  # __init_subclass__ or a metaclass may raise here
        masked_class(original_class(module), frozenset({*attached(module), *put}))
    for module, put in homes.items():
        attach(module, put)


@torch.inference_mode(False)
def _scores(name: str, weight: Tensor, init: Init) -> Tensor:
    """The scores to start from; also within torch.inference_mode, whose tensors never learn."""
    if isinstance(init, numbers.Real) and init == init:
        return torch.full_like(
            weight, float(init), dtype=scores_dtype(weight), requires_grad=False
        )
    scores = (
        init(weight.detach().clone()) if callable(init) else init
    )  # nn.init's write into it
    expected = (
        f"wrap() expected init to be a number, or a function that gives {name!r} scores"
    )
    if not isinstance(scores, Tensor):
        raise TypeError(f"{expected}, found {scores!r}.")
    if scores.shape != weight.shape:
        raise ValueError(
            f"{expected} of shape {tuple(weight.shape)}, found {tuple(scores.shape)}."
        )
    return torch.empty_like(
        weight, dtype=scores_dtype(weight), requires_grad=False
    ).copy_(scores.detach())


def scores_dtype(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
