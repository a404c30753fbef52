"""What a user does to a model: wrap it, freeze masks and weights, read and set masks, unwrap it."""

import math
import numbers
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from masktorch.estimators import Estimator, Given, Threshold
from masktorch.parametrization import (
    Mask,
    attach,
    attached,
    detach,
    is_sharded,
    masked_class,
    original_class,
    total,
)
from masktorch.targets import Place, Targets, conv_and_linear, describe, join, plain_name, plan

Model = TypeVar("Model", bound=nn.Module)
Init = float | Callable[[Tensor], Tensor]


def wrap(
    model: Model,
    estimator: Estimator = Threshold(),
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
        estimator: how the mask follows from its scores, and the gradient they get.
        targets: a function `(module_name, module) -> tensor names`, or a list of full tensor
            names; any floating-point parameter. By default the `weight` of every Conv1d-3d,
            ConvTranspose1d-3d and Linear.
        bias: mask the biases of the same modules too.
        init: the scores to start from, a number or a function of the weight; by default the
            estimator's own. Scores have the shape, dtype and device of the weight.
        rescale: use `W * m * numel / sum(m)`, with the gradient through `sum(m)` (dynamic
            weight rescaling, Zhou et al., arXiv 1905.01067).

    Raises `ValueError` where there is nothing to mask, a name is unknown, a tensor is masked
    already, computed by another parametrization or not yet shaped; `TypeError` where a tensor is
    not floating point or an argument is of the wrong kind.

    Examples:
        >>> model = wrap(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> [name for name, p in model.named_parameters() if p.requires_grad and "0" in name]
        ['0.bias', '0.parametrizations.weight.scores']
    """
    if isinstance(estimator, type) or not isinstance(estimator, Estimator):
        raise TypeError(
            "wrap() expected an estimator such as masktorch.Threshold(): a value with "
            f"__call__(scores) and mode(scores). Found {estimator!r}."
        )
    _check_not_distributed(model, "wrap", "First wrap, then DDP or fully_shard.")
    planned = plan(model, targets, bias=bias)
    if init is None:
        init = getattr(estimator, "init", 1.0)
    masks = []
    for weight, places in planned:
        scores = _starting_scores(places[0].name, weight, init)
        masks.append(Mask(estimator, scores, rescale=rescale, trained=weight.requires_grad))
        masks[
            -1
        ].mode()  # an estimator that breaks its promise is found out before anything changes
    for place in (place for _, places in planned for place in places):
        _check_class(place)

    for (weight, places), mask in zip(planned, masks, strict=True):
        _attach(mask, places)
        _set_trains(weight, False)
    return model


def unwrap(model: Model, *, bake: bool = True) -> Model:
    """Takes all masks off a model, in place, and gives its modules their original class back.

    With `bake=True` the weights become what the layers used in evaluation: masked entries are
    exactly 0.0 (and the others rescaled, if `rescale` was on). With `bake=False` they stay what
    they are under the masks, bit for bit. The parameter objects, their hooks and their optimiser
    state survive; `requires_grad` is what it was when the tensor was wrapped.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> unwrap(model).weight[0, 1].item()
        0.0
    """
    _check_not_distributed(
        model,
        "unwrap",
        "Under DDP unwrap its .module; with FSDP2 gather the state dict into a plain wrapped model "
        "(see docs/distributed.md).",
    )
    for mask, places in masked_tensors(model, "unwrap"):
        for parameter in _parameters(places):
            if bake:
                with torch.no_grad():
                    parameter.copy_(mask(parameter, training=False))
            _set_trains(parameter, mask.trained)
        for _, module, attribute in places:
            detach(module, attribute)
    return model


def freeze_mask(model: Model, frozen: bool = True) -> Model:
    """Stops the masks: no gradient for the scores, the deterministic mask in every mode.

    `freeze_mask(model, False)` lets them learn again from where they were. Warns where a mask
    keeps nothing of its tensor. Raises `ValueError` if nothing is masked.

    Examples:
        >>> model = freeze_mask(wrap(nn.Linear(2, 1)))
        >>> model.parametrizations.weight.scores.requires_grad
        False
    """
    found = masked_tensors(model, "freeze_mask")
    for mask, (place, *_) in found:
        if not frozen and not mask.learns:
            raise ValueError(
                f"freeze_mask(model, False) can't let {place.name!r} learn: its mask was loaded "
                "onto a plain model and has no scores. Wrap the model first, then load the masks."
            )
    for mask, (place, *_) in found:
        mask.frozen = frozen
        _set_trains(mask.scores, not frozen)
        if frozen:
            _warn_if_empty(place.name, mask.mode())
    return model


def freeze_weights(model: Model, frozen: bool = True) -> Model:
    """Stops the masked tensors, or with `frozen=False` lets them train under their masks.

    A masked entry's gradient is exactly 0, and whatever an optimiser does to it, it contributes
    exactly 0. Raises `ValueError` if nothing is masked.

    Examples:
        >>> model = freeze_weights(freeze_mask(wrap(nn.Linear(2, 1))), False)
        >>> [name for name, p in model.named_parameters() if p.requires_grad]
        ['weight', 'bias']
    """
    for _, places in masked_tensors(model, "freeze_weights"):
        for parameter in _parameters(places):
            _set_trains(parameter, not frozen)
    return model


def mask_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """The scores of all masks, for an optimiser.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> sum(scores.numel() for scores in mask_parameters(wrap(nn.Linear(4, 3))))
        12
    """
    found = masked_tensors(model, "mask_parameters")
    return iter([cast(nn.Parameter, mask.scores) for mask, _ in found if mask.learns])


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The deterministic masks by tensor name: bool, shaped like their tensors, on their device.

    Raises `ValueError` if nothing is masked.

    Examples:
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    found = {places[0].name: mask for mask, places in masked_tensors(model, "masks")}
    return {
        name: mask.mode() if mask.learns else mask.mode().clone() for name, mask in found.items()
    }


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Moves the scores so that the deterministic masks are exactly those given.

    Scores that are on their side of the threshold already stay where they are. Warns where a mask
    keeps nothing of its tensor.

    Args:
        masks: for every masked tensor its mask, bool, by name, as `masks` returns them.

    Raises `ValueError` for a missing or unknown name, a wrong shape, or a mask that the estimator
    cannot express, `TypeError` for anything but a bool tensor; the model is then unchanged.

    Examples:
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> model.parametrizations.weight.scores.data
        tensor([[ 1., -1.]])
    """
    found = {places[0].name: mask for mask, places in masked_tensors(model, "set_masks")}
    if not isinstance(masks, Mapping):
        raise TypeError(
            "set_masks() expected a dict from tensor names to masks, as masktorch.masks(model) "
            f"returns it, found {type(masks).__name__}."
        )
    missing, unknown = found.keys() - masks.keys(), masks.keys() - found.keys()
    if missing or unknown:
        raise ValueError(
            "set_masks() expected one mask for each masked tensor, by name. "
            + (f"Missing: {', '.join(sorted(missing))}. " if missing else "")
            + (f"Not masked in this model: {', '.join(sorted(unknown))}. " if unknown else "")
            + "masktorch.masks(model) shows the names."
        )
    scores = {name: _scores_for(name, mask, masks[name]) for name, mask in found.items()}
    with torch.no_grad():
        for name, mask in found.items():
            mask.scores.copy_(scores[name])
    for name in found:
        _warn_if_empty(name, masks[name])
    return model


def give_masks(model: Model, masks: Mapping[str, Tensor], *, rescale: Mapping[str, bool]) -> Model:
    """Puts masks that do not learn, a bool per entry, on the tensors named; raises as `wrap`.

    Everything keeps training or not as before.
    """
    planned = plan(model, masks.keys(), bias=False)
    given = [
        Mask(
            Given(),
            masks[places[0].name].to(weight.device, copy=True),
            rescale=rescale[places[0].name],
            trained=weight.requires_grad,
        )
        for weight, places in planned
    ]
    for (_, places), mask in zip(planned, given, strict=True):
        _attach(mask, places)
    for _, (place, *_) in planned:
        _warn_if_empty(place.name, masks[place.name])
    return model


def _check_class(place: Place) -> None:
    try:
        masked_class(original_class(place.module), frozenset())
    except Exception as error:  # whatever a metaclass or __init_subclass__ raises
        raise TypeError(
            f"wrap() can't mask {place.name!r}: the class {type(place.module).__name__} can't be "
            f"subclassed ({error})."
        ) from error


def _attach(mask: Mask, places: list[Place]) -> None:
    for _, module, attribute in places:
        attach(module, attribute, mask)


def masked_tensors(model: nn.Module, caller: str) -> list[tuple[Mask, list[Place]]]:
    """Every mask with the places of its tensor, in the order of the model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}() expected a torch.nn.Module, found {type(model).__name__}.")
    for module in _distributed(model):
        if not isinstance(module, DistributedDataParallel):
            module.reshard()  # what FSDP2 has gathered is a copy: changes to it would be lost
    found: dict[Mask, list[Place]] = {}
    for module_name, module in model.named_modules():
        for attribute, mask in attached(module).items():
            place = Place(join(plain_name(module_name), attribute), module, attribute)
            found.setdefault(mask, []).append(place)
    if not found:
        raise ValueError(
            f"{caller}() expected a wrapped model: nothing is masked in {describe(model)}. Call "
            "masktorch.wrap(model) first."
        )
    return list(found.items())


def _distributed(model: nn.Module) -> list[Any]:
    """The modules that DDP or FSDP2 has taken."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    return [m for m in model.modules() if isinstance(m, (DistributedDataParallel, fsdp))]


def _check_not_distributed(model: nn.Module, caller: str, instead: str) -> None:
    if isinstance(model, nn.Module) and (taken := _distributed(model)):
        raise ValueError(
            f"{caller}() can't change a model that is distributed already: it found a "
            f"{type(taken[0]).__name__}, which has fixed what the parameters are. {instead}"
        )


def _parameters(places: list[Place]) -> list[nn.Parameter]:
    """The masked parameter, once; several if something has untied what was tied."""
    return list(dict.fromkeys(place.parameter for place in places))


def _starting_scores(name: str, weight: Tensor, init: Init) -> Tensor:
    if isinstance(init, numbers.Real) and not isinstance(init, bool) and not math.isnan(init):
        return torch.full_like(weight, float(init), requires_grad=False)
    if not callable(init):
        raise TypeError(
            f"wrap() expected init to be a number or a function of the weight, found {init!r}."
        )
    scores = init(weight.detach())
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"wrap() expected init(weight) to return scores of shape {tuple(weight.shape)} for "
            f"{name!r}, found {found}."
        )
    return torch.empty_like(weight, requires_grad=False).copy_(scores.detach())


def _scores_for(name: str, mask: Mask, wanted: Tensor) -> Tensor:
    scores: Any = mask.scores.detach()
    if not isinstance(wanted, Tensor) or wanted.dtype is not torch.bool:
        found = wanted.dtype if isinstance(wanted, Tensor) else type(wanted).__name__
        raise TypeError(f"set_masks() expected a bool tensor for {name!r}, found {found}.")
    if wanted.shape != scores.shape:
        raise ValueError(
            f"set_masks() expected a mask of shape {tuple(scores.shape)} for {name!r}, found "
            f"{tuple(wanted.shape)}."
        )
    wanted = wanted.to(scores.device)
    if is_sharded(scores) and not is_sharded(wanted):
        tensors = sys.modules["torch.distributed.tensor"]
        wanted = tensors.distribute_tensor(wanted, scores.device_mesh, scores.placements)
    scores_for = getattr(mask.estimator, "scores_for", None)
    moved = wanted.to(scores.dtype) if scores_for is None else scores_for(scores, wanted)
    if not torch.equal(mask.estimator.mode(moved), wanted):
        raise ValueError(
            f"set_masks() can't give {name!r} this mask: {mask.estimator!r} does not express it "
            f"({int(wanted.sum())} of {wanted.numel()} entries kept). Give the estimator a method "
            "scores_for(scores, mask) that does, or use a mask it can express."
        )
    return moved


def _set_trains(parameter: Tensor, trains: bool) -> None:
    parameter.requires_grad_(trains)
    if not trains:
        parameter.grad = None  # an optimiser steps on whatever gradient it finds


def _warn_if_empty(name: str, mask: Tensor) -> None:
    if mask.numel() and not mask.is_meta and not total(mask):
        warnings.warn(
            f"The mask of {name!r} keeps nothing: its layer computes with zeros. Start the scores "
            "higher (init=...), lower tau, or leave the tensor out of targets.",
            stacklevel=3,
        )
