"""The arms: what each one trains, where it starts, and the order in which they run."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

import masktorch
from benchmarks import Place
from benchmarks.experiment import masks, parallel
from benchmarks.experiment.configuration import ARMS, MASKED, SCORED, STARTS_FROM, Configuration
from benchmarks.experiment.data import Dataset, images
from benchmarks.experiment.networks import build
from benchmarks.experiment.results import Result, find, utilisation
from benchmarks.experiment.training import progress_bar, recalibrated, train
from benchmarks.files import cpuinfo, environment, replacing


def run(options: Configuration, arms: Sequence[str], place: Place, command: str) -> list[Path]:
    """Run `arms`, and those they start from, where they have no result; return the result files."""
    needed = {*arms, *(STARTS_FROM[arm] for arm in arms if arm in STARTS_FROM)}
    configurations = [options.for_arm(arm) for arm in ARMS if arm in needed]
    for configuration in configurations:
        configuration.check()
    torch.set_flush_denormal(True)  # subnormal numbers slow the CPU down many times
    torch.backends.cudnn.benchmark = True  # batches have one shape
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.empty(0, device=auto if place.device == "auto" else place.device).device
    flags = cpuinfo() if device.type == "cpu" else ""
    if options.precision == "bfloat16" and flags and "bf16" not in flags:
        warnings.warn("This processor emulates bfloat16: slower than float32.", stacklevel=2)
    # before training: the checkout may move on meanwhile
    origin = environment(device) | {"processes": parallel.size()}
    data = images(options, place.data_dir, device)
    found = {configuration: find(place.output, configuration) for configuration in configurations}
    epochs = sum(configuration.epochs for configuration, path in found.items() if path is None)
    with progress_bar(total=epochs, desc="whole run", unit="epoch") as whole_run:
        for configuration, path in found.items():
            if path is not None:
                whole_run.write(f"{configuration.arm}: skipped, {path} is there already")
                continue
            found[configuration] = path = place.output / f"{configuration.name}.json"
            numbers = _train(configuration, data, path, whole_run)
            if parallel.rank() == 0:
                Result(configuration, **numbers, environment=origin, command=command).write(path)
                path.with_suffix(".checkpoint.pt").unlink()
            parallel.add_up(torch.zeros(1, device=device))  # all wait for the first to write
    return [path for path in found.values() if path is not None]


def _train(configuration: Configuration, data: Dataset, path: Path, bar: Any) -> dict[str, Any]:
    """What comes out. The best epoch's state and the mask arm's masks are written beside `path`."""
    model = build(configuration, data.image_shape)
    start(model, configuration, path.parent)
    history, best_state = train(model, data, configuration, path.with_suffix(".checkpoint.pt"), bar)
    again = {}
    for epoch in ("last", "best"):
        learns = configuration.arm in SCORED  # averages of the mask that is evaluated, not of draws
        with masktorch.using(model, masktorch.masks(model)) if learns else nullcontext():
            again[epoch] = recalibrated(model, data, configuration)
        masks.load(model, best_state, configuration)
    if parallel.rank() == 0:
        with replacing(path.with_suffix(".best.pt")) as partial:
            torch.save(best_state, partial)
        if configuration.arm == "mask":
            masktorch.save_masks(model.cpu(), path.with_suffix(".masks.npz"))
    estimator = masks.estimator(configuration)
    return {
        "estimator": None if estimator is None else repr(estimator),
        "epochs": history,
        "utilisation": utilisation(model) if configuration.arm in MASKED else [],
        "recalibrated": None if again["last"] is None else again,
    }


def start(model: nn.Module, configuration: Configuration, output: Path) -> None:
    """Bring `model`, at W0, to where its arm starts and let train only what the arm trains."""
    if configuration.arm in SCORED:
        masks.wrap(model, configuration)
    if (first := configuration.start) is None:
        return
    path = output / f"{first.name}.best.pt"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the arm {configuration.arm} starts from it. Delete "
            f"{first.name}.json beside it and run again to train it anew."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if configuration.arm in ("mix", "weights-then-weights"):
        masks.load(model, state, configuration)
        if configuration.arm == "mix":
            masktorch.freeze_mask(model)
    else:  # at W0, under a mask that is given
        donor, learned = copy.deepcopy(model), first.arm in SCORED
        if learned:
            masks.wrap(donor, first)
        masks.load(donor, state, first)
        given = masktorch.masks(donor) if learned else masks.of_largest(donor, configuration)
        if configuration.arm.startswith("random-"):
            given = masks.shuffled(given, configuration.seed)
        masktorch.set_masks(model, given)
    if configuration.arm in MASKED:
        masktorch.freeze_weights(model, False)
