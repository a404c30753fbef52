"""Fetch the canonical files, check their published MD5s and lay them out for `data`."""

import http.client
import shutil
import socket
import urllib.error
from pathlib import Path
from typing import Literal

from torch.hub import download_url_to_file
from tyro.conf import Positional

from benchmarks import BenchmarkError
from benchmarks.experiment.data import MD5, unzipped

BASE_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"


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
    raw = dataset == "mnist"
    folder = data_dir / ("MNIST/raw" if raw else "cifar-10-batches-py")
    folder.mkdir(parents=True, exist_ok=True)
    files = {folder / f"{name}{'.gz' if raw else ''}": md5 for name, md5 in MD5[dataset].items()}
    missing = [path for path in files if not path.is_file() or unzipped(path)[1] != files[path]]
    if raw:
        for path in missing:
            _fetch(base_url + path.name, path)
    elif missing:
        archive = data_dir / CIFAR10_ARCHIVE
        _fetch(base_url + archive.name, archive)
        shutil.unpack_archive(archive, data_dir, filter="data")
        archive.unlink()
    for path in missing:
        if not path.is_file() or (found := unzipped(path)[1]) != files[path]:
            path.unlink(missing_ok=True)
            raise BenchmarkError(
                f"{base_url}: expected {path.name} with MD5 {files[path]}, found {found}. Nothing "
                f"was kept; try again, or put {path.name} at {path} by hand."
            )
    return folder


def _fetch(url: str, target: Path) -> None:
    socket.setdefaulttimeout(30)  # seconds without a byte
    try:
        download_url_to_file(url, str(target))
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BenchmarkError(
            f"{url} could not be fetched: {error}. Try again, or put {target.name} at {target} by "
            f"hand."
        ) from error
