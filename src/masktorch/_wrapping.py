"""Masks put on a model, and taken off it."""

import gc
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from masktorch._checks import check_flag
from masktorch._masking.identity import identity, sharing_memory
from masktorch._masking.lookup import (
    Masked,
    Model,
    by_name,
    check_can_change,
    check_estimator,
    check_is_estimator,
    check_not_distributed,
    checked_masks,
    masked_tensors,
    set_trains,
    warn_if_empty,
)
from masktorch._masking.mask import Mask, attached
from masktorch._masking.module_class import attach, detach, masked_class, original_class
from masktorch._masking.names import enumerated
from masktorch._masking.places import Place
from masktorch._masking.scores import Init, initial_scores, undrawn_scores
from masktorch._masking.targets import (
    Planned,
    Targets,
    conv_and_linear,
    masked_outside,
    plan,
)
from masktorch._methods.fixed import Fixed
from masktorch._methods.protocol import Estimator
from masktorch._methods.threshold import Threshold


def wrap(
    model: Model,
    estimator: Estimator | Mapping[str, Estimator] = Threshold(),
    *,
    targets: Targets = conv_and_linear,
    bias: bool = False,
    init: Init | None = None,
    rescale: bool = False,
) -> Model:
    """Put learnable masks on the weights of a model, in place.

    A layer then computes with `W * m`, its weight times the mask. The masked tensors stop
    training and their scores begin to; every other parameter stays as it was. Tied weights
    (equal views of one memory) get one mask for all places where they live. The model is
    unchanged if `wrap` raises.

    Args:
        model: any module.
        estimator: how the mask follows from its scores, and which gradient they get. Or a
            mapping from tensor names to estimators; its names are then the targets.
        targets: which floating-point parameters to mask: their full names, or a function
            `(module_name, module) -> tensor names`. By default, the `weight` of Conv1d-3d,
            ConvTranspose1d-3d, Linear, their subclasses and transformers' Conv1D, but not of
            what peft adds. A name, here and in an estimator mapping, may be a shell pattern
            such as `"*.q_proj.weight"`; exact names win over patterns.
        bias: whether to mask the biases of the same modules, too.
        init: the scores to start from, a number or a function of the weight that returns
            scores of the estimator's shape (for most, the weight's). By default the
            estimator's own. Scores are at least float32.
        rescale: whether to use `W * m * numel / sum(m)`, with the gradient through `sum(m)`
            (dynamic weight rescaling, Zhou et al., arXiv 1905.01067).

    Returns:
        The same model.

    Raises:
        ValueError: if there is nothing to mask, a name is unknown, a pattern matches nothing,
            a tensor cannot be masked, or a learnable mask already lies on its memory.
        TypeError: if an argument or a tensor is of the wrong kind.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> [name for name, p in model.named_parameters() if p.requires_grad and "0" in name]
        ['0.bias', '0.parametrizations.weight.scores']
    """
    check_flag("wrap()", "bias", bias)
    check_flag("wrap()", "rescale", rescale)
    check_not_distributed(model, "wrap", "First wrap, then DDP or fully_shard.")
    if isinstance(estimator, Mapping) and targets is conv_and_linear:
        targets = estimator.keys()
    planned = plan(model, targets, bias=bias, caller="wrap")
    estimators = by_name("wrap", "estimator", planned, estimator, patterns=True)
    _attach(_learnable_masks(planned, estimators, init, rescale))
    for _, places in planned:
        for place in places:
            set_trains(place.parameter, False)
    return model


def unwrap(model: Model, *, bake: bool = True) -> Model:
    """Take all masks off a model, in place, and give its modules their original class back.

    The parameter objects, hooks and optimiser state survive; `requires_grad` is what it was
    before `wrap`. The model is unchanged if `unwrap` raises.

    Args:
        model: a model with masks.
        bake: whether the weights become what the layers used in evaluation, with masked
            entries exactly 0.0; any other module that shares a weight sees that, too. If
            False, the weights stay what they are under the masks, bit for bit.

    Returns:
        The same model.

    Raises:
        ValueError: if nothing is masked, or if another mask lies on a weight to bake.

    Examples:
        >>> from masktorch import set_masks
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> unwrap(model).weight[0, 1].item()
        0.0
    """
    check_flag("unwrap()", "bake", bake)
    check_not_distributed(
        model, "unwrap", "Unwrap DDP's .module, or a gathered copy of FSDP2's."
    )
    found = masked_tensors(model, "unwrap")
    for mask, places in found:
        if bake or mask.was_trainable:
            check_can_change("unwrap", places)
    if bake:
        _bake(model, found)
    for mask, places in found:
        for place in places:
            set_trains(place.parameter, mask.was_trainable)
    for module in {place.module for _, places in found for place in places}:
        detach(module)
    return model


def put_fixed_masks(
    model: Model,
    masks: Mapping[str, Tensor],
    *,
    rescale: bool | Mapping[str, bool],
    caller: str,
) -> Model:
    """Put fixed masks on a plain model, in place.

    Args:
        model: a model without masks.
        masks: bool tensors by full tensor name.
        rescale: as for `wrap`, for all tensors or by name.
        caller: the public function, for messages.
    """
    check_not_distributed(
        model, caller, "First set the masks, then DDP or fully_shard."
    )
    planned = plan(model, masks, patterns=False, caller=caller)
    wanted = checked_masks(caller, planned, masks)
    rescaled = by_name(caller, "rescale", planned, rescale)
    masked = []
    for weight, places in planned:
        name = places[0].name
        with torch.inference_mode(False):
            own = wanted[name].to(weight.device, copy=True)
        mask = Mask(
            Fixed(),
            own,
            rescale=rescaled[name],
            shape=weight.shape,
            was_trainable=weight.requires_grad,
        )
        masked.append((mask, places))
    _attach(masked)
    for mask, (place, *_) in masked:
        warn_if_empty(place.name, mask.scores)
    return model


# -- putting masks on ----------------------------------------------------------------------


def _learnable_masks(
    planned: Planned,
    estimators: Mapping[str, Estimator],
    init: Init | None,
    rescale: bool,
) -> Masked:
    """Make a mask for each tensor, and check that its estimator can be used there."""
    for estimator in estimators.values():
        check_is_estimator("wrap", estimator)
    masked: Masked = []
    for weight, places in planned:
        name = places[0].name
        estimator = estimators[name]
        try:
            scores = initial_scores("wrap", name, estimator, weight, init)
            check_estimator("wrap", name, estimator, scores, weight.shape)
        except ValueError as error:
            raise ValueError(
                f"{error}{_how_to_leave_out(planned, estimators)}"
            ) from error
        mask = Mask(
            estimator,
            scores,
            rescale=rescale,
            shape=weight.shape,
            was_trainable=weight.requires_grad,
        )
        masked.append((mask, places))
    return masked


def _how_to_leave_out(planned: Planned, estimators: Mapping[str, Estimator]) -> str:
    """Name the targets that are left without the tensors that estimators do not fit."""
    fitting = [
        places[0].name
        for weight, places in planned
        if _fits(estimators[places[0].name], weight)
    ]
    if len(fitting) == len(planned) or not fitting:
        return ""
    return f" It fits the others: targets=[{enumerated(fitting)}]."


def _fits(estimator: Estimator, weight: Tensor) -> bool:
    """Whether an estimator can be used on a tensor."""
    try:
        scores = undrawn_scores("", "", estimator, weight)
        check_estimator("", "", estimator, scores, weight.shape)
    except ValueError:
        return False
    return True


def _attach(masked: Masked) -> None:
    """Put each mask on all places of its tensor, once all their classes can be subclassed."""
    homes: dict[nn.Module, dict[str, Mask]] = {}
    for mask, places in masked:
        for place in places:
            homes.setdefault(place.module, {})[place.attribute] = mask
    for module, put in homes.items():  # __init_subclass__ or a metaclass may raise here
        masked_class(original_class(module), frozenset({*attached(module), *put}))
    for module, put in homes.items():
        attach(module, put)


# -- taking masks off ----------------------------------------------------------------------


def _bake(model: nn.Module, found: Masked) -> None:
    """Write what the layers use into their weights; compute everything before the first."""
    weights = _weights_to_bake(found)
    _refuse_masks_outside(model, weights)
    with torch.no_grad():
        baked = [mask(place.parameter, training=False) for mask, place in weights]
        for (_, place), value in zip(weights, baked, strict=True):
            place.parameter.copy_(value)


def _weights_to_bake(found: Masked) -> list[tuple[Mask, Place]]:
    """Return each memory once with its mask, as tied weights may have come untied."""
    weights: dict[Hashable, tuple[Mask, Place]] = {}
    for mask, places in found:
        for place in places:
            weights.setdefault((mask, identity(place.parameter)), (mask, place))
    chosen = list(weights.values())
    tensors = [place.parameter for _, place in chosen]
    for one, other in sharing_memory(tensors, tensors):
        if one != other:
            raise ValueError(
                f"unwrap() can't bake {chosen[max(one, other)][1].name!r}: another mask lies on "
                f"it, that of {chosen[min(one, other)][1].name!r}. Use bake=False, or give "
                "one of them a copy of the weight."
            )
    return chosen


def _refuse_masks_outside(
    model: nn.Module, weights: Sequence[tuple[Mask, Place]]
) -> None:
    """Raise if baking would change what a masked module outside the model computes."""
    tensors = [place.parameter for _, place in weights]

    def clash() -> str | None:
        outside = masked_outside(model)
        for one, two in sharing_memory(tensors, [tensor for _, tensor in outside]):
            (mask, place), (other, tensor) = weights[one], outside[two]
            if mask is other and mask.rescale:
                return f"{place.name!r}: a module outside is tied to it and would rescale it again"
            if mask is other or _stays_the_same(mask, place.parameter, other, tensor):
                continue
            return f"{place.name!r}: another mask lies on it in another model or module"
        return None

    found = clash()
    if found is not None:
        gc.collect()  # a model that nobody uses any more may still be waiting for this
        found = clash()
    if found is not None:
        raise ValueError(
            f"unwrap() can't bake {found}. Unwrap the model that holds both, use bake=False, "
            "or give this one a copy of the weight."
        )


def _stays_the_same(mask: Mask, weight: Tensor, other: Mask, tensor: Tensor) -> bool:
    """Whether baking a mask leaves alone what another mask on the same memory computes."""
    return (
        identity(weight) == identity(tensor)
        and not mask.rescale
        and not other.rescale
        and other.frozen
        and torch.equal(mask.mode(), other.mode())
    )
