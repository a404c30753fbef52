"""The masks of a run: which estimator, how dense and when, where scores start."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import masktorch
from benchmarks.experiment.configuration import SCORED, Configuration
from benchmarks.experiment.networks import kernels

FALLING = 0.75  # of the epochs; in the rest a scheduled density is what it was to become
METHODS: dict[str, Callable[..., masktorch.Estimator]] = {
    "threshold": masktorch.Threshold,
    "bernoulli": masktorch.Bernoulli,
    "intermediate": masktorch.IntermediateSampling,
    "topk": masktorch.TopK,
    "nofm": masktorch.NOfM,
    "piggyback": masktorch.Piggyback,
    "hard-concrete": masktorch.HardConcrete,
    "concrete": masktorch.Concrete,
}


def estimator(configuration: Configuration) -> masktorch.Estimator | None:
    """With its settings, of arms that have one."""
    if configuration.estimator is None:
        return None
    density = {} if configuration.density is None else {"density": configuration.density}
    return METHODS[configuration.estimator](**density)


def wrap(model: nn.Module, configuration: Configuration) -> None:
    """Masks on every kernel and bias, as the blog has it; n of m alone has no biases to divide."""
    masktorch.wrap(
        model,
        estimator(configuration) or masktorch.Threshold(),
        bias=configuration.estimator != "nofm",
        init=torch.randn_like if configuration.init == "normal" else configuration.init,
        rescale=configuration.rescale,
    )


def epochs_of_fall(configuration: Configuration) -> int:
    """How many epochs a density takes to fall; the epochs after them have the one that counts."""
    if configuration.schedule_density == "none" or configuration.arm != "mask":
        return 0
    return min(math.ceil(FALLING * configuration.epochs), configuration.epochs - 1)


def scheduled_density(configuration: Configuration, epoch: int) -> float:
    """Of the first epoch 1, after the fall the configuration's."""
    end = masktorch.TopK().density if configuration.density is None else configuration.density
    if (fall := epochs_of_fall(configuration)) == 0:
        return end
    schedule = getattr(masktorch.budget, configuration.schedule_density)
    return float(schedule(1.0, end, min(1.0, (epoch - 1) / fall)))


def cut(model: nn.Module, configuration: Configuration, epoch: int) -> None:
    """Give the masks their densities of an epoch, which follow from it and from the scores."""
    if configuration.estimator != "topk" or configuration.arm not in SCORED:
        return
    density = scheduled_density(configuration, epoch)
    if configuration.budget != "none":
        density = getattr(masktorch.budget, configuration.budget)(model, density)
    masktorch.set_density(model, density)


def load(model: nn.Module, state: Mapping[str, Tensor], configuration: Configuration) -> None:
    """A state of the last epochs, with the masks that it had; what it is, the run knows better."""
    model.load_state_dict({k: v for k, v in state.items() if not k.endswith("_extra_state")})
    cut(model, configuration, configuration.epochs)


def of_largest(model: nn.Module, configuration: Configuration) -> dict[str, Tensor]:
    """The masks that keep the largest weights of the kernels, in each or in all together."""
    density = scheduled_density(configuration, configuration.epochs)
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    sizes = {names[weight]: weight.detach().abs() for weight in kernels(model)}
    shares = density if configuration.budget == "overall" else dict.fromkeys(sizes, density)
    return masktorch.keep_largest(sizes, shares)


def shuffled(found: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random masks that keep as much of each tensor."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in found.items()
    }
