"""Files, archives and addresses at the edge of what the readers take."""

import ast
import gc
import io
import os
import pickle
import re
import socketserver
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import BenchmarkError
from benchmarks.experiment import data as download
from benchmarks.experiment.data import MD5, READERS, transform

ROOT = Path(benchmarks.__file__).parents[1]


class Python2Pickler(pickle._Pickler):
    """What the canonical batches hold: protocol 2 with byte strings, as Python 2 wrote them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes

    @classmethod
    def dumps(cls, value):
        file = io.BytesIO()
        cls(file, 2).dump(value)
        return file.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")


DATA = np.random.default_rng(0).integers(0, 256, (3, 3072), np.uint8)
GOOD = {
    b"batch_label": b"one of 5",
    b"labels": [3, 0, 9],
    b"data": DATA,
    b"filenames": [b"a"] * 3,
}


def load(name, folder):
    return READERS[name](folder)


def test_python2_pickles(tmp_path, publish):
    contents = dict.fromkeys(MD5["cifar10"], Python2Pickler.dumps(GOOD))
    publish("cifar10", contents)
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert b"numpy.core.multiarray" in content
    assert b"_codecs" not in content
    data = load("cifar10", tmp_path)
    assert data.train.images.shape == (15, 3, 32, 32)
    assert data.test.labels.tolist() == [3, 0, 9]
    # Red comes first, each channel row by row.
    assert data.test.images[1, :, 2, 5].tolist() == [
        DATA[1, c * 1024 + 2 * 32 + 5] for c in range(3)
    ]
    data.train.images[0] = 0  # writable


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    for folder in (os.environ.get("MASKTORCH_DATA"), ROOT / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    unpack = ROOT.parent / "shared" / "data" / "unpack"
    if not unpack.is_file():
        pytest.skip("no real data: set MASKTORCH_DATA to its folder")
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([unpack, folder], check=True, capture_output=True)
    return folder


MNIST_TRAIN = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
MNIST_TEST = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]

# (data set, shape of train, of test, their label counts, mean pixel of train by channel, of test)
REAL = [
    ("mnist", (60_000, 1, 28, 28), (10_000, 1, 28, 28), MNIST_TRAIN, MNIST_TEST, [0.1307],
     [0.1325]),
    ("cifar10", (50_000, 3, 32, 32), (10_000, 3, 32, 32), [5000] * 10, [1000] * 10,
     [0.4914, 0.4822, 0.4465], [0.4942, 0.4851, 0.4504]),
]  # fmt: skip


@pytest.mark.realdata
@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0])
def test_real_data(case, real):
    name, train, test, train_counts, test_counts, train_mean, test_mean = case
    try:
        data = load(name, real)
    except BenchmarkError as error:
        pytest.skip(str(error))
    assert data.train.images.shape == train
    assert data.test.images.shape == test
    assert data.train.labels.bincount().tolist() == train_counts
    assert data.test.labels.bincount().tolist() == test_counts
    for split, mean in ((data.train, train_mean), (data.test, test_mean)):
        assert split.images.dtype == torch.uint8
        found = split.images.numpy().mean((0, 2, 3)) / 255
        assert found.round(4).tolist() == mean


class Short(socketserver.BaseRequestHandler):
    """Promises more than it sends, or speaks no HTTP at all."""

    def handle(self):
        self.request.recv(4096)
        self.request.sendall(self.server.answer)


@pytest.fixture
def server():
    with socketserver.TCPServer(("127.0.0.1", 0), Short) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        one.url = f"http://127.0.0.1:{one.server_address[1]}/"
        yield one
        one.shutdown()
        thread.join()


ANSWERS = [
    (b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nabc", "train-images-idx3-ubyte.gz: expected "
     "the file that was published, with MD5 6bbc9ace898e44ae57da46a324031adb, found 900150983cd2"),
    (b"nonsense\r\n\r\n", "could not be fetched: nonsense"),
    (b"", "could not be fetched: Remote end closed connection"),
    (b"HTTP/1.0 503 Busy\r\n\r\n", "could not be fetched: HTTP Error 503: Busy. Try again, or put"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "message"), ANSWERS, ids=range(len(ANSWERS)))
def test_a_broken_server(answer, message, server, tmp_path):
    server.answer = answer
    with pytest.raises(BenchmarkError, match=re.escape(message)) as raised:
        download.download("mnist", tmp_path, server.url)
    assert server.url in str(raised.value) or "found 9001" in str(raised.value)
    del raised
    gc.collect()  # a connection that was left open would warn here
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("url", ["ftpp://nowhere/", "http://:x/"])
def test_an_address_that_is_none(url, tmp_path):
    with pytest.raises(
        BenchmarkError, match=f"^{url}train-images.* could not be fetched: "
    ):
        download.download("mnist", tmp_path, url)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_against_numpy():
    """Turned by 20 degrees and shifted: bilinear by hand, coordinates clipped at the border."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 7)).astype(np.uint8)
    degrees, shift = 20.0, (0.1, -0.2)
    out = transform(
        torch.from_numpy(image)[None, None], torch.tensor([True]), torch.tensor([degrees]),
        torch.tensor([shift]),
    )[0, 0]  # fmt: skip
    a, centre = np.deg2rad(degrees), 3.0
    best = []
    for sign in (
        1,
        -1,
    ):  # which way is up is kornia's choice, as the direction is random anyway
        expected = np.empty((7, 7))
        for y in range(7):
            for x in range(7):
                dx, dy = x - centre - 7 * shift[0], y - centre - 7 * shift[1]
                u = np.cos(a) * dx - sign * np.sin(a) * dy
                v = sign * np.sin(a) * dx + np.cos(a) * dy
                u, v = (
                    centre - u,
                    centre + v,
                )  # the flip comes first, so it is undone last
                u, v = min(max(u, 0), 6), min(max(v, 0), 6)
                i, j = min(int(v), 5), min(int(u), 5)
                p, q = v - i, u - j
                expected[y, x] = (
                    (1 - p) * ((1 - q) * image[i, j] + q * image[i, j + 1])
                    + p * ((1 - q) * image[i + 1, j] + q * image[i + 1, j + 1])
                )  # fmt: skip
        best.append(np.abs(expected - out.numpy()).max())
    assert min(best) < 0.05, best


def test_no_torchvision():
    files = [
        p
        for part in ("src", "benchmarks", "tests", "docs")
        for p in (ROOT / part).rglob("*.py")
    ]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [
                alias.name
                for alias in getattr(node, "names", [])
                if hasattr(alias, "name")
            ]
            names.append(getattr(node, "module", None) or "")
            assert not any(str(n).split(".")[0] == "torchvision" for n in names), path
