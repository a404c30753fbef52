"""A mask file as bytes: what stands in it, read with suspicion and written whole.

It is a numpy `.npz` of three uint8 arrays:

- `header`: JSON, the format and its version, and a row for each tensor (`Row` below);
- `masks`: the coded masks, one after the other, in the order of the rows;
- `digest`: SHA-256 of `header` and `masks`, so that nothing in them changes unnoticed.

Format 1, of which files are still read, knew only the coding `gaps` and only the first name of a
tied tensor.
"""

import contextlib
import errno
import hashlib
import io
import itertools
import json
import math
import os
import secrets
import stat
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple, get_origin, get_type_hints

import numpy as np
from typing_extensions import TypeIs

Path = str | os.PathLike[str]
PathOrFile = Path | BinaryIO

_FORMAT, _VERSION = "masktorch masks", 2
_ARRAYS = ("header", "masks", "digest")
_SMALL = 2**16  # bytes of an array up to which it is written deflated
_INFLATED = 2**20  # bytes that an array may gain by being inflated; a header has no more in all
_SPARE = 2**24  # bytes of a stream beyond those of its masks
_CHUNK = 2**20
_SIZES = range(2**63)


class Row(NamedTuple):
    """What the header says of one tensor."""

    name: str
    tied: list[str]  # its other names
    shape: list[int]
    kept: int  # entries kept
    rescale: bool
    estimator: str  # its repr, for the reader; a mask is a mask
    coding: str  # of its mask: see masktorch.coding
    bytes: int  # of its coded mask
    fingerprint: str  # of the tensor under the mask

    @property
    def names(self) -> list[str]:
        return [self.name, *self.tied]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def is_valid(self) -> bool:
        """Whether every field is of its kind, as it need not be in a file."""
        return (
            [type(value) for value in self] == _KINDS
            and all(type(name) is str for name in self.tied)
            and all(type(n) is int and n in _SIZES for n in (self.kept, self.bytes, *self.shape))
            and len(self.shape) <= 64
            and math.prod(max(n, 1) for n in self.shape) in _SIZES
        )


_KINDS = [get_origin(kind) or kind for kind in get_type_hints(Row).values()]


class MaskFile(NamedTuple):
    """A file that was read."""

    called: str  # what errors call it
    version: int
    rows: list[Row]
    codes: list[memoryview]


def read(source: PathOrFile, caller: str, most: int) -> MaskFile:
    """The file, of a stream no more than masks of `most` entries take.

    Raises `ValueError` where it is not as written.
    """
    called = _called(source)
    if not _is_path(source):
        _check_stream(source, caller, "rb")
    with open(source, "rb") if _is_path(source) else contextlib.nullcontext(source) as file:
        whole = file if _is_path(source) and file.seekable() else _whole(file, caller, most)
        try:
            return MaskFile(called, *_contents(*_arrays(whole)))
        except _NewerError as error:
            raise ValueError(f"{caller}() can't read {called}: {error}") from error
        except Exception as error:  # whatever the readers of zip, npy and JSON raise
            found = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
            raise unreadable(caller, called, found) from error


def unreadable(caller: str, called: str, found: str) -> ValueError:
    return ValueError(
        f"{caller}() can't read {called}: expected a file that masktorch.save_masks wrote, found "
        f"{found}. If it was one, it is damaged: copy or save it again."
    )


class _NewerError(ValueError):
    """A file of a later format."""


def _contents(
    header: memoryview, masks: memoryview, digest: memoryview
) -> tuple[int, list[Row], list[memoryview]]:
    """The version of a file, its rows, their codes."""
    described = json.loads(bytes(header))
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise ValueError(f"a header that does not say format={_FORMAT!r}")
    version = described.get("version")
    if type(version) is not int or version < 1:
        raise ValueError("a header without a format version")
    if version > _VERSION:
        raise _NewerError(
            f"expected format version {_VERSION} at most, found version {version}, of a newer "
            "masktorch. Upgrade masktorch."
        )
    if digest != _digest(header, masks):
        raise ValueError("a digest that is not that of its contents")
    since: dict[str, Any] = {"tied": [], "coding": "gaps"} if version == 1 else {}
    try:
        rows = [Row(**since, **row) for row in described["tensors"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a header of other fields: {error}") from error
    for i, row in enumerate(rows):
        if not row.is_valid():
            raise ValueError(f"a field of the wrong kind in its header for tensor {i}")
    names = [name for row in rows for name in row.names]
    if len(set(names)) != len(names):
        raise ValueError("two tensors of one name in its header")
    ends = [0, *itertools.accumulate(row.bytes for row in rows)]
    if ends[-1] != len(masks):
        raise ValueError(f"{len(masks)} bytes of masks, not the {ends[-1]} of its header")
    return version, rows, [masks[start:end] for start, end in itertools.pairwise(ends)]


def some(names: list[str]) -> str:
    """The first few of some names, and how many there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"


def _arrays(file: BinaryIO) -> list[memoryview]:
    """The three arrays of a file. What a damaged one claims to hold is not allocated."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise ValueError("nothing (a stream is read on from where it stands: seek(0) first)")
    if not zipfile.is_zipfile(file):
        file.seek(0)
        early = file.read(4) == b"PK\x03\x04"
        raise ValueError(f"one that ends early, after {size} bytes" if early else "no .npz file")
    with zipfile.ZipFile(file) as archive:
        names, expected = archive.namelist(), [f"{name}.npy" for name in _ARRAYS]
        if sorted(names) != sorted(expected):
            raise ValueError(f"the entries {some(names)} in place of {some(expected)}")
        arrays = []
        for name in expected:
            entry = archive.getinfo(name)
            deflated = entry.compress_type == zipfile.ZIP_DEFLATED
            if not deflated and entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"an entry {name!r} that is neither stored nor deflated")
            most = (size if name == "masks.npy" else 0) + _INFLATED if deflated else size
            if entry.file_size > most:
                raise ValueError(f"an entry {name!r} that is too large")
            with archive.open(entry) as content:
                array = content.read(entry.file_size)  # of what it inflates to no more than this
            text = io.BytesIO(array)
            np.lib.format.read_magic(text)
            shape, _, dtype = np.lib.format.read_array_header_1_0(text)
            arrays.append(memoryview(array)[text.tell() :])
            if dtype != np.uint8 or shape != (len(arrays[-1]),):
                raise ValueError(f"an entry {name!r} of {dtype} and shape {shape}")
    return arrays


def _digest(header: bytes | memoryview, masks: bytes | memoryview) -> bytes:
    sha = hashlib.sha256(header)
    sha.update(masks)
    return sha.digest()


def _called(source: PathOrFile) -> str:
    name = os.fspath(source) if _is_path(source) else getattr(source, "name", None)
    return repr(name) if isinstance(name, str) else f"a {type(source).__name__}"


def _is_path(source: PathOrFile) -> TypeIs[Path]:
    return isinstance(source, str | os.PathLike)


def _whole(file: BinaryIO, caller: str, most: int) -> BinaryIO:
    """All of a stream from where it stands, up to what masks of `most` entries take."""
    content, limit = bytearray(), most // 4 + _SPARE
    while piece := file.read(_CHUNK):
        content += piece
        if len(content) > limit:
            raise ValueError(
                f"{caller}() expected at most {limit} bytes from {_called(file)}, more than masks "
                f"of {most} entries take, found more. Is it a mask file, and of this model?"
            )
    return io.BytesIO(content)


def _check_stream(file: BinaryIO, caller: str, mode: str) -> None:
    if not hasattr(file, "read" if mode == "rb" else "write") or hasattr(file, "encoding"):
        found = "one of text" if hasattr(file, "encoding") else type(file).__name__
        raise TypeError(f"{caller}() expected a path or a file of bytes ({mode!r}), found {found}.")
    if getattr(file, "closed", False):
        raise ValueError(f"{caller}() expected an open file, found a closed one ({_called(file)}).")


def write(target: PathOrFile, rows: list[Row], codes: list[bytes]) -> None:
    """All of the file, or at its path the one that was there."""
    version = sys.modules["masktorch"].__version__
    described = {"format": _FORMAT, "version": _VERSION, "masktorch": version}
    described |= {"tensors": [row._asdict() for row in rows]}
    header, masks = json.dumps(described, separators=(",", ":")).encode(), b"".join(codes)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in zip(_ARRAYS, (header, masks, _digest(header, masks)), strict=True):
            text = io.BytesIO()
            np.lib.format.write_array(text, np.frombuffer(array, np.uint8))
            entry = zipfile.ZipInfo(f"{name}.npy")  # of a set date: equal masks give equal files
            small = len(array) <= _SMALL
            entry.compress_type = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
            archive.writestr(entry, text.getbuffer())
    if not _is_path(target):
        _check_stream(target, "save_masks", "wb")
        return _send(target, content.getvalue())
    path = os.path.realpath(os.fsdecode(target))
    try:
        return _replace(path, content.getvalue())
    except OSError as error:
        hint = " Make its folder first." if error.errno == errno.ENOENT else ""
        reason = error.strerror or error
        message = f"save_masks() can't write this file ({reason}).{hint}"
        raise OSError(error.errno, message, path) from error


def _replace(path: str, content: bytes) -> None:
    """Writes beside a path and renames, or straight into what is no file (a pipe, a device)."""
    mode = os.stat(path).st_mode if os.path.exists(path) else None
    if mode is not None and not stat.S_ISREG(mode):
        with open(path, "wb") as pipe:
            pipe.write(content)
        return
    beside = os.path.join(os.path.dirname(path), f".masktorch-{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            if mode is not None:
                os.chmod(beside, stat.S_IMODE(mode))  # before there is anything to read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise


def _send(file: BinaryIO, content: bytes) -> None:
    while content:
        written = file.write(content)  # an unbuffered file may take a part of it, or nothing now
        if written is None and not isinstance(file, io.RawIOBase):
            return  # a file of the user's own that does not count
        if not written:
            raise BlockingIOError(errno.EAGAIN, "save_masks() met a stream that takes no more")
        content = content[written:]
