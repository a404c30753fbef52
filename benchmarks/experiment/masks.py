"""The masks of a run: its estimator, its density in each epoch, where scores start."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

import masktorch
from benchmarks.experiment import dynamic
from benchmarks.experiment.arms import MaskMove
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.networks import kernels

# Of the epochs: in them a scheduled density falls, or pruning goes on. Then it stays.
FALLING_SHARE = dynamic.MOVING_SHARE
BUDGETS = {"overall": masktorch.budget.overall, "erk": masktorch.budget.erk}
SCHEDULES = {
    "cubic": masktorch.budget.cubic,
    "geometric": masktorch.budget.geometric,
}


def make_estimator(configuration: Configuration) -> masktorch.Estimator | None:
    """Return the estimator with its settings; None for an arm that has none."""
    kind = configuration.estimator_kind
    if kind is None:
        return None
    if kind.takes_density and configuration.density is not None:
        return kind.make(density=configuration.density)
    return kind.make()


def wrap(model: nn.Module, configuration: Configuration) -> None:
    """Mask every kernel and every bias the estimator can mask, as the blog does."""
    kind, estimator = configuration.estimator_kind, make_estimator(configuration)
    if kind is None or estimator is None:
        raise ValueError(f"the arm {configuration.arm} has no estimator to wrap with")
    init = torch.randn_like if configuration.init == "normal" else configuration.init
    masktorch.wrap(
        model,
        estimator,
        bias=kind.masks_biases,
        init=init,
        rescale=configuration.rescale,
    )


def falling_epochs(configuration: Configuration) -> int:
    """Return how many epochs a scheduled density takes to reach its final value."""
    arm = configuration.arm_definition
    is_scheduled = configuration.schedule_density != "none" and arm.trains_scores
    if not (is_scheduled or arm.moves is MaskMove.PRUNE):
        return 0
    return min(
        math.ceil(FALLING_SHARE * configuration.epochs), configuration.epochs - 1
    )


def scheduled_density(configuration: Configuration, epoch: int) -> float:
    """Return the density of an epoch: it falls from 1 to the configuration's."""
    end = configuration.density
    if end is None:
        end = masktorch.TopK().density
    falling = falling_epochs(configuration)
    if falling == 0:
        return end
    schedule = SCHEDULES[configuration.schedule_density]
    return float(schedule(1.0, end, min(1.0, (epoch - 1) / falling)))


def set_epoch_density(
    model: nn.Module, configuration: Configuration, epoch: int
) -> None:
    """Give the masks their densities of an epoch; a budget also reads the scores."""
    if not configuration.takes_density or not configuration.arm_definition.has_scores:
        return
    density = scheduled_density(configuration, epoch)
    if configuration.budget == "none":
        masktorch.set_density(model, density)
    else:
        shares = BUDGETS[configuration.budget](model, density)
        masktorch.set_density(model, shares)


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], configuration: Configuration
) -> None:
    """Load a state, with the masks it has at the final density.

    What a state says about its masks (`_extra_state`) is left out: the estimator, the
    density and the phase are the run's.
    """
    tensors = {
        name: value
        for name, value in state.items()
        if not name.endswith("_extra_state")
    }
    model.load_state_dict(tensors)
    set_epoch_density(model, configuration, configuration.epochs)


def masks_of_largest_weights(
    model: nn.Module, configuration: Configuration
) -> dict[str, Tensor]:
    """Return masks that keep the largest weights of each kernel, or of all together."""
    density = scheduled_density(configuration, configuration.epochs)
    names: dict[Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters()
    }
    magnitudes = {names[weight]: weight.detach().abs() for weight in kernels(model)}
    if configuration.budget == "overall":
        return masktorch.keep_largest(magnitudes, density)
    return masktorch.keep_largest(
        magnitudes, dynamic.densities(model, configuration, density)
    )


def shuffled(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return random masks that keep as many entries of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(
            mask
        )
        for name, mask in masks.items()
    }
