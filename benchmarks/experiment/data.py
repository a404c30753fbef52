"""Images: fetched and read as they were published, then one random affine map each, and scaled."""

import gzip
import hashlib
import http.client
import pickle
import tarfile
import urllib.error
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from kornia.geometry.transform import get_affine_matrix2d, warp_affine
from torch import Generator, Tensor
from torch.hub import download_url_to_file
from torch.nn.functional import adaptive_avg_pool2d
from tyro.conf import Positional

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
MAX_ROTATION = 20.0  # degrees, either way
MAX_SHIFT = 0.2  # of the image's side, each way
# Where they are in the folder of the data sets; `download` puts them in the first.
FOLDERS = {"mnist": ("MNIST/raw", "mnist", "."), "cifar10": ("cifar-10-batches-py", ".")}

BASE_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"


class Split(NamedTuple):
    images: Tensor  # (N, C, H, W), uint8
    labels: Tensor  # (N,), int64


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
    """What a run trains and is measured on: as its test set, where it holds any out, the last
    training images; each image as the means of its `image_size` x `image_size` cells."""
    train, test = READERS[configuration.dataset](data_dir)
    whole, side = len(train.labels), configuration.image_size
    rest = whole - (configuration.held_out or 0)
    kept = rest if configuration.train_images is None else configuration.train_images
    if not 1 <= kept <= rest <= whole:
        raise BenchmarkError(
            f"--train-images and --held-out must be at least 1 and together at most {whole}, the "
            f"size of {configuration.dataset}'s training set; found {configuration.train_images} "
            f"and {configuration.held_out}."
        )
    if configuration.held_out:
        test = Split(train.images[rest:], train.labels[rest:])
    splits = []
    for images, labels in (Split(train.images[:kept], train.labels[:kept]), test):
        if side is not None:
            images = adaptive_avg_pool2d(images.float(), side).round().byte()
        splits.append(Split(images.to(device), labels.to(device)))
    return Dataset(*splits)


def scale(images: Tensor, faithful_to_mnist: bool = False) -> Tensor:
    """Bytes to [-1, 1]; or to [-1, 509], the 2x - 1 that the blog's code applies to MNIST."""
    return 2 * images.float() - 1 if faithful_to_mnist else images.float() / 127.5 - 1


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Flip, rotate and shift each image (N, C, H, W) by chance; bytes in, floats in 0..255 out."""
    u = torch.rand(4, len(images), generator=generator, device=images.device)
    flip, turn, right, down = u[0] < 0.5, *(2 * u[1:] - 1)
    shift = MAX_SHIFT * torch.stack([right, down], dim=1)
    return transform(images, flip, MAX_ROTATION * turn, shift)


def transform(images: Tensor, flip: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Flip left to right where `flip` (N,), turn about the centre by `degrees` (N,), then move by
    `shift` (N, 2: x, y, in sides of the image): one bilinear resampling with the nearest pixel
    filling in at the border."""
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=images.device)
    mirror = torch.stack([1 - 2 * flip.float(), torch.ones_like(degrees)], dim=1)
    centre = ((size - 1) / 2).expand(len(images), 2)
    matrix = get_affine_matrix2d(shift * size, centre, mirror, degrees)
    return warp_affine(images.float(), matrix[:, :2], (height, width), padding_mode="border")


def read_digits(data_dir: Path) -> Dataset:
    """1,797 digits of 8x8 that come with scikit-learn; every fifth one is a test image."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    is_test = torch.arange(len(labels)) % 5 == 4
    return Dataset(*(Split(images[which], labels[which]) for which in (~is_test, is_test)))


def read_mnist(data_dir: Path) -> Dataset:
    """The four IDX files."""
    contents = published("mnist", data_dir)
    images = (torch.frombuffer(c, dtype=torch.uint8, offset=16) for c in contents[::2])
    labels = (torch.frombuffer(c, dtype=torch.uint8, offset=8).long() for c in contents[1::2])
    return Dataset(*map(Split, (i.view(-1, 1, 28, 28) for i in images), labels))


def read_cifar10(data_dir: Path) -> Dataset:
    """The python batches."""
    batches = [pickle.loads(c, encoding="bytes") for c in published("cifar10", data_dir)]
    *train, test = (
        Split(torch.from_numpy(b[b"data"]).view(-1, 3, 32, 32), torch.tensor(b[b"labels"]))
        for b in batches
    )
    return Dataset(Split(*map(torch.cat, zip(*train, strict=True))), test)


READERS = {"digits": read_digits, "mnist": read_mnist, "cifar10": read_cifar10}


def published(dataset: str, data_dir: Path) -> list[bytearray]:
    """The content of each file, gzipped or not, all from the first folder that has any."""
    folders = [data_dir / name for name in FOLDERS[dataset]]
    have = (folder for folder in folders if any(place(folder, n).exists() for n in MD5[dataset]))
    folder = next(have, folders[0])
    contents = []
    for name, md5 in MD5[dataset].items():
        content, found = unzipped(place(folder, name))
        if found != md5:
            raise BenchmarkError(
                f"{place(folder, name)}: expected the file that was published, with MD5 {md5}, "
                f"found {found}. Fetch it with `python -m benchmarks download {dataset} "
                f"--data-dir DIR`, or name the folder that has it with --data-dir."
            )
        contents.append(content)
    return contents


def place(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    return zipped if zipped.exists() else folder / name


def unzipped(path: Path) -> tuple[bytearray, str]:
    """What a file holds, and its MD5 or what is wrong with it."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (EOFError, OSError, zlib.error) as error:
        return bytearray(), str(error)
    return bytearray(content), hashlib.md5(content).hexdigest()


def download(
    dataset: Positional[Literal["mnist", "cifar10"]],
    data_dir: Path = Path("data"),
    base_url: str | None = None,
) -> Path:
    """Fetch MNIST (12 MB) or CIFAR-10 (170 MB) and check the published MD5s.

    Args:
        dataset: Which; what of it is there already is not fetched.
        data_dir: Folder of the data sets.
        base_url: A mirror, with its last slash. None: the canonical one.
    """
    base_url = base_url or BASE_URLS[dataset]
    folder = data_dir / FOLDERS[dataset][0]
    wanted = [name for name, md5 in MD5[dataset].items() if unzipped(place(folder, name))[1] != md5]
    if dataset == "mnist":
        for name in wanted:
            _fetch(f"{base_url}{name}.gz", folder / f"{name}.gz")
    elif wanted:
        archive = data_dir / CIFAR10_ARCHIVE
        _fetch(base_url + archive.name, archive)
        names = [f"{folder.name}/{name}" for name in wanted]
        with suppress(tarfile.TarError, EOFError, zlib.error), tarfile.open(archive) as tar:
            tar.extractall(data_dir, [m for m in tar if m.name in names], filter="data")
        archive.unlink()
    published(dataset, data_dir)
    return folder


def _fetch(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(url, str(target))
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BenchmarkError(
            f"{url} could not be fetched: {error}. Try again, or put {target.name} at {target} by "
            f"hand."
        ) from error
