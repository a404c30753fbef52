"""The arms: what each one trains, where it starts, and the order in which they run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

import masktorch
from benchmarks import BenchmarkError
from benchmarks.atomic import replacing
from benchmarks.configuration import ARMS, STARTS_FROM, Configuration
from benchmarks.data import CLASSES, Dataset, Split, load
from benchmarks.networks import conv, lenet_300_100, make_signed_constant, wide_resnet
from benchmarks.results import Result, command_line, environment, utilisation
from benchmarks.training import evaluate, progress_bar, train

ESTIMATORS: dict[str, masktorch.Estimator] = {
    "threshold": masktorch.Threshold(),
    "bernoulli": masktorch.Bernoulli(),
    "intermediate": masktorch.IntermediateSampling(),
}
OF_ONE_SIZE: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "conv-2": partial(conv, layers=2),
    "conv-4": partial(conv, layers=4),
    "conv-6": partial(conv, layers=6),
}


def run(
    options: Configuration, arms: Sequence[str], data_dir: Path, output: Path, device_name: str
) -> list[Path]:
    """Run `arms`, and the arms they start from, on one data set; return the result files.

    An arm that has its result is skipped, one that was stopped goes on after its last epoch.
    """
    torch.set_flush_denormal(True)  # subnormal numbers slow the CPU down many times
    device = _device(device_name)
    origin = environment(device)  # before training: the checkout may move on meanwhile
    needed = {*arms, *(STARTS_FROM[arm] for arm in arms if arm in STARTS_FROM)}
    configurations = [options.for_arm(arm) for arm in ARMS if arm in needed]
    data = images(options, data_dir).to(device)
    result_paths = []
    with progress_bar(
        total=len(configurations) * options.epochs, desc="whole run", unit="epoch"
    ) as whole_run:
        for configuration in configurations:
            result_path = output / f"{configuration.name}.json"
            result_paths.append(result_path)
            if result_path.exists():
                configuration.check_same(Result.read(result_path).configuration, result_path)
                whole_run.write(f"{configuration.arm}: skipped, {result_path} is there already")
                whole_run.total -= configuration.epochs
                whole_run.refresh()
                continue
            checkpoint = output / f"{configuration.name}.checkpoint.pt"
            model = build(configuration, data.image_shape)
            start(model, configuration, output)
            history, best_state = train(model, data, configuration, checkpoint, whole_run)
            model.load_state_dict(best_state)
            with replacing(_best_path(configuration, output)) as path:
                torch.save(best_state, path)
            if configuration.arm == "mask":
                masktorch.save_masks(model.cpu(), output / f"{configuration.name}.masks.npz")
            Result(
                configuration=configuration,
                estimator=repr(ESTIMATORS[configuration.estimator])
                if configuration.estimator
                else None,
                epochs=history,
                utilisation=utilisation(model) if configuration.estimator else [],
                environment=origin,
                command=command_line(),
            ).write(result_path)
            checkpoint.unlink()
    return result_paths


def images(configuration: Configuration, data_dir: Path) -> Dataset:
    """Its training images; as its test set, where it holds any out, the last training images."""
    if configuration.held_out is None:
        return load(configuration.dataset, data_dir, configuration.train_images)
    data = load(configuration.dataset, data_dir)
    first = len(data.train.labels) - configuration.held_out
    kept = first if configuration.train_images is None else configuration.train_images
    if configuration.held_out < 1 or not 1 <= kept <= first:
        raise BenchmarkError(
            f"--train-images and --held-out must be at least 1 and together at most "
            f"{len(data.train.labels)}, the size of {data.name}'s training set; found "
            f"{configuration.train_images} and {configuration.held_out}."
        )
    pixels, labels = data.train
    train, test = Split(pixels[:kept], labels[:kept]), Split(pixels[first:], labels[first:])
    return replace(data, train=train, test=test)


def rebuild(configuration: Configuration, masks: Path, data_dir: Path) -> float:
    """The test accuracy of a network made from its seed and a mask file alone.

    The file has a fingerprint of the weights, so it goes onto the same ones, bit for bit, or not at
    all. Where batch norm was trained beside the masks they do not make the network.
    """
    data = load(configuration.dataset, data_dir)
    model = build(configuration.for_arm("mask"), data.image_shape)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise BenchmarkError(
            f"A seed and masks make a network that has nothing else to train; found batch norm in "
            f"{configuration.network_name}. Use --network lenet-300-100, or the .best.pt file."
        )
    masktorch.load_masks(model, masks)
    return evaluate(model, data.test, configuration)[1]


def build(configuration: Configuration, image_shape: tuple[int, int, int]) -> nn.Module:
    """The network with its random initialisation W0, the same for every arm of a seed."""
    torch.manual_seed(configuration.seed)
    depth, width = configuration.depth, configuration.width
    if depth is None or width is None:
        network = OF_ONE_SIZE[configuration.network](image_shape, CLASSES)
    else:
        network = wide_resnet(image_shape, CLASSES, depth, width)
    if configuration.weights == "signed-constant":
        make_signed_constant(network)
    return network


def start(model: nn.Module, configuration: Configuration, output: Path) -> None:
    """Bring `model`, at W0, to where its arm starts and let train only what the arm trains."""
    if configuration.estimator is not None:
        estimator = ESTIMATORS[configuration.estimator]
        rescale = bool(configuration.rescale)
        masktorch.wrap(model, estimator, bias=True, init=configuration.init, rescale=rescale)
    if configuration.arm not in STARTS_FROM:
        return
    source = _best_path(configuration.for_arm(STARTS_FROM[configuration.arm]), output)
    if not source.exists():
        raise FileNotFoundError(
            f"{source} is missing: the arm {configuration.arm} starts from it. Delete "
            f"{source.name.removesuffix('.best.pt')}.json beside it and run again to train it anew."
        )
    model.load_state_dict(torch.load(source, map_location="cpu", weights_only=True))
    if configuration.arm == "mix":
        masktorch.freeze_mask(model)
        masktorch.freeze_weights(model, False)


def _best_path(configuration: Configuration, output: Path) -> Path:
    return output / f"{configuration.name}.best.pt"


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise BenchmarkError(
            f"--device must be one that this torch can compute on (cpu, cuda, cuda:1, ...); found "
            f"{name!r}: {str(error).splitlines()[0]}"
        ) from error
