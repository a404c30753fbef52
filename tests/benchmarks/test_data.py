"""The readers: what the published files hold, and nothing else."""

import gzip
import io
import lzma
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import BenchmarkError
from benchmarks.experiment import data as module
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import MD5, READERS, load_images

RNG = np.random.default_rng(0)
TRAIN, TEST = 6, 4
MNIST_FILES, CIFAR10_FILES = list(MD5["mnist"]), list(MD5["cifar10"])


def load(name, folder):
    return READERS[name](folder)


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def write_mnist(publish):
    def write(folder, zipped=False):
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for name in MNIST_FILES:
            count = TRAIN if name.startswith("train") else TEST
            shape = (count, 28, 28) if "images" in name else (count,)
            arrays[name] = RNG.integers(
                0, 256 if "images" in name else 10, shape, np.uint8
            )
            content = idx(arrays[name])
            path = folder / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(content) if zipped else content)
        publish("mnist", {name: idx(array) for name, array in arrays.items()})
        return list(arrays.values())

    return write


@pytest.fixture
def write_cifar(publish):
    def write(folder, count=3):
        folder.mkdir(parents=True, exist_ok=True)
        batches, contents = [], {}
        for name in CIFAR10_FILES:
            data = RNG.integers(0, 256, (count, 3072), np.uint8)
            labels = RNG.integers(0, 10, count).tolist()
            batches.append((data, labels))
            contents[name] = pickle.dumps(
                {b"data": data, b"labels": labels, b"batch_label": b"x"}, 2
            )
            (folder / name).write_bytes(contents[name])
        publish("cifar10", contents)
        return batches

    return write


def test_digits():
    data = load("digits", "unused")
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert data.test.images.shape == (359, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    assert data.train.labels[:6].tolist() == [
        0,
        1,
        2,
        3,
        5,
        6,
    ]  # the first ten are 0 to 9
    assert data.test.labels[:2].tolist() == [4, 9]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", ["", "MNIST/raw", "mnist"])
def test_mnist(tmp_path, layout, zipped, write_mnist):
    images, labels, test_images, test_labels = write_mnist(tmp_path / layout, zipped)
    data = load("mnist", tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert (data.train.images[:, 0].numpy() == images).all()
    assert (data.train.labels.numpy() == labels).all()
    assert (data.test.images[:, 0].numpy() == test_images).all()
    assert (data.test.labels.numpy() == test_labels).all()


@pytest.mark.parametrize("layout", ["", "cifar-10-batches-py"])
def test_cifar10(tmp_path, layout, write_cifar):
    *train, test = write_cifar(tmp_path / layout)
    data = load("cifar10", tmp_path)
    assert data.image_shape == (3, 32, 32)
    expected = np.concatenate([batch for batch, _ in train]).reshape(-1, 3, 32, 32)
    assert (data.train.images.numpy() == expected).all()
    assert data.train.labels.tolist() == [
        label for _, labels in train for label in labels
    ]
    assert (data.test.images.numpy() == test[0].reshape(-1, 3, 32, 32)).all()
    assert data.test.labels.tolist() == test[1]


class Python2Pickler(pickle._Pickler):
    """The format of the published batches: protocol 2 with Python 2's byte strings."""

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


def test_train_images(tmp_path, write_mnist):
    pixels, *_ = write_mnist(tmp_path)
    data = load_images(Configuration("mnist", train_images=2), tmp_path)
    assert (data.train.images[:, 0].numpy() == pixels[:2]).all()
    assert len(data.train.labels) == 2
    assert len(data.test.labels) == TEST


def test_averaged_images(tmp_path, write_mnist):
    """Means of cells of 2x2 pixels, rounded to whole bytes, in both splits."""
    pixels, _, test, _ = write_mnist(tmp_path)
    data = load_images(Configuration("mnist", image_size=14), tmp_path)
    assert data.image_shape == (1, 14, 14)
    for found, whole in ((data.train, pixels), (data.test, test)):
        means = whole.reshape(len(whole), 14, 2, 14, 2).astype(float).mean((2, 4))
        assert found.images.dtype == torch.uint8
        assert (
            found.images[:, 0].numpy() == np.rint(means)
        ).all()  # both round half to even


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(BenchmarkError) as error:
        load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"python -m benchmarks download {name}" in str(error.value)
    assert "--data-dir" in str(error.value)


def test_something_missing(tmp_path, write_mnist):
    write_mnist(tmp_path / "mnist", zipped=True)
    (tmp_path / "mnist" / f"{MNIST_FILES[2]}.gz").unlink()
    name = f"mnist/{MNIST_FILES[2]}"
    message = rf"{name}: expected the file .*, found \[Errno 2\] .*Fetch it with"
    with pytest.raises(BenchmarkError, match=message):
        load("mnist", tmp_path)


DAMAGES = [
    lambda b: b[:-20],
    lambda b: b"not gzip",
    lambda b: b[:30] + b"x" * 99,
    lambda b: b"",
    lambda b: gzip.compress(b"other"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(tmp_path, damage, write_mnist):
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / f"{MNIST_FILES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    expected = r"expected the file that was published, with MD5 \w+, found .*Fetch it"
    message = f"{path.name}: {expected}"
    with pytest.raises(BenchmarkError, match=message):
        load("mnist", tmp_path)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_was_not_published_is_not_opened(tmp_path, write_cifar, protocol):
    write_cifar(tmp_path)
    (tmp_path / "test_batch").write_bytes(
        pickle.dumps(Malicious(tmp_path / "harm"), protocol)
    )
    with pytest.raises(
        BenchmarkError, match="test_batch: expected the file that was published"
    ):
        load("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.realdata
def test_real_mnist(real_data):
    data = load("mnist", real_data)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert data.test.labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]


@pytest.mark.realdata
def test_real_cifar10_batch(real_data, tmp_path, monkeypatch):
    packed = real_data / "cifar-10" / "test_batch.xz"
    unpacked = real_data / "cifar-10-batches-py" / "test_batch"
    if not (packed.exists() or unpacked.exists()):
        pytest.skip(f"no CIFAR-10 in {real_data}")
    content = (
        unpacked.read_bytes()
        if unpacked.exists()
        else lzma.decompress(packed.read_bytes())
    )
    for name in (
        "data_batch_1",
        "test_batch",
    ):  # one batch, read as if it were all of them
        (tmp_path / name).write_bytes(content)
    md5 = MD5["cifar10"]["test_batch"]
    monkeypatch.setitem(module.MD5, "cifar10", {"data_batch_1": md5, "test_batch": md5})
    data = load("cifar10", tmp_path).test
    assert data.images.shape == (10_000, 3, 32, 32)
    assert data.labels.bincount().tolist() == [1000] * 10
    assert data.labels[:6].tolist() == [3, 8, 8, 0, 6, 6]
    assert data.images[0, :, 0, 0].tolist() == [158, 112, 49]


ROOT = Path(benchmarks.__file__).parents[1]


@pytest.fixture(scope="module")
def all_real_data(tmp_path_factory):
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

# (data set, shape of train, of test, their label counts, mean pixel of train by
# channel, of test)
REAL = [
    (
        "mnist",
        (60_000, 1, 28, 28),
        (10_000, 1, 28, 28),
        MNIST_TRAIN,
        MNIST_TEST,
        [0.1307],
        [0.1325],
    ),
    (
        "cifar10",
        (50_000, 3, 32, 32),
        (10_000, 3, 32, 32),
        [5000] * 10,
        [1000] * 10,
        [0.4914, 0.4822, 0.4465],
        [0.4942, 0.4851, 0.4504],
    ),
]


@pytest.mark.realdata
@pytest.mark.parametrize("case", REAL, ids=lambda case: case[0])
def test_real_data(case, all_real_data):
    name, train, test, train_counts, test_counts, train_mean, test_mean = case
    try:
        data = load(name, all_real_data)
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
