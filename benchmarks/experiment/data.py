"""Images as uint8 tensors, read from the canonical files of each data set."""

import gzip
import math
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration

CLASSES = 10  # in each of the three data sets
MNIST_FILES = tuple(
    f"{part}-{content}-ubyte"
    for part in ("train", "t10k")
    for content in ("images-idx3", "labels-idx1")
)
CIFAR10_FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class Split(NamedTuple):
    """Images (N, C, H, W) in uint8 and their classes (N,) in int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    name: str
    train: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device) -> "Dataset":
        return replace(self, train=self.train.to(device), test=self.test.to(device))


def load(name: str, data_dir: Path) -> Dataset:
    """Read a data set."""
    if name not in READERS:
        known = ", ".join(READERS)
        raise BenchmarkError(f"No data set is called {name!r}. Choose one of: {known}.")
    return Dataset(name, *READERS[name](data_dir))


def images(configuration: Configuration, data_dir: Path) -> Dataset:
    """What a run trains and is measured on: of its size, and as its test set, where it holds any
    out, the last training images."""
    data = load(configuration.dataset, data_dir)
    if configuration.image_size is not None:
        side = configuration.image_size
        if side > min(data.image_shape[1:]):
            raise BenchmarkError(
                f"--image-size must be at most {min(data.image_shape[1:])}, that of {data.name}; "
                f"found {side}."
            )
        data = replace(data, train=averaged(data.train, side), test=averaged(data.test, side))
    pixels, labels = data.train
    whole, held_out = len(labels), configuration.held_out or 0
    kept = whole - held_out if configuration.train_images is None else configuration.train_images
    if not 1 <= kept <= whole - held_out or configuration.held_out == 0 or held_out < 0:
        raise BenchmarkError(
            f"--train-images and --held-out must be at least 1 and together at most {whole}, the "
            f"size of {data.name}'s training set; found {configuration.train_images} and "
            f"{configuration.held_out}."
        )
    test = Split(pixels[whole - held_out :], labels[whole - held_out :]) if held_out else data.test
    return replace(data, train=Split(pixels[:kept], labels[:kept]), test=test)


def averaged(split: Split, side: int) -> Split:
    """Each image as the means of its `side` x `side` cells, rounded to whole bytes."""
    small = [
        adaptive_avg_pool2d(images.float(), side).round().byte()
        for images in torch.split(split.images, 10_000)
    ]
    return split._replace(images=torch.cat(small))


def read_digits(data_dir: Path) -> tuple[Split, Split]:
    """1,797 digits of 8x8 that come with scikit-learn; every fifth one is a test image."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    is_test = torch.arange(len(labels)) % 5 == 4
    return Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])


def read_mnist(data_dir: Path) -> tuple[Split, Split]:
    """The four IDX files, gzipped or not, in DIR, DIR/MNIST/raw or DIR/mnist."""
    folders = [data_dir, data_dir / "MNIST" / "raw", data_dir / "mnist"]
    files = _find("mnist", folders, MNIST_FILES, suffixes=("", ".gz"))
    train, test = (
        Split(_read_idx(images, (28, 28)).unsqueeze(1), _read_idx(labels, ()).long())
        for images, labels in (files[:2], files[2:])
    )
    _check_labels(train, files[1])
    _check_labels(test, files[3])
    return train, test


def read_cifar10(data_dir: Path) -> tuple[Split, Split]:
    """The python or the binary batches, in DIR or the folder their archive unpacks to."""
    folders = [data_dir / "cifar-10-batches-py", data_dir / "cifar-10-batches-bin", data_dir]
    files = _find("cifar10", folders, CIFAR10_FILES, suffixes=("", ".bin"))
    *train, test = (
        _read_cifar_binary(path) if path.suffix == ".bin" else _read_cifar_pickle(path)
        for path in files
    )
    return Split(*(torch.cat(parts) for parts in zip(*train, strict=True))), test


READERS: dict[str, Callable[[Path], tuple[Split, Split]]] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
}


def _find(
    dataset: str, folders: list[Path], names: tuple[str, ...], suffixes: tuple[str, ...]
) -> list[Path]:
    """The file of each name, all in the first folder that holds any of them."""
    todo = (
        f"Fetch the data with `python -m benchmarks download {dataset} --data-dir DIR`, or name "
        f"the folder that has it with --data-dir."
    )
    for folder in folders:
        found = {
            name: folder / f"{name}{suffix}"
            for suffix in suffixes
            for name in names
            if (folder / f"{name}{suffix}").is_file()
        }
        missing = [name for name in names if name not in found]
        if found and missing:
            raise FileNotFoundError(
                f"{folder} holds {dataset} only in part: {', '.join(missing)} not found. {todo}"
            )
        if found:
            return [found[name] for name in names]
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"No {dataset} files ({names[0]}, ...) in any of these folders: {looked}. {todo}"
    )


def _broken(path: Path, expected: str, found: str) -> BenchmarkError:
    return BenchmarkError(
        f"{path}: expected {expected}, found {found}. Delete the file and fetch it again with "
        f"`python -m benchmarks download`, or name another folder with --data-dir."
    )


def _read_idx(path: Path, item_shape: tuple[int, ...]) -> Tensor:
    """One IDX file of bytes: 0, 0, 8, number of axes; each axis as a big-endian int32; the data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _broken(path, "a whole gzip file", str(error)) from error
    axes = 1 + len(item_shape)
    magic, header_size = bytes([0, 0, 8, axes]), 4 + 4 * axes
    if content[:4] != magic:
        raise _broken(
            path, f"an IDX file that starts with {magic.hex()}", content[:4].hex() or "nothing"
        )
    if len(content) < header_size:
        raise _broken(path, f"a header of {header_size} bytes", f"{len(content)} bytes")
    count, *shape = (int(size) for size in np.frombuffer(content[4:header_size], ">i4"))
    if tuple(shape) != item_shape:
        raise _broken(path, f"items of shape {item_shape}", f"shape {tuple(shape)}")
    size, found = count * math.prod(item_shape), len(content) - header_size
    if found != size:
        raise _broken(path, f"{size} bytes of data, as its header says", f"{found} bytes")
    data = np.frombuffer(content, np.uint8, offset=header_size).reshape(count, *item_shape)
    return torch.from_numpy(data.copy())  # the copy is writable, as torch wants it


_RECORD = 1 + 3 * 32 * 32  # a label and an image: all red, then all green, then all blue


def _read_cifar_binary(path: Path) -> Split:
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % _RECORD:
        raise _broken(path, f"a whole number of {_RECORD}-byte records", f"{len(content)} bytes")
    records = torch.from_numpy(content).view(-1, _RECORD)
    batch = Split(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long())
    _check_labels(batch, path)
    return batch


class _ContainerUnpickler(pickle.Unpickler):
    """Builds plain containers and arrays; a pickle that names anything else is refused."""

    # `_reconstruct` makes the empty array that a pickled array is then filled into.
    allowed: ClassVar[dict[str, Any]] = {
        "numpy.core.multiarray _reconstruct": np.empty(0).__reduce__()[0],
        "numpy._core.multiarray _reconstruct": np.empty(0).__reduce__()[0],
        "numpy ndarray": np.ndarray,
        "numpy dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[f"{module} {name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"a reference to {module}.{name}") from None


def _read_cifar_pickle(path: Path) -> Split:
    expected = "a pickled dict with b'data' (N, 3072) in uint8 and b'labels' (N)"
    try:
        with path.open("rb") as file:
            batch = _ContainerUnpickler(file, encoding="bytes").load()
        data, labels = batch[b"data"], torch.tensor(batch[b"labels"])
        images = torch.from_numpy(data.reshape(-1, 3, 32, 32))
    except Exception as error:  # a broken pickle can raise anything
        raise _broken(path, expected, f"{type(error).__name__}: {error}") from error
    if images.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise _broken(path, expected, f"{images.dtype} images, {labels.dtype} labels")
    split = Split(images, labels)
    _check_labels(split, path)
    return split


def _check_labels(split: Split, path: Path) -> None:
    images, labels = split
    if len(images) != len(labels):
        raise _broken(path, f"a label for each of {len(images)} images", f"{len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < CLASSES:
        raise _broken(
            path, f"labels from 0 to {CLASSES - 1}", f"{int(labels.min())} to {int(labels.max())}"
        )
