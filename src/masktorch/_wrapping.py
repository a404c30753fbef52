"""Masks put on a model, and taken off it."""

import gc
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor, nn

from masktorch._checks import check_flag
from masktorch._masking.identity import identity, sharing_memory
from masktorch._masking.lookup import (
    Masked,
    MaskedTensor,
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
from masktorch._masking.overrides import override_of
from masktorch._masking.places import Place
from masktorch._masking.scores import Init, initial_scores, undrawn_scores
from masktorch._masking.targets import (
    Planned,
    PlannedTensor,
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

    A layer then computes with `W * m`, its weight times the mask. The masked tensors
    stop training and their scores begin to; every other parameter stays as it was. Tied
    weights (equal views of one memory) get one mask for all places where they live. The
    model is unchanged if `wrap` raises.

    Args:
        model: any module.
        estimator: how the mask follows from its scores, and which gradient they get. Or
            a mapping from tensor names to estimators; its names are then the targets.
        targets: which floating-point parameters to mask: their full names, or a
            function `(module_name, module) -> tensor names`. By default, the `weight`
            of Conv1d-3d, ConvTranspose1d-3d, Linear, their subclasses and transformers'
            Conv1D, but not of what peft adds. A name, here and in an estimator mapping,
            may be a shell pattern such as `"*.q_proj.weight"`; exact names win over
            patterns.
        bias: whether to mask the biases of the same modules, too.
        init: the scores to start from, a number or a function of the weight that
            returns scores of the estimator's shape (for most, the weight's). By default
            the estimator's own. Scores are at least float32.
        rescale: whether to use `W * m * numel / sum(m)`, with the gradient through
            `sum(m)` (dynamic weight rescaling, Zhou et al., arXiv 1905.01067).

    Returns:
        The same model.

    Raises:
        ValueError: if there is nothing to mask, a name is unknown, a pattern matches
            nothing, a tensor cannot be masked, or a learnable mask already lies on its
            memory.
        TypeError: if an argument or a tensor is of the wrong kind.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['0.bias', '0.parametrizations.weight.scores']
    """
    check_flag("wrap()", "bias", bias)
    check_flag("wrap()", "rescale", rescale)
    check_not_distributed(model, "wrap", "First wrap, then DDP or fully_shard.")
    if isinstance(estimator, Mapping) and targets is conv_and_linear:
        targets = estimator.keys()
    planned = plan(model, targets, bias=bias, caller="wrap")
    estimators = by_name("wrap", "estimator", planned, estimator, patterns=True)
    _attach_all(_learnable_masks(planned, estimators, init, rescale))
    for tensor in planned:
        for place in tensor.places:
            set_trains(place.parameter, False)
    return model


def unwrap(model: Model, *, bake: bool = True) -> Model:
    """Take all masks off a model, in place, and give modules their original class back.

    The parameter objects, hooks and optimiser state survive; `requires_grad` is what it
    was before `wrap`. The model is unchanged if `unwrap` raises.

    Args:
        model: a model with masks.
        bake: whether the weights become what the layers used in evaluation, with masked
            entries exactly 0.0; any other module that shares a weight sees that, too.
            If False, the weights stay what they are under the masks, bit for bit.

    Returns:
        The same model.

    Raises:
        ValueError: if nothing is masked; if another mask, or one that still learns in
            another module, lies on a weight to bake; if the model is within
            `masktorch.using`, whose masks would be baked; if a weight was made in
            inference mode; or if the model is distributed.

    Examples:
        >>> from masktorch import set_masks
        >>> masks = {"weight": torch.tensor([[True, False]])}
        >>> model = set_masks(wrap(nn.Linear(2, 1)), masks)
        >>> unwrap(model).weight[0, 1].item()
        0.0
    """
    check_flag("unwrap()", "bake", bake)
    check_not_distributed(
        model, "unwrap", "Unwrap DDP's .module, or a gathered copy of FSDP2's."
    )
    found = masked_tensors(model, "unwrap")
    if bake and any(override_of(mask) is not None for mask, _ in found):
        raise ValueError(
            "unwrap() within masktorch.using would bake masks that are not the "
            "model's own. Leave it first; masktorch.set_masks makes them its own."
        )
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
    for tensor in planned:
        weight = tensor.parameter
        with torch.inference_mode(False):
            own = wanted[tensor.name].to(weight.device, copy=True)
        mask = Mask(
            Fixed(),
            own,
            rescale=rescaled[tensor.name],
            shape=weight.shape,
            was_trainable=weight.requires_grad,
        )
        masked.append(MaskedTensor(mask, tensor.places))
    for put in masked:  # before anything changes, because a warning may be an error
        # The frames: `warn_if_empty`, this one, the public function, and its caller.
        warn_if_empty(put.name, put.mask.scores, stacklevel=4)
    _attach_all(masked)
    return model


# -- putting masks on ------------------------------------------------------------------


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
    for tensor in planned:
        weight, estimator = tensor.parameter, estimators[tensor.name]
        try:
            scores = initial_scores("wrap", tensor.name, estimator, weight, init)
            check_estimator("wrap", tensor.name, estimator, scores, weight.shape)
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
        masked.append(MaskedTensor(mask, tensor.places))
    return masked


def _how_to_leave_out(planned: Planned, estimators: Mapping[str, Estimator]) -> str:
    """Name the targets that are left without the tensors that estimators do not fit."""
    fitting = [
        tensor.name for tensor in planned if _fits(estimators[tensor.name], tensor)
    ]
    if len(fitting) == len(planned) or not fitting:
        return ""
    return f" It fits the others: targets=[{enumerated(fitting)}]."


def _fits(estimator: Estimator, tensor: PlannedTensor) -> bool:
    """Whether an estimator can be used on a tensor."""
    weight = tensor.parameter
    try:  # messages are discarded, so they need no names
        scores = undrawn_scores("", "", estimator, weight)
        check_estimator("", "", estimator, scores, weight.shape)
    except ValueError:
        return False
    return True


def _attach_all(masked: Masked) -> None:
    """Put each mask on all places of its tensor, once all classes can be subclassed."""
    homes: dict[nn.Module, dict[str, Mask]] = {}
    for mask, places in masked:
        for place in places:
            homes.setdefault(place.module, {})[place.attribute] = mask
    for module, put in homes.items():
        # An `__init_subclass__` or a metaclass may raise here.
        masked_class(original_class(module), frozenset({*attached(module), *put}))
    for module, put in homes.items():
        attach(module, put)


# -- taking masks off ------------------------------------------------------------------


def _bake(model: nn.Module, found: Masked) -> None:
    """Write what the layers use into their weights, once all of it is computed."""
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
            _, first = chosen[min(one, other)]
            _, second = chosen[max(one, other)]
            raise ValueError(
                f"unwrap() can't bake {second.name!r}: another mask lies on it, that "
                f"of {first.name!r}. Use bake=False, or give one of them a copy of the "
                "weight."
            )
    return chosen


def _refuse_masks_outside(
    model: nn.Module, weights: Sequence[tuple[Mask, Place]]
) -> None:
    """Raise if baking would change what a masked module outside the model computes."""
    tensors = [place.parameter for _, place in weights]

    def describe_clash() -> str | None:
        outside = masked_outside(model)
        for one, two in sharing_memory(tensors, [tensor for _, tensor in outside]):
            (mask, place), (other, tensor) = weights[one], outside[two]
            if mask is other and mask.rescale:
                return (
                    f"{place.name!r}: a module outside is tied to it and would rescale "
                    "it again"
                )
            if _stays_the_same(mask, place.parameter, other, tensor):
                continue
            if mask is other:
                return (
                    f"{place.name!r}: a module outside is tied to it, and its mask is "
                    "not frozen: it would lose weights that it may keep later"
                )
            return f"{place.name!r}: another mask lies on it in another model or module"
        return None

    found = describe_clash()
    if found is not None:
        gc.collect()  # a model that nobody uses any more may still be waiting for this
        found = describe_clash()
    if found is not None:
        raise ValueError(
            f"unwrap() can't bake {found}. Unwrap the model that holds both, use "
            "bake=False, or give this one a copy of the weight."
        )


def _stays_the_same(mask: Mask, weight: Tensor, other: Mask, tensor: Tensor) -> bool:
    """Whether another mask on the same memory computes the same after baking."""
    return (
        identity(weight) == identity(tensor)
        and not mask.rescale
        and not other.rescale
        and other.frozen
        and torch.equal(mask.mode(), other.mode())
    )
