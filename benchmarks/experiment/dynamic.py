"""Dynamic sparse training: masks that move while the weights under them train.

Sources: SET (Mocanu et al., arXiv 1707.04780), RigL (Evci et al., arXiv 1911.11134),
gradual magnitude pruning (Zhu and Gupta, arXiv 1710.01878).
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import masktorch
from benchmarks.experiment.arms import MaskMove
from benchmarks.experiment.configuration import Configuration

STEPS_BETWEEN_MOVES = 50
MOVING_SHARE = 0.75  # of all steps; then the mask stays, and its weights settle
PRUNING_SHARE = 0.7  # less: the last move comes before MOVING_SHARE, at the end density
FIRST_REPLACED = 0.3  # of the kept weights; it falls with a cosine

Masks = dict[str, Tensor]


def first_masks(model: nn.Module, configuration: Configuration) -> Masks:
    """Return the masks of the first step: random, or all of it where pruning starts."""
    if configuration.arm_definition.moves is MaskMove.PRUNE:
        return keep(_magnitudes(model), densities(model, configuration, 1.0))
    generator = torch.Generator().manual_seed(configuration.seed)
    random = {
        name: torch.rand(weight.shape, generator=generator)
        for name, weight in _magnitudes(model).items()
    }
    return keep(random, densities(model, configuration, _end_density(configuration)))


def densities(
    model: nn.Module, configuration: Configuration, density: float
) -> dict[str, float]:
    """Divide a density among the kernels by the configuration's budget."""
    counted = masktorch.wrap(_unmasked_copy(model), masktorch.TopK(0.5))
    if configuration.budget == "erk":
        return masktorch.budget.erk(counted, density)
    return dict.fromkeys(masktorch.masks(counted), density)


def keep(values: Masks, shares: dict[str, float]) -> Masks:
    """Keep the largest values of each tensor."""
    return masktorch.keep_largest(values, shares)


def move_is_due(configuration: Configuration, step: int, progress: float) -> bool:
    """Whether masks move after a step of an epoch; `progress` is that of the run."""
    moves = configuration.arm_definition.moves is not None
    return moves and step % STEPS_BETWEEN_MOVES == 0 and progress < MOVING_SHARE


def move(
    model: nn.Module,
    optimiser: Optimizer,
    configuration: Configuration,
    progress: float,
    loss: Callable[[], Tensor],
) -> None:
    """Move the masks once.

    Grown weights start at 0, and so does their optimiser state: a stale moment would
    move them before their first gradient.

    Args:
        progress: the share of the run's steps that are done.
        loss: computes the loss of the current batch, for RigL's dense gradient.
    """
    before = masktorch.masks(model)
    if configuration.arm_definition.moves is MaskMove.PRUNE:
        done = min(1.0, progress / PRUNING_SHARE)
        density = masktorch.budget.cubic(1.0, _end_density(configuration), done)
        after = keep(_magnitudes(model), densities(model, configuration, density))
    else:
        after = masktorch.regrow(
            before,
            drop=_magnitudes(model),
            grow=_growth(model, configuration, loss),
            share=FIRST_REPLACED * (1 + math.cos(math.pi * progress)) / 2,
        )
    masktorch.set_masks(model, after)
    grown = {name: after[name] & ~before[name] for name in after}
    _reset(model, optimiser, grown)


def _growth(
    model: nn.Module, configuration: Configuration, loss: Callable[[], Tensor]
) -> Masks:
    """Return what decides which weights grow."""
    if configuration.arm_definition.moves is MaskMove.SET:
        return {name: torch.rand_like(w) for name, w in _magnitudes(model).items()}
    return {name: grad.abs() for name, grad in dense_gradients(model, loss).items()}


def dense_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> Masks:
    """Return the gradients by the masked weights, at kept and masked entries alike.

    The gradient by a parameter is 0 where it is masked. The product of weight and mask
    has the gradient that a dense network with these weights would have.
    """
    products: Masks = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(mask: nn.Module, inputs: object, product: Tensor) -> None:
            product.retain_grad()
            products[name] = product

        return hook

    handles = [
        layer.parametrizations.weight.register_forward_hook(watch(name))
        for name, layer in _masked_layers(model).items()
    ]
    loss().backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    return {name: _gradient(product) for name, product in products.items()}


def _gradient(product: Tensor) -> Tensor:
    assert product.grad is not None
    return product.grad


def _reset(model: nn.Module, optimiser: Optimizer, grown: Masks) -> None:
    """Set grown weights and their optimiser state to 0."""
    with torch.no_grad():
        for name, layer in _masked_layers(model).items():
            weight = layer.parametrizations.weight.original
            weight[grown[name]] = 0.0
            for value in optimiser.state[weight].values():
                if value.shape == weight.shape:  # Adam's moments
                    value[grown[name]] = 0.0


def _end_density(configuration: Configuration) -> float:
    assert configuration.density is not None
    return configuration.density


def _masked_layers(model: nn.Module) -> dict[str, Any]:
    names = masktorch.masks(model)
    return {name: model.get_submodule(name.removesuffix(".weight")) for name in names}


def _magnitudes(model: nn.Module) -> Masks:
    """Return the magnitudes of all kernels, masked or not."""
    return {
        name: parameter.detach().abs()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
    }


def _unmasked_copy(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    if any(hasattr(module, "parametrizations") for module in model.modules()):
        masktorch.unwrap(model, bake=False)
    return model
