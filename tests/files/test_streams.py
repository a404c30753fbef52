"""Masks through open files and streams: buffers, pipes, sockets; refusals."""

import io
import os
import socket
import tempfile
import threading
from functools import partial

import pytest
import torch

import masktorch
from masktorch import load_masks, read_masks, save_masks
from tools.maskfile_mutants import Net, plain, same, snapshot, unchanged, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


def saved(model):
    save_masks(model, file := io.BytesIO())
    return file.getvalue()


class Slow(io.RawIOBase):
    """Takes and gives a few bytes at a time, and cannot seek."""

    def __init__(self, content=b""):
        super().__init__()
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def writable(self):
        return True

    def readinto(self, buffer):
        return self.content.readinto(memoryview(buffer)[:100])

    def write(self, some):
        return self.content.write(memoryview(some)[:100])


class Own:
    """The smallest interface of a user's own file object."""

    def __init__(self, content=b""):
        self.content = io.BytesIO(content)

    def read(self, size):
        return self.content.read(min(size, 100))

    def write(self, some):
        self.content.write(some)


@pytest.mark.parametrize("kind", [io.BytesIO, Slow, Own])
def test_streams_get_the_bytes_of_a_file(tmp_path, kind):
    model = wrapped()
    save_masks(model, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    file = kind()
    save_masks(model, file)
    assert (file if kind is io.BytesIO else file.content).getvalue() == content
    assert same(read_masks(kind(content)), masktorch.masks(model))
    for onto in (plain(model), wrapped(plain(model))):
        load_masks(onto, kind(content))
        assert same(masktorch.masks(onto), masktorch.masks(model))


def test_streams_are_used_from_their_current_position():
    model = wrapped()
    file = io.BytesIO()
    file.write(b"before")
    save_masks(model, file)
    assert file.getvalue()[:6] == b"before"
    file.seek(6)
    assert same(read_masks(file), masktorch.masks(model))
    assert file.read() == b""
    with pytest.raises(
        ValueError, match=r"wrote, found 0 bytes, .* position .* call seek\(0\) first"
    ):
        read_masks(file)
    assert not file.closed


@pytest.mark.parametrize(
    "make",
    [
        tempfile.TemporaryFile,
        tempfile.NamedTemporaryFile,
        tempfile.SpooledTemporaryFile,
    ],
)
def test_masks_pass_through_temporary_files(make):
    model = wrapped()
    with make() as file:
        save_masks(model, file)
        file.seek(0)
        assert same(read_masks(file), masktorch.masks(model))


@pytest.mark.parametrize("buffering", [0, -1])
def test_masks_pass_through_a_socket(buffering):
    model = wrapped()
    ours, theirs = socket.socketpair()

    def send():
        with theirs, theirs.makefile("wb", buffering) as file:
            save_masks(model, file)

    sender = threading.Thread(target=send)
    sender.start()
    with ours, ours.makefile("rb", buffering) as file:
        masks = read_masks(file)
    sender.join()
    assert same(masks, masktorch.masks(model))


def test_masks_pass_through_a_pipe():
    model = wrapped()
    reads, writes = os.pipe()
    with open(writes, "wb") as file:
        save_masks(model, file)
    with open(reads, "rb") as file:
        assert same(
            masktorch.masks(load_masks(plain(model), file)), masktorch.masks(model)
        )


def closed(file):
    file.close()
    return file


def text(make):
    """A file of text, with text in it."""
    file = make()
    file.write("text")
    file.seek(0)
    return file


BAD = [
    (lambda: closed(io.BytesIO()), "closed file"),
    (partial(text, io.StringIO), "str|found 0 bytes"),
    (partial(text, lambda: io.TextIOWrapper(io.BytesIO())), "str|can't decode"),
    (partial(text, partial(tempfile.NamedTemporaryFile, "w+")), "str|can't decode"),
    (lambda: None, "expected str, bytes or os.PathLike object, not NoneType"),
    (lambda: 3, "expected str, bytes or os.PathLike object, not int"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=range(len(BAD)))
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_objects_that_are_no_binary_file_are_refused(make, message):
    model = wrapped()
    before = snapshot(model)
    for function in (
        partial(save_masks, model),
        partial(load_masks, model),
        read_masks,
    ):
        file = make()
        with pytest.raises((TypeError, ValueError), match=message):
            function(file)
        getattr(file, "close", lambda: None)()
    assert unchanged(model, before)


def test_a_file_opened_in_the_wrong_mode_is_refused(tmp_path):
    with (
        open(tmp_path / "x", "wb") as file,
        pytest.raises(ValueError, match=r"load .*: read"),
    ):
        read_masks(file)
    with open(tmp_path / "x", "rb") as file, pytest.raises(OSError, match="write"):
        save_masks(wrapped(), file)


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", [io.BytesIO, Slow])
def test_a_stream_that_ends_early_is_refused(kind, part):
    model = wrapped()
    content = saved(model)
    masktorch.set_masks(model, {n: ~m for n, m in masktorch.masks(model).items()})
    before = snapshot(model)
    early = content[: max(4, int(part * len(content)))]
    message = (
        rf"load_masks\(\) can't load .*{kind.__name__}.*: the mask file is damaged: "
        rf"its {len(early)} bytes are not a whole zip archive .*\. Copy it again, or "
    )
    with pytest.raises(ValueError, match=message):
        load_masks(model, kind(early))
    assert unchanged(model, before)


def test_errors_of_a_stream_are_passed_on():
    class Failing(Slow):
        def readinto(self, buffer):
            raise ConnectionResetError("gone")

        def write(self, some):
            raise BrokenPipeError("gone")

    model = wrapped()
    before = snapshot(model)
    with pytest.raises(ConnectionResetError):
        load_masks(model, Failing())
    with pytest.raises(BrokenPipeError):
        save_masks(model, Failing())
    assert unchanged(model, before)


def test_an_endless_stream_is_abandoned():
    class Endless(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.given += len(buffer)
            return len(buffer)

    endless, model = Endless(), wrapped()
    entries = sum(p.numel() for p in model.parameters())
    with pytest.raises(
        ValueError, match=f"Endless.* at most {entries // 4 + 2**24} bytes"
    ):
        load_masks(model, endless)
    assert endless.given < 2**25
    with pytest.raises(
        ValueError, match=rf"read_masks\(\) .* at most {100 // 4 + 2**24} bytes"
    ):
        read_masks(Endless(), most=100)


def test_a_non_blocking_stream_that_is_full_is_an_error():
    class Full(Slow):
        def write(self, some):
            return super().write(some) if self.content.tell() < 300 else None

    with pytest.raises(
        BlockingIOError, match=r"save_masks\(\) found a stream that takes no more"
    ):
        save_masks(wrapped(), Full())

    class Closed(io.BytesIO):
        def write(self, some):
            return 0

    with pytest.raises(
        BlockingIOError, match=r"save_masks\(\) found a stream that takes no more"
    ):
        save_masks(wrapped(), Closed())


def test_a_non_blocking_stream_that_is_empty_is_an_error():
    reads, writes = os.pipe()
    os.set_blocking(reads, False)
    with (
        open(writes, "wb"),
        open(reads, "rb", 0) as file,
        pytest.raises(BlockingIOError, match="no bytes for now: make it block"),
    ):
        read_masks(file)


def test_a_file_of_text_is_refused_with_the_mode_to_open_it_in(tmp_path):
    save_masks(wrapped(), tmp_path / "masks")
    with (
        open(tmp_path / "masks", encoding="latin-1") as file,
        pytest.raises(TypeError, match="open it with mode 'rb'"),
    ):
        read_masks(file)
    with (
        open(tmp_path / "masks", "w") as file,
        pytest.raises(TypeError, match="open it with mode 'wb'"),
    ):
        save_masks(wrapped(), file)


def test_masks_read_from_a_file_are_ordinary_tensors():
    model = wrapped(Net(), kept=0.3)
    masks = read_masks(io.BytesIO(saved(model)))
    assert all(mask.dtype is torch.bool for mask in masks.values())
    other = wrapped(plain(model), kept=0.9)
    with masktorch.using(other, masks):
        assert same(masktorch.masks(other), masks)
        save_masks(other, file := io.BytesIO())  # sees what is used
    assert same(read_masks(io.BytesIO(file.getvalue())), masks)
    next(iter(masks.values())).logical_not_()  # tensors of their own
    masktorch.set_masks(other, masks)


def test_two_files_in_one_stream_are_refused():
    file, layer = io.BytesIO(), masktorch.wrap(torch.nn.Linear(3, 2))
    masktorch.save_masks(layer, file)
    one = file.getvalue()
    outside = "damaged: it has other bytes before or after it"
    start = rf"found {len(one) + 4} bytes that start with b'junkPK.* seek\(0\)"
    for around, message in [
        (one + one, outside),
        (b"junk" + one, start),
        (one + b"junk" * 10, outside),
    ]:
        with pytest.raises(ValueError, match=message):
            masktorch.read_masks(io.BytesIO(around))
    assert list(masktorch.read_masks(io.BytesIO(one))) == ["weight"]
