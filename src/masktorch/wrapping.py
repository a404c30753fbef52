"""Masks put on a model, and taken off it."""

import math
import numbers
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from masktorch.estimators import Estimator, Given, Threshold
from masktorch.mask import Mask
from masktorch.model import (
    Masked,
    Model,
    by_name,
    check_estimator,
    check_flag,
    check_not_distributed,
    checked_mask,
    masked_tensors,
    set_trains,
    warn_if_empty,
)
from masktorch.parametrization import attach, attached, detach, masked_class, original_class
from masktorch.targets import Targets, conv_and_linear, plan

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
    was. A parameter that lives in several places (tied weights) gets one mask for all of them.

    Args:
        model: any module. Nothing in it changes if an error is raised.
        estimator: how the mask follows from its scores, and the gradient they get; or a mapping
            from full tensor names to estimators, whose names are then the targets.
        targets: a function `(module_name, module) -> tensor names`, or a list of full tensor
            names; any floating-point parameter. By default the `weight` of every Conv1d-3d,
            ConvTranspose1d-3d and Linear.
        bias: mask the biases of the same modules too.
        init: the scores to start from, a number or a function of the weight; by default the
            estimator's own. Scores have the shape, dtype and device of the weight.
        rescale: use `W * m * numel / sum(m)`, with the gradient through `sum(m)` (dynamic
            weight rescaling, Zhou et al., arXiv 1905.01067).

    Raises `ValueError` where there is nothing to mask or a tensor can't be masked, `TypeError`
    where one is not floating point or an argument is of the wrong kind.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> [name for name, p in model.named_parameters() if p.requires_grad and "0" in name]
        ['0.bias', '0.parametrizations.weight.scores']
    """
    check_flag("wrap", "bias", bias)
    check_flag("wrap", "rescale", rescale)
    check_not_distributed(model, "wrap", "First wrap, then DDP or fully_shard.")
    if isinstance(estimator, Mapping):
        if targets is not conv_and_linear or bias:
            raise TypeError(
                "wrap() expected an estimator beside targets or bias, found a mapping, whose names "
                "are the targets. Leave them out, and name biases in the mapping."
            )
        targets = estimator.keys()
    planned = plan(model, targets, bias=bias, caller="wrap")
    chosen = by_name("wrap", "estimator", planned, estimator)
    masked = []
    for weight, places in planned:
        name, its = places[0].name, chosen[places[0].name]
        check_estimator("wrap", name, its, weight.detach())
        scores = _scores(name, weight, getattr(its, "init", 1.0) if init is None else init)
        mask = Mask(its, scores, rescale=rescale, trained=weight.requires_grad)
        masked.append((mask, places))
    _attach("wrap", masked)
    for weight, _ in planned:
        set_trains(weight, False)
    return model


def unwrap(model: Model, *, bake: bool = True) -> Model:
    """Takes all masks off a model, in place, and gives its modules their original class back.

    With `bake=True` the weights become what the layers used in evaluation: masked entries are
    exactly 0.0 (and the others rescaled, if `rescale` was on). With `bake=False` they stay what
    they are under the masks, bit for bit. The parameter objects, their hooks and their optimiser
    state survive; `requires_grad` is what it was when the tensor was wrapped.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import set_masks
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> unwrap(model).weight[0, 1].item()
        0.0
    """
    instead = (
        "Under DDP unwrap its .module; with FSDP2 unwrap a gathered copy, docs/distributed.md."
    )
    check_not_distributed(model, "unwrap", instead)
    check_flag("unwrap", "bake", bake)
    found = masked_tensors(model, "unwrap")
    modules = {place.module for _, places in found for place in places}
    inside = {module._modules["parametrizations"] for module in modules}
    for mask, places in found:
        outside = {home.tensors[name] for home, name in mask.places() if home not in inside}
        if bake and mask.rescale and any(place.parameter in outside for place in places):
            raise ValueError(
                f"unwrap() can't bake {places[0].name!r} here: a module outside this model "
                "holds the same tensor under the same mask (tied weights, copy.copy), and "
                "would rescale it once more. Unwrap the model that holds both, or bake=False."
            )
    for mask, places in found:
        for parameter in {place.parameter for place in places}:
            if bake:
                with torch.no_grad():
                    parameter.copy_(mask(parameter, training=False))
            set_trains(parameter, mask.trained)
    for module in modules:
        detach(module)
    return model


def give_masks(
    model: Model, masks: Mapping[str, Tensor], *, rescale: Mapping[str, bool], caller: str
) -> Model:
    """Puts masks that do not learn, a bool per entry, on the tensors named, by any of their names
    where weights are tied. Everything keeps training or not as before."""
    check_not_distributed(model, caller, "First set the masks, then DDP or fully_shard.")
    planned = plan(model, masks.keys(), bias=False, caller=caller)
    wanted = by_name(caller, "mask", planned, masks)
    rescaled = by_name(caller, "rescale", planned, rescale)
    masked = []
    for weight, places in planned:
        name = places[0].name
        given = checked_mask(caller, name, wanted[name], weight.shape)
        with torch.inference_mode(False):
            own = given.to(weight.device, copy=True)
        mask = Mask(Given(), own, rescale=rescaled[name], trained=weight.requires_grad)
        masked.append((mask, places))
    _attach(caller, masked)
    for mask, (place, *_) in masked:
        warn_if_empty(place.name, mask.scores)
    return model


def _attach(caller: str, masked: Masked) -> None:
    """Puts each mask on all places of its tensor, once all their classes are known to bear it."""
    homes: dict[nn.Module, dict[str, Mask]] = {}
    for mask, places in masked:
        for place in places:
            homes.setdefault(place.module, {})[place.attribute] = mask
    try:
        for place in (place for _, places in masked for place in places):
            names = frozenset({*attached(place.module), *homes[place.module]})
            masked_class(original_class(place.module), names)
    except Exception as error:  # whatever a metaclass or __init_subclass__ raises
        raise TypeError(
            f"{caller}() can't mask {place.name!r}: the class {type(place.module).__name__} can't "
            f"be subclassed ({error})."
        ) from error
    for module, put in homes.items():
        attach(module, put)


@torch.inference_mode(False)
def _scores(name: str, weight: Tensor, init: Init) -> Tensor:
    """The scores to start from; also within torch.inference_mode, whose tensors never learn."""
    if isinstance(init, numbers.Real) and not isinstance(init, bool) and not math.isnan(init):
        return torch.full_like(weight, float(init), requires_grad=False)
    if not callable(init):
        what = f"a tensor of shape {tuple(init.shape)}" if isinstance(init, Tensor) else repr(init)
        raise TypeError(
            "wrap() expected init to be a number or a function of the weight, found "
            f"{what}. For scores that you have, write init=lambda weight: scores."
        )
    scores = init(weight.detach().clone())  # a copy: it may write into it, as those of nn.init do
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"wrap() expected init(weight) to return scores of shape {tuple(weight.shape)} for "
            f"{name!r}, found {found}."
        )
    return torch.empty_like(weight, requires_grad=False).copy_(scores.detach())
