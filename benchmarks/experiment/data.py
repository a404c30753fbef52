"""Images as uint8 tensors, read from the files of each data set as they were published."""

import gzip
import hashlib
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration

MD5 = {  # of the files as they were published, unzipped
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "cifar10": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
}


class Split(NamedTuple):
    """Images (N, C, H, W) in uint8 and their classes (N,) in int64."""

    images: Tensor
    labels: Tensor


class Dataset(NamedTuple):
    train: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def images(
    configuration: Configuration, data_dir: Path, device: torch.device | str = "cpu"
) -> Dataset:
    """What a run trains and is measured on: of its size, and as its test set, where it holds any
    out, the last training images."""
    name, side = configuration.dataset, configuration.image_size
    data = READERS[name](data_dir)
    if side is not None and side > (most := min(data.image_shape[1:])):
        raise BenchmarkError(f"--image-size must be at most {most}, that of {name}; found {side}.")
    train, test = data.train, data.test
    whole, held_out = len(train.labels), configuration.held_out or 0
    kept = whole - held_out if configuration.train_images is None else configuration.train_images
    if not 1 <= kept <= whole - held_out or configuration.held_out == 0 or held_out < 0:
        raise BenchmarkError(
            f"--train-images and --held-out must be at least 1 and together at most {whole}, the "
            f"size of {name}'s training set; found {configuration.train_images} and "
            f"{configuration.held_out}."
        )
    if held_out:
        test = Split(*(part[whole - held_out :] for part in train))
    train = Split(*(part[:kept] for part in train))
    return Dataset(*(_sized(split, side, device) for split in (train, test)))


def _sized(split: Split, side: int | None, device: torch.device | str) -> Split:
    """Each image as the means of its `side` x `side` cells, rounded to whole bytes."""
    images = split.images
    if side is not None:
        parts = torch.split(images, 10_000)
        means = [adaptive_avg_pool2d(part.float(), side).round().byte() for part in parts]
        images = torch.cat(means)
    return Split(images.to(device), split.labels.to(device))


def read_digits(data_dir: Path) -> Dataset:
    """1,797 digits of 8x8 that come with scikit-learn; every fifth one is a test image."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    is_test = torch.arange(len(labels)) % 5 == 4
    return Dataset(
        Split(images[~is_test], labels[~is_test]), Split(images[is_test], labels[is_test])
    )


def read_mnist(data_dir: Path) -> Dataset:
    """The four IDX files, gzipped or not, in DIR, DIR/MNIST/raw or DIR/mnist."""
    contents = _read("mnist", data_dir, data_dir / "MNIST" / "raw", data_dir / "mnist")
    images = (torch.frombuffer(c, dtype=torch.uint8, offset=16) for c in contents[::2])
    labels = (torch.frombuffer(c, dtype=torch.uint8, offset=8).long() for c in contents[1::2])
    return Dataset(*map(Split, (i.view(-1, 1, 28, 28) for i in images), labels))


def read_cifar10(data_dir: Path) -> Dataset:
    """The python batches, in DIR or the folder their archive unpacks to."""
    contents = _read("cifar10", data_dir / "cifar-10-batches-py", data_dir)
    batches = (pickle.loads(content, encoding="bytes") for content in contents)
    *train, test = (
        Split(torch.from_numpy(b[b"data"]).view(-1, 3, 32, 32), torch.tensor(b[b"labels"]))
        for b in batches
    )
    return Dataset(Split(*map(torch.cat, zip(*train, strict=True))), test)


READERS: dict[str, Callable[[Path], Dataset]] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
}


def _read(dataset: str, *folders: Path) -> list[bytearray]:
    """The published content of each file, all from the first folder that holds any of them."""
    todo = (
        f"etch the data with `python -m benchmarks download {dataset} --data-dir DIR`, or name the "
        f"folder that has it with --data-dir."
    )
    for folder in folders:
        places = ((name, folder / f"{name}{end}") for name in MD5[dataset] for end in ("", ".gz"))
        if paths := {name: path for name, path in places if path.is_file()}:
            break
    if missing := [name for name in MD5[dataset] if name not in paths]:
        raise FileNotFoundError(
            f"The {dataset} files {', '.join(missing)} were not found; looked in "
            f"{', '.join(map(str, folders))}. F{todo}"
        )
    contents = []
    for name, path in paths.items():
        content, md5 = unzipped(path)
        if md5 != MD5[dataset][name]:
            raise BenchmarkError(
                f"{path}: expected the file that was published, with MD5 {MD5[dataset][name]}, "
                f"found {md5}. Delete it and f{todo}"
            )
        contents.append(content)
    return contents


def unzipped(path: Path) -> tuple[bytearray, str]:
    """What a file holds, and its MD5 or, of a damaged archive, what is wrong with it."""
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, OSError, zlib.error) as error:
        return bytearray(), str(error)
    return bytearray(content), hashlib.md5(content).hexdigest()
