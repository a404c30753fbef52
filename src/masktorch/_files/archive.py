"""A mask file as bytes: a numpy `.npz` of three uint8 arrays, read with suspicion, written whole.

`header` is JSON: format, version and a `Row` for each tensor; `masks` their codes in that order;
`digest` the SHA-256 of both. Format 1, still read, had one coding and no names of tied tensors.
"""

import contextlib
import hashlib
import io
import json
import os
import secrets
import shutil
import sys
import zipfile
from typing import Any, BinaryIO, NamedTuple

import numpy as np

PathOrFile = str | os.PathLike[str] | BinaryIO

_FORMAT, _VERSION = "masktorch masks", 2
_IMPLIED: dict[int, dict[str, Any]] = {
    1: {"tied": [], "coding": "gaps"},
    2: {},
}  # by version
_ENTRIES = ["header.npy", "masks.npy", "digest.npy"]
_SMALL = 2**16  # bytes of an array up to which it is deflated
_INFLATED = 2**20  # bytes that an array may have beyond those of its file
_SPARE = 2**24  # bytes that a file may have beyond those of its masks


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
    code: Any = b""  # bytes, not in the header


def read(source: PathOrFile, most: int) -> tuple[int, list[Row]]:
    """The version and the rows of a file, which has masks of at most so many entries in all."""
    if isinstance(source, os.PathLike) or not hasattr(source, "read"):
        with open(os.fspath(source), "rb") as file:
            return read(file, most)
    limit, content = most // 4 + _SPARE, bytearray()
    while len(content) <= limit and (piece := source.read(2**20)):
        content += piece
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        if archive.infolist()[0].header_offset or content[-22:-18] != b"PK\x05\x06":
            raise ValueError("other bytes before or after it")
        header, masks, digest = (
            _array(archive, name, len(content)) for name in _ENTRIES
        )
        described = json.loads(bytes(header))
        if (version := described["version"]) > _VERSION:
            raise ValueError(
                f"format version {version}, not {_VERSION} at most: upgrade masktorch"
            )
        whole = digest == hashlib.sha256(bytes(header) + masks).digest()
        if described["format"] != _FORMAT or not whole:
            raise ValueError(
                "another format, or a digest that is not that of its contents"
            )
        return version, _rows(described["tensors"], _IMPLIED[version], masks)
    except Exception as error:  # whatever the readers of zip and JSON raise
        raise ValueError(
            f"expected a file that masktorch.save_masks wrote, of at most {limit} bytes, found "
            f"{len(content)} bytes that are none ({type(error).__name__}: {error}). If damaged, "
            "copy or save it again. A stream is read from where it stands: seek(0) first."
        ) from error


def _array(archive: zipfile.ZipFile, name: str, size: int) -> memoryview:
    """The bytes of an array, without its npy header, in a file of that size."""
    entry = archive.getinfo(name)
    inflatable = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not inflatable or entry.file_size > _INFLATED + size:
        raise ValueError(
            f"an entry {name!r} that is too large, or neither stored nor deflated"
        )
    npy = archive.open(entry).read(entry.file_size)  # inflates no more than that
    return memoryview(npy)[10 + int.from_bytes(npy[8:10], "little") :]


def _rows(
    tensors: list[dict[str, Any]], implied: dict[str, Any], masks: memoryview
) -> list[Row]:
    rows: list[Row] = []
    end = 0
    for fields in tensors:
        row = Row(**implied, **fields)
        counts = [row.kept, row.bytes, *row.shape]
        kinds = [type(row.rescale), *map(type, counts)] == [bool] + [int] * len(counts)
        if not kinds or len(counts) > 64 or min(counts) < 0:
            raise ValueError(
                f"a field of the wrong kind in its header for tensor {len(rows)}"
            )
        rows.append(row._replace(code=masks[end : end + row.bytes]))
        end += row.bytes
    names = [name for row in rows for name in (row.name, *row.tied)]
    if end != len(masks) or len(set(names)) < len(names) or {*map(type, names)} - {str}:
        raise ValueError(
            "a header of other masks, or with a name twice or of another kind"
        )
    return rows


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
            archive.writestr(
                zipfile.ZipInfo(name), array.getbuffer(), method
            )  # of a set date
    content = file.getvalue()
    if isinstance(target, os.PathLike) or not hasattr(target, "write"):
        _replace(os.path.realpath(os.fsdecode(target)), content)
    else:
        while content:  # an unbuffered file may take a part of it
            written = target.write(content)
            if written == 0 or (written is None and isinstance(target, io.RawIOBase)):
                raise BlockingIOError(
                    "save_masks() met a stream that takes no more for now"
                )
            content = content[
                written or len(content) :
            ]  # one of the user's own need not count


def _replace(path: str, content: bytes) -> None:
    """Writes beside a path and renames, or straight into what is no file (a pipe, a device)."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as pipe:
            pipe.write(content)
        return
    beside = f"{path}.{secrets.token_hex(8)}.tmp"
    try:
        with open(beside, "xb") as file:
            if os.path.exists(path):
                shutil.copymode(path, beside)  # before there is anything to read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(beside)
