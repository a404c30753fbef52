"""A mask file as bytes: a numpy `.npz` of three uint8 arrays, read with suspicion, written whole.

`header` is JSON: format, version and a `Row` for each tensor; `masks` their codes in that order;
`digest` the SHA-256 of both. Format 1, still read, had one coding and no names of tied tensors.
"""

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

Buffer = bytes | memoryview  # `bytes` is a field of `Row`
PathOrFile = str | os.PathLike[str] | BinaryIO

_FORMAT, _VERSION = "masktorch masks", 2
_ENTRIES = ["header.npy", "masks.npy", "digest.npy"]
_SMALL = 2**16  # bytes of an array up to which it is deflated
_INFLATED = 2**20  # bytes that an array may have beyond those of its file
_SPARE = 2**24  # bytes that a file may have beyond those of its masks
_SIZES = range(2**63)


class Row(NamedTuple):
    """What the header says of one tensor, and the code of its mask."""

    name: str
    tied: list[str]  # its other names
    shape: list[int]
    kept: int  # entries kept
    rescale: bool
    estimator: str  # its repr, for the reader; a mask is a mask
    coding: str  # of its mask: see masktorch.coding
    bytes: int  # of its coded mask
    fingerprint: str  # of the tensor under the mask
    code: Buffer = b""  # not in the header

    @property
    def mask(self) -> tuple[object, ...]:
        """What is alike in two rows of one mask."""
        return self.shape, self.kept, self.rescale, self.coding, self.code

    def is_valid(self) -> bool:
        """Whether every field is of its kind, as it need not be in a file."""
        return (
            [type(value) for value in self[:-1]] == _KINDS
            and all(type(name) is str for name in self.tied)
            and all(type(n) is int and n in _SIZES for n in (self.kept, self.bytes, *self.shape))
            and len(self.shape) <= 64
            and math.prod(max(n, 1) for n in self.shape) in _SIZES
        )


_KINDS = [str, list, list, int, bool, str, str, int, str]


def read(source: PathOrFile, caller: str, most: int) -> tuple[str, int, dict[str, Row]]:
    """What errors call the file, its version, its rows by every name; `ValueError` if it is not as
    written, or longer than masks of `most` entries take."""
    if isinstance(source, str | os.PathLike):
        with open(os.fsdecode(source), "rb") as file:
            return read(file, caller, most)
    called, limit, content = _checked(source, caller, "rb"), most // 4 + _SPARE, bytearray()
    while piece := source.read(2**20):
        content += piece
        if len(content) > limit:
            raise ValueError(
                f"{caller}() expected at most {limit} bytes from {called}, more than masks of "
                f"{most} entries take, found more. Is it a mask file, and of this model?"
            )
    try:
        header, masks, digest = _arrays(content)
        described = json.loads(bytes(header))
        if not isinstance(described, dict) or described.get("format") != _FORMAT:
            raise ValueError(f"a header that does not say format={_FORMAT!r}")
        version = described.get("version")
        if type(version) is not int or version < 1:
            raise ValueError("a header without a format version")
        if version <= _VERSION:
            if digest != hashlib.sha256(bytes(header) + masks).digest():
                raise ValueError("a digest that is not that of its contents")
            return called, version, _rows(described, version, masks)
    except Exception as error:  # whatever the readers of zip, npy and JSON raise
        found = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise unreadable(caller, called, found) from error
    raise ValueError(
        f"{caller}() can't read {called}: expected format version {_VERSION} at most, found "
        f"version {version}, of a newer masktorch. Upgrade masktorch."
    )


def unreadable(caller: str, called: str, found: str) -> ValueError:
    return ValueError(
        f"{caller}() can't read {called}: expected a file that masktorch.save_masks wrote, found "
        f"{found}. If it was one, it is damaged: copy or save it again."
    )


def some(names: list[str]) -> str:
    """The first few of some names, and how many there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"


def _arrays(content: bytearray) -> list[memoryview]:
    """The three arrays of a file. What a damaged one claims to hold is not allocated."""
    if not content:
        raise ValueError("nothing (a stream is read on from where it stands: seek(0) first)")
    if not zipfile.is_zipfile(file := io.BytesIO(content)):
        early = f"one that ends early, after {len(content)} bytes"
        raise ValueError(early if content.startswith(b"PK\x03\x04") else "no .npz file")
    archive, arrays = zipfile.ZipFile(file), []
    if sorted(names := archive.namelist()) != sorted(_ENTRIES):
        raise ValueError(f"the entries {some(names)} in place of {some(_ENTRIES)}")
    if archive.infolist()[0].header_offset or content[-22:-18] != b"PK\x05\x06":
        raise ValueError("other bytes before or after it, another file perhaps")
    for name in _ENTRIES:
        entry = archive.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"an entry {name!r} that is neither stored nor deflated")
        if entry.file_size > _INFLATED + len(content):
            raise ValueError(f"an entry {name!r} that is too large")
        npy = io.BytesIO(archive.open(entry).read(entry.file_size))  # inflates no more than that
        np.lib.format.read_magic(npy)
        shape, _, dtype = np.lib.format.read_array_header_1_0(npy)
        arrays.append(npy.getbuffer()[npy.tell() :])
        if dtype != np.uint8 or shape != (len(arrays[-1]),):
            raise ValueError(f"an entry {name!r} of {dtype} and shape {shape}")
    return arrays


def _rows(described: dict[str, Any], version: int, masks: memoryview) -> dict[str, Row]:
    since: dict[str, Any] = {"tied": [], "coding": "gaps"} if version == 1 else {}
    try:
        rows = [Row(**since, **row) for row in described["tensors"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"a header of other fields: {error}") from error
    named: dict[str, Row] = {}
    end = 0
    for i, row in enumerate(rows):
        if not row.is_valid():
            raise ValueError(f"a field of the wrong kind in its header for tensor {i}")
        coded = row._replace(code=masks[end : end + row.bytes])
        end += row.bytes
        for name in (row.name, *row.tied):
            if name in named:
                raise ValueError("two tensors of one name in its header")
            named[name] = coded
    if end != len(masks):
        raise ValueError(f"{len(masks)} bytes of masks, not the {end} of its header")
    return named


def _checked(file: BinaryIO, caller: str, mode: str) -> str:
    """What errors call a stream, if it is one."""
    if not hasattr(file, "read" if mode == "rb" else "write") or hasattr(file, "encoding"):
        found = "one of text" if hasattr(file, "encoding") else type(file).__name__
        raise TypeError(f"{caller}() expected a path or a file of bytes ({mode!r}), found {found}.")
    name = getattr(file, "name", None)
    called = repr(name) if isinstance(name, str) else f"a {type(file).__name__}"
    if getattr(file, "closed", False):
        raise ValueError(f"{caller}() expected an open file, found a closed one ({called}).")
    return called


def write(target: PathOrFile, rows: list[Row]) -> None:
    """All of the file, or at its path the one that was there."""
    described = {
        "format": _FORMAT,
        "version": _VERSION,
        "masktorch": sys.modules["masktorch"].__version__,
        "tensors": [dict(zip(Row._fields[:-1], row, strict=False)) for row in rows],
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    code = b"".join(row.code for row in rows)
    parts = text, code, hashlib.sha256(text + code).digest()
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name, part in zip(_ENTRIES, parts, strict=True):
            np.save(array := io.BytesIO(), np.frombuffer(part, np.uint8))
            method = zipfile.ZIP_DEFLATED if len(part) <= _SMALL else zipfile.ZIP_STORED
            # of a set date: equal masks give equal files
            archive.writestr(zipfile.ZipInfo(name), array.getbuffer(), method)
    if isinstance(target, str | os.PathLike):
        _replace(os.path.realpath(os.fsdecode(target)), file.getvalue())
    else:
        _checked(target, "save_masks", "wb")
        _send(target, file.getvalue())


def _replace(path: str, content: bytes) -> None:
    """Writes beside a path and renames, or straight into what is no file (a pipe, a device)."""
    is_there = os.path.exists(path)
    beside = os.path.join(os.path.dirname(path), f".masktorch-{secrets.token_hex(8)}.tmp")
    try:
        if is_there and not os.path.isfile(path):
            with open(path, "wb") as pipe:
                return _send(pipe, content)
        with open(beside, "xb") as file:
            if is_there:
                shutil.copymode(path, beside)  # before there is anything to read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        hint = " Make its folder first." if error.errno == errno.ENOENT else ""
        message = f"save_masks() can't write this file ({error.strerror or error}).{hint}"
        raise OSError(error.errno, message, path) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(beside)


def _send(file: BinaryIO, content: bytes) -> None:
    while content:
        written = file.write(content)  # an unbuffered file may take a part of it, or nothing now
        if written is None and not isinstance(file, io.RawIOBase):
            return  # a file of the user's own that does not count
        if not written:
            raise BlockingIOError(errno.EAGAIN, "save_masks() met a stream that takes no more")
        content = content[written:]
