"""Images: downloaded, read as published, augmented and scaled."""

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

MD5 = {  # of the published files, unzipped
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
# Folders below the data folder that may hold them; `download` writes to the first.
FOLDERS = {
    "mnist": ("MNIST/raw", "mnist", "."),
    "cifar10": ("cifar-10-batches-py", "."),
}
BASE_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
IDX_IMAGES_HEADER, IDX_LABELS_HEADER = 16, 8  # bytes
GZIP_MAGIC = b"\x1f\x8b"

MAX_ROTATION = 20.0  # degrees, either way
MAX_SHIFT = 0.2  # of the image's side, each way


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


def load_images(
    configuration: Configuration, data_dir: Path, device: torch.device | str = "cpu"
) -> Dataset:
    """Return what a run trains on and is measured on.

    With `held_out`, the last training images replace the test set.
    """
    whole = READERS[configuration.dataset](data_dir)
    train, test = _select(whole, configuration)
    return Dataset(
        _prepared(train, configuration.image_size, device),
        _prepared(test, configuration.image_size, device),
    )


def _select(data: Dataset, configuration: Configuration) -> Dataset:
    """Apply `train_images` and `held_out`."""
    available = len(data.train.labels)
    rest = available - (configuration.held_out or 0)
    kept = configuration.train_images
    if kept is None:
        kept = rest
    if not 1 <= kept <= rest <= available:
        raise BenchmarkError(
            "--train-images and --held-out must be at least 1 and together at most "
            f"{available}, the size of {configuration.dataset}'s training set; found "
            f"{configuration.train_images} and {configuration.held_out}."
        )
    images, labels = data.train
    train = Split(images[:kept], labels[:kept])
    if configuration.held_out:
        return Dataset(train, Split(images[rest:], labels[rest:]))
    return Dataset(train, data.test)


def _prepared(
    split: Split, image_size: int | None, device: torch.device | str
) -> Split:
    """Average the images to `image_size` pixels a side and move them to the device."""
    images = split.images
    if image_size is not None:
        images = adaptive_avg_pool2d(images.float(), image_size).round().byte()
    return Split(images.to(device), split.labels.to(device))


def scale(images: Tensor, faithful_to_mnist: bool = False) -> Tensor:
    """Scale bytes to [-1, 1], or to [-1, 509]: the blog's 2x - 1 for MNIST."""
    if faithful_to_mnist:
        return 2 * images.float() - 1
    return images.float() / 127.5 - 1


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Flip, rotate and shift each image at random: (N, C, H, W), bytes to floats."""
    uniform = torch.rand(4, len(images), generator=generator, device=images.device)
    flip = uniform[0] < 0.5
    turn, right, down = 2 * uniform[1:] - 1  # in [-1, 1)
    shift = MAX_SHIFT * torch.stack([right, down], dim=1)
    return transform(images, flip, MAX_ROTATION * turn, shift)


def transform(images: Tensor, flip: Tensor, degrees: Tensor, shift: Tensor) -> Tensor:
    """Apply one affine map per image in one bilinear resampling.

    Beyond the border the nearest pixel is repeated.

    Args:
        images: (N, C, H, W).
        flip: (N,), whether to mirror left to right first.
        degrees: (N,), the rotation about the centre.
        shift: (N, 2), x and y in sides of the image, last.
    """
    height, width = images.shape[-2:]
    size = torch.tensor([width, height], dtype=torch.float32, device=images.device)
    mirror = torch.stack([1 - 2 * flip.float(), torch.ones_like(degrees)], dim=1)
    centre = ((size - 1) / 2).expand(len(images), 2)
    matrix = get_affine_matrix2d(shift * size, centre, mirror, degrees)
    return warp_affine(
        images.float(), matrix[:, :2], (height, width), padding_mode="border"
    )


def read_digits(data_dir: Path) -> Dataset:
    """Read scikit-learn's 1,797 digits of 8x8 pixels; every fifth is a test image."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    bytes_ = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    images = torch.from_numpy(bytes_).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    is_test = torch.arange(len(labels)) % 5 == 4
    return Dataset(
        train=Split(images[~is_test], labels[~is_test]),
        test=Split(images[is_test], labels[is_test]),
    )


def read_mnist(data_dir: Path) -> Dataset:
    """Read the four IDX files."""
    train_images, train_labels, test_images, test_labels = read_published(
        "mnist", data_dir
    )
    return Dataset(
        train=Split(_idx_images(train_images), _idx_labels(train_labels)),
        test=Split(_idx_images(test_images), _idx_labels(test_labels)),
    )


def _idx_images(content: bytearray) -> Tensor:
    pixels = torch.frombuffer(content, dtype=torch.uint8, offset=IDX_IMAGES_HEADER)
    return pixels.view(-1, 1, 28, 28)


def _idx_labels(content: bytearray) -> Tensor:
    return torch.frombuffer(content, dtype=torch.uint8, offset=IDX_LABELS_HEADER).long()


def read_cifar10(data_dir: Path) -> Dataset:
    """Read the Python batches: five to train on, one to test on."""
    *train, test = map(_cifar10_batch, read_published("cifar10", data_dir))
    return Dataset(
        train=Split(
            torch.cat([batch.images for batch in train]),
            torch.cat([batch.labels for batch in train]),
        ),
        test=test,
    )


def _cifar10_batch(content: bytearray) -> Split:
    batch = pickle.loads(content, encoding="bytes")  # its MD5 is the published one
    images = torch.from_numpy(batch[b"data"]).view(-1, 3, 32, 32)
    return Split(images, torch.tensor(batch[b"labels"]))


READERS = {"digits": read_digits, "mnist": read_mnist, "cifar10": read_cifar10}


def read_published(dataset: str, data_dir: Path) -> list[bytearray]:
    """Read a data set's files, gzipped or not, and check that they are as published."""
    folder = _folder_with_any(dataset, data_dir)
    contents = []
    for name, md5 in MD5[dataset].items():
        path = _plain_or_gzipped(folder, name)
        content, found = _read_and_hash(path)
        if found != md5:
            raise BenchmarkError(
                f"{path}: expected the file that was published, with MD5 {md5}, found "
                f"{found}. Fetch it with `python -m benchmarks download {dataset} "
                f"--data-dir DIR`, or name the folder that has it with --data-dir."
            )
        contents.append(content)
    return contents


def _folder_with_any(dataset: str, data_dir: Path) -> Path:
    """Return the first folder with any of the files, else the one `download` fills."""
    folders = [data_dir / name for name in FOLDERS[dataset]]
    for folder in folders:
        if any(_plain_or_gzipped(folder, name).exists() for name in MD5[dataset]):
            return folder
    return folders[0]


def _plain_or_gzipped(folder: Path, name: str) -> Path:
    zipped = folder / f"{name}.gz"
    return zipped if zipped.exists() else folder / name


def _read_and_hash(path: Path) -> tuple[bytearray, str]:
    """Return the unzipped content and its MD5, or nothing and why it cannot be read."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP_MAGIC):
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        return bytearray(), str(error)
    return bytearray(content), hashlib.md5(content).hexdigest()


def download(
    dataset: Positional[Literal["mnist", "cifar10"]],
    data_dir: Path = Path("data"),
    base_url: str | None = None,
) -> Path:
    """Download MNIST (12 MB) or CIFAR-10 (170 MB) and check the published MD5s.

    Args:
        dataset: Which; files that are already there are not fetched again.
        data_dir: Folder of the data sets.
        base_url: A mirror, with its last slash. None: the canonical one.
    """
    base_url = base_url or BASE_URLS[dataset]
    folder = data_dir / FOLDERS[dataset][0]
    wanted = [
        name
        for name, md5 in MD5[dataset].items()
        if _read_and_hash(_plain_or_gzipped(folder, name))[1] != md5
    ]
    if dataset == "mnist":
        for name in wanted:
            _fetch(f"{base_url}{name}.gz", folder / f"{name}.gz")
    elif wanted:
        archive = data_dir / CIFAR10_ARCHIVE
        _fetch(base_url + archive.name, archive)
        _unpack(archive, [f"{folder.name}/{name}" for name in wanted])
        archive.unlink()
    read_published(dataset, data_dir)
    return folder


def _unpack(archive: Path, names: list[str]) -> None:
    """Unpack these members next to the archive; the MD5s will show any damage."""
    with suppress(tarfile.TarError, EOFError, zlib.error), tarfile.open(archive) as tar:
        members = [member for member in tar if member.name in names]
        tar.extractall(archive.parent, members, filter="data")


def _fetch(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_url_to_file(url, str(target))
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BenchmarkError(
            f"{url} could not be fetched: {error}. Try again, or put {target.name} at "
            f"{target} by hand."
        ) from error
