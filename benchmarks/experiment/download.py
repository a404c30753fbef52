"""Fetch the canonical files, check their published MD5s and lay them out for `data`."""

import http.client
import tarfile
import urllib.error
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Literal

from torch.hub import download_url_to_file
from tyro.conf import Positional

from benchmarks import BenchmarkError
from benchmarks.experiment.data import FOLDERS, MD5, place, published, unzipped

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
            tar.extractall(
                data_dir, [member for member in tar if member.name in names], filter="data"
            )
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
