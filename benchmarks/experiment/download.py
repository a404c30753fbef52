"""Fetch the canonical files, check their published MD5s and lay them out for `data`."""

import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tqdm import tqdm  # type: ignore[import-untyped]
from tyro.conf import Positional

from benchmarks import BenchmarkError
from benchmarks.atomic import replacing
from benchmarks.experiment.data import MD5, unzipped

BASE_URLS = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "cifar10": "https://www.cs.toronto.edu/~kriz/",
}
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
SILENCE_S = 30  # a server that sends nothing for so long is given up


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
        with suppress(tarfile.TarError, EOFError, zlib.error), tarfile.open(archive) as tar:
            for member in tar:
                path = data_dir / member.name
                if path in missing and (content := tar.extractfile(member)):
                    path.write_bytes(content.read())
        archive.unlink()
    found = {path: unzipped(path)[1] if path.is_file() else "none" for path in missing}
    for path in (wrong := [path for path in missing if found[path] != files[path]]):
        path.unlink(missing_ok=True)
    for path in wrong:
        raise BenchmarkError(
            f"{base_url}: expected {path.name} with MD5 {files[path]}, found {found[path]}. "
            f"Nothing was kept; try again, or put {path.name} at {path} by hand."
        )
    return folder


def _fetch(url: str, target: Path) -> None:
    try:
        with (
            urllib.request.urlopen(url, timeout=SILENCE_S) as response,
            tqdm.wrapattr(response, "read", total=response.length, desc=target.name) as source,
            replacing(target) as partial,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise BenchmarkError(
            f"{url} could not be fetched: {error}. Try again, or put {target.name} at {target} by "
            f"hand."
        ) from error
