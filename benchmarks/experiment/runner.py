"""Run arms: build, start, train, measure, and write one result per run."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import masktorch
from benchmarks import CompileMode, Location
from benchmarks.experiment import dynamic, masks, parallel
from benchmarks.experiment.arms import ARMS, MaskOrigin
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import Dataset, load_images
from benchmarks.experiment.networks import build
from benchmarks.experiment.results import (
    Result,
    RunFiles,
    append_result,
    read_results,
    results_file,
    utilisation,
)
from benchmarks.experiment.training import (
    State,
    progress_bar,
    recalibrated_accuracy,
    train,
)
from benchmarks.files import cpuinfo, environment, replacing


def run(
    options: Configuration, arms: Sequence[str], location: Location, command: str
) -> list[Result]:
    """Run `arms` and the arms they start from; those with a result are skipped.

    Returns their results in the order of `ARMS`.
    """
    configurations = _in_order(options, arms)
    for configuration in configurations:
        configuration.validate()
    device = _prepare_device(location.device)
    _warn_if_bfloat16_is_emulated(options, device)
    # Before training: meanwhile the checkout may change.
    origin = environment(device) | {"processes": parallel.size()}
    data = load_images(options, location.data_dir, device)

    done = {result.configuration: result for result in read_results(location.output)}
    missing = [c for c in configurations if c not in done]
    epochs = sum(configuration.epochs for configuration in missing)
    with progress_bar(total=epochs, desc="whole run", unit="epoch") as bar:
        for configuration in configurations:
            if configuration in done:
                path = results_file(location.output)
                bar.write(f"{configuration.arm}: skipped, its result is in {path}")
                continue
            files = RunFiles(location.output, configuration)
            numbers = _train_and_measure(
                configuration, data, files, location.compile, bar
            )
            result = Result(
                configuration, **numbers, environment=origin, command=command
            )
            if parallel.rank() == 0:
                append_result(result, location.output)
                files.checkpoint.unlink()
            parallel.wait_for_all(device)
            done[configuration] = result
    return [done[configuration] for configuration in configurations]


def _in_order(options: Configuration, arms: Sequence[str]) -> list[Configuration]:
    """Return the runs of these arms and of those they start from, in order."""
    starts = {ARMS[arm].starts_from for arm in arms}
    return [options.for_arm(arm) for arm in ARMS if arm in arms or arm in starts]


def _prepare_device(name: str) -> torch.device:
    """Resolve `auto`, fail if the device does not exist, and set how it computes."""
    torch.set_flush_denormal(True)  # subnormal numbers slow a CPU down many times
    torch.backends.cudnn.benchmark = True  # batches have one shape
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(0, device=name).device


def _warn_if_bfloat16_is_emulated(options: Configuration, device: torch.device) -> None:
    if options.precision != "bfloat16" or device.type != "cpu":
        return
    description = cpuinfo()
    if description and "bf16" not in description:
        warnings.warn(
            "This processor emulates bfloat16: slower than float32.", stacklevel=3
        )


def _train_and_measure(
    configuration: Configuration,
    data: Dataset,
    files: RunFiles,
    compile_mode: CompileMode | None,
    bar: Any,
) -> dict[str, Any]:
    """Train one arm; return the numbers of its result and write its states."""
    model = build(configuration, data.image_shape)
    prepare_model(model, configuration, files.folder)
    history, best_state = train(
        model, data, configuration, files.checkpoint, bar, compile_mode
    )
    recalibrated = {}
    for epoch in ("last", "best"):  # the model is at its last epoch, then at its best
        with _evaluated_mask(model, configuration):
            recalibrated[epoch] = recalibrated_accuracy(model, data, configuration)
        masks.load_state(model, best_state, configuration)
    if parallel.rank() == 0:
        _write_states(model, best_state, files)
    estimator = masks.make_estimator(configuration)
    has_batch_norm = recalibrated["last"] is not None
    has_mask = configuration.arm_definition.has_mask
    return {
        "estimator": None if estimator is None else repr(estimator),
        "epochs": history,
        "utilisation": utilisation(model) if has_mask else [],
        "recalibrated": recalibrated if has_batch_norm else None,
    }


def _evaluated_mask(
    model: nn.Module, configuration: Configuration
) -> AbstractContextManager[Any]:
    """Use the deterministic mask even in training mode."""
    if not configuration.arm_definition.has_scores:
        return nullcontext()
    return masktorch.using(model, masktorch.masks(model))


def _write_states(model: nn.Module, best_state: State, files: RunFiles) -> None:
    with replacing(files.best_state) as temporary:
        torch.save(best_state, temporary)
    if files.configuration.arm_definition.trains_scores:
        masktorch.save_masks(model.cpu(), files.masks)


def prepare_model(model: nn.Module, configuration: Configuration, folder: Path) -> None:
    """Bring `model`, which has initial weights, to where its arm starts.

    Afterwards exactly what the arm trains requires gradients.
    """
    arm = configuration.arm_definition
    if arm.has_scores:
        masks.wrap(model, configuration)
    if arm.mask is MaskOrigin.RANDOM:
        masktorch.set_masks(model, dynamic.first_masks(model, configuration))
    first = configuration.start
    if first is None:
        return
    state = _read_best_state(first, folder, needed_by=configuration.arm)
    if arm.continues_training:
        masks.load_state(model, state, configuration)
    else:
        masktorch.set_masks(model, _fixed_masks(model, configuration, first, state))
    if arm.mask is MaskOrigin.FROZEN_SCORES:
        masktorch.freeze_mask(model)
    if arm.has_mask:
        masktorch.freeze_weights(model, False)


def _read_best_state(first: Configuration, folder: Path, needed_by: str) -> State:
    path = RunFiles(folder, first).best_state
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the arm {needed_by} starts from it. Copy it there, or "
            f"run with another --output folder, which trains the arm {first.arm} again."
        )
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _fixed_masks(
    model: nn.Module, configuration: Configuration, first: Configuration, state: State
) -> dict[str, Tensor]:
    """Return the masks that follow from the best state of the first arm."""
    arm = configuration.arm_definition
    donor = copy.deepcopy(model)
    if first.arm_definition.has_scores:
        masks.wrap(donor, first)
    masks.load_state(donor, state, first)
    if arm.mask is MaskOrigin.LARGEST_WEIGHTS:
        found = masks.masks_of_largest_weights(donor, configuration)
    else:
        found = masktorch.masks(donor)
    return masks.shuffled(found, configuration.seed) if arm.shuffles_mask else found
