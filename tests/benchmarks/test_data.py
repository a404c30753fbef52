import gzip
import lzma
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from benchmarks import BenchmarkError
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.data import CIFAR10_FILES, MNIST_FILES, images, load

RNG = np.random.default_rng(0)
TRAIN, TEST = 6, 4


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return header + array.tobytes()


def write_mnist(folder, zipped):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name in MNIST_FILES:
        count = TRAIN if name.startswith("train") else TEST
        shape = (count, 28, 28) if "images" in name else (count,)
        array = RNG.integers(0, 256 if "images" in name else 10, shape, np.uint8)
        arrays[name] = array
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return list(arrays.values())


def write_cifar(folder, binary, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    batches = []
    for name in CIFAR10_FILES:
        data = RNG.integers(0, 256, (count, 3072), np.uint8)
        labels = RNG.integers(0, 10, count).tolist()
        batches.append((data, labels))
        if binary:
            records = np.concatenate([np.array(labels, np.uint8)[:, None], data], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            with (folder / name).open("wb") as file:
                pickle.dump({b"data": data, b"labels": labels, b"batch_label": b"x"}, file, 3)
    return batches


def test_digits():
    data = load("digits", "unused")
    assert data.train.images.shape == (1438, 1, 8, 8)
    assert data.test.images.shape == (359, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    assert data.train.labels[:6].tolist() == [0, 1, 2, 3, 5, 6]  # the first ten are 0 to 9
    assert data.test.labels[:2].tolist() == [4, 9]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", ["", "MNIST/raw", "mnist"])
def test_mnist(tmp_path, layout, zipped):
    images, labels, test_images, test_labels = write_mnist(tmp_path / layout, zipped)
    data = load("mnist", tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert (data.train.images[:, 0].numpy() == images).all()
    assert (data.train.labels.numpy() == labels).all()
    assert (data.test.images[:, 0].numpy() == test_images).all()
    assert (data.test.labels.numpy() == test_labels).all()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("layout", ["", "cifar-10-batches-py", "cifar-10-batches-bin"])
def test_cifar10(tmp_path, layout, binary):
    *train, test = write_cifar(tmp_path / layout, binary)
    data = load("cifar10", tmp_path)
    assert data.image_shape == (3, 32, 32)
    expected = np.concatenate([batch for batch, _ in train]).reshape(-1, 3, 32, 32)
    assert (data.train.images.numpy() == expected).all()
    assert data.train.labels.tolist() == [label for _, labels in train for label in labels]
    assert (data.test.images.numpy() == test[0].reshape(-1, 3, 32, 32)).all()
    assert data.test.labels.tolist() == test[1]


def test_train_images(tmp_path):
    pixels, *_ = write_mnist(tmp_path, zipped=False)
    data = images(Configuration("mnist", train_images=2), tmp_path)
    assert (data.train.images[:, 0].numpy() == pixels[:2]).all()
    assert len(data.train.labels) == 2
    assert len(data.test.labels) == TEST


def test_averaged_images(tmp_path):
    """Means of cells of 2x2 pixels, rounded to whole bytes, in both splits."""
    pixels, _, test, _ = write_mnist(tmp_path, zipped=False)
    data = images(Configuration("mnist", image_size=14), tmp_path)
    assert data.image_shape == (1, 14, 14)
    for found, whole in ((data.train, pixels), (data.test, test)):
        means = whole.reshape(len(whole), 14, 2, 14, 2).astype(float).mean((2, 4))
        assert found.images.dtype == torch.uint8
        assert (found.images[:, 0].numpy() == np.rint(means)).all()  # both round half to even
    with pytest.raises(BenchmarkError, match=r"--image-size must be at most 28.*found 29"):
        images(Configuration("mnist", image_size=29), tmp_path)


def test_unknown_data_set():
    with pytest.raises(BenchmarkError, match=r"'svhn'.*digits, mnist, cifar10"):
        load("svhn", "unused")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert f"python -m benchmarks download {name}" in str(error.value)
    assert "--data-dir" in str(error.value)


def test_something_missing(tmp_path):
    write_mnist(tmp_path / "mnist", zipped=True)
    (tmp_path / "mnist" / f"{MNIST_FILES[2]}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"in part: {MNIST_FILES[2]} not found"):
        load("mnist", tmp_path)


LABELS = MNIST_FILES[1]
BROKEN_MNIST = {
    "truncated data": (idx(np.zeros(6, np.uint8))[:-2], "6 bytes of data.*found 4 bytes"),
    "truncated header": (bytes([0, 0, 8, 1, 0]), "a header of 8 bytes, found 5 bytes"),
    "empty": (b"", "found nothing"),
    "images": (idx(np.zeros((6, 28, 28), np.uint8)), "starts with 00000801, found 00000803"),
    "too few": (idx(np.zeros(5, np.uint8)), "a label for each of 6 images, found 5 labels"),
    "too large": (idx(np.full(6, 10, np.uint8)), "labels from 0 to 9, found 10 to 10"),
}


@pytest.mark.parametrize("case", BROKEN_MNIST)
def test_broken_mnist(tmp_path, case):
    write_mnist(tmp_path, zipped=False)
    content, message = BROKEN_MNIST[case]
    (tmp_path / LABELS).write_bytes(content)
    with pytest.raises(BenchmarkError, match=rf"{LABELS}: expected.*{message}.*Delete the file"):
        load("mnist", tmp_path)


DAMAGES = [lambda b: b[:-20], lambda b: b"not gzip", lambda b: b[:30] + b"x" * 99]


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_gzip(tmp_path, damage):
    write_mnist(tmp_path, zipped=True)
    path = tmp_path / f"{MNIST_FILES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BenchmarkError, match=rf"{path.name}: expected a whole gzip file"):
        load("mnist", tmp_path)


def test_images_of_another_size(tmp_path):
    write_mnist(tmp_path, zipped=False)
    (tmp_path / MNIST_FILES[0]).write_bytes(idx(np.zeros((6, 32, 32), np.uint8)))
    with pytest.raises(BenchmarkError, match=r"items of shape \(28, 28\), found shape \(32, 32\)"):
        load("mnist", tmp_path)


def test_truncated_cifar_binary(tmp_path):
    write_cifar(tmp_path, binary=True)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BenchmarkError, match=r"data_batch_3.bin: .*3073-byte records, found 9218"):
        load("cifar10", tmp_path)


BROKEN_BATCHES = {
    "truncated": lambda content: content[:-100],
    "not a pickle": lambda content: b"hello",
    "no dict": lambda content: pickle.dumps([1, 2], 3),
    "floats": lambda content: pickle.dumps({b"data": np.zeros((1, 3072)), b"labels": [1]}, 3),
    "label 10": lambda content: pickle.dumps(
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, 3
    ),
}


@pytest.mark.parametrize("case", BROKEN_BATCHES)
def test_broken_cifar_batch(tmp_path, case):
    write_cifar(tmp_path, binary=False)
    path = tmp_path / "test_batch"
    path.write_bytes(BROKEN_BATCHES[case](path.read_bytes()))
    with pytest.raises(BenchmarkError, match=r"test_batch: expected .* found .*Delete the file"):
        load("cifar10", tmp_path)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_calls_something_is_refused(tmp_path):
    write_cifar(tmp_path, binary=False)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Malicious(tmp_path / "harm"), 2))
    with pytest.raises(BenchmarkError, match=r"test_batch: .*a reference to (posix|nt)\.mkdir"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.realdata
def test_real_mnist(real_data):
    data = load("mnist", real_data)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.test.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert data.test.labels.bincount().tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


@pytest.mark.realdata
def test_real_cifar10_batch(real_data, tmp_path):
    packed = real_data / "cifar-10" / "test_batch.xz"
    unpacked = real_data / "cifar-10-batches-py" / "test_batch"
    if not (packed.exists() or unpacked.exists()):
        pytest.skip(f"no CIFAR-10 in {real_data}")
    content = unpacked.read_bytes() if unpacked.exists() else lzma.decompress(packed.read_bytes())
    (tmp_path / "test_batch").write_bytes(content)
    for name in CIFAR10_FILES[:-1]:  # one batch, read as if it were all of them
        (tmp_path / name).symlink_to(tmp_path / "test_batch")
    data = load("cifar10", tmp_path)
    assert data.train.images.shape == (50_000, 3, 32, 32)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.labels[:6].tolist() == [3, 8, 8, 0, 6, 6]
    assert data.test.images[0, :, 0, 0].tolist() == [158, 112, 49]
