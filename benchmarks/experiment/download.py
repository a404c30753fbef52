"""Fetch the canonical archives, check their published MD5s and lay them out for `data`."""

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from benchmarks import BenchmarkError
from benchmarks.atomic import replacing

BASE_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_SILENCE_S = 30  # a server that sends nothing for so long is given up


def download(dataset: str, data_dir: Path, base_url: str | None = None) -> Path:
    """Make `dataset` whole under `data_dir` and return its folder; what is there is not fetched."""
    if dataset not in BASE_URLS:
        raise BenchmarkError(
            f"Only {' and '.join(BASE_URLS)} can be downloaded; found {dataset!r} (digits come "
            f"with scikit-learn)."
        )
    base_url = base_url or BASE_URLS[dataset]
    if dataset == "mnist":
        folder = data_dir / "MNIST" / "raw"
        for name, md5 in MNIST_MD5.items():
            _fetch(base_url + name, folder / name, md5)
        return folder
    folder = data_dir / "cifar-10-batches-py"
    if not all(_is_there(folder / name, md5) for name, md5 in CIFAR10_MD5.items()):
        archive = data_dir / CIFAR10_ARCHIVE
        _fetch(base_url + CIFAR10_ARCHIVE, archive, CIFAR10_ARCHIVE_MD5)
        _unpack(archive, folder)
        archive.unlink()
    return folder


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _is_there(path: Path, md5: str) -> bool:
    return path.is_file() and _md5(path) == md5


def _fetch(url: str, target: Path, md5: str) -> None:
    if _is_there(target, md5):
        return
    with replacing(target) as partial:
        try:
            with (
                urllib.request.urlopen(url, timeout=_SILENCE_S) as response,
                tqdm.wrapattr(response, "read", total=response.length, desc=target.name) as source,
                partial.open("wb") as file,
            ):
                shutil.copyfileobj(source, file)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise BenchmarkError(
                f"{url} could not be fetched: {error}. Try again, or put {target.name} at "
                f"{target} by hand."
            ) from error
        found = _md5(partial)
        if found != md5:
            raise BenchmarkError(
                f"{url}: expected MD5 {md5}, found {found} in {partial.stat().st_size} bytes. "
                f"Nothing was kept; try again, or put {target.name} at {target} by hand."
            )


def _unpack(archive: Path, folder: Path) -> None:
    """Write the known members, and nothing else that an archive may hold, into `folder`."""
    with tarfile.open(archive) as tar:
        for name in CIFAR10_MD5:
            try:
                source = tar.extractfile(f"{folder.name}/{name}")
            except KeyError:
                source = None
            if source is None:
                raise BenchmarkError(
                    f"{archive}: expected the file {folder.name}/{name} in it, found none. "
                    f"Delete the archive and try again."
                )
            with replacing(folder / name) as partial, partial.open("wb") as file:
                shutil.copyfileobj(source, file)
