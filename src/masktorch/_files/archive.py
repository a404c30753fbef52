"""Read and write a mask file: a numpy `.npz` of three arrays of bytes.

`header` is JSON: format, version, and what each `StoredMask` says of its tensor.
`masks` are their codes in the same order. `digest` is the SHA-256 of both.
docs/maskfiles.md describes the fields.

A file may come from anyone. Nothing in it is believed before it is checked, and no
memory is allocated because a file claims to need it.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import reprlib
import secrets
import shutil
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from typing_extensions import TypeIs

PathOrFile = str | os.PathLike[str] | BinaryIO

_FORMAT = "masktorch masks"
_VERSION = 3
# Fields that files of a version leave out, and what that means.
_LEFT_OUT: dict[int, dict[str, Any]] = {
    1: {"tied": [], "dtype": None, "coding": "gaps"},
    2: {"dtype": None},
    3: {},
}

_ARRAYS = ("header.npy", "masks.npy", "digest.npy")
_ZIP_START = b"PK\x03\x04"
_ZIP_END = b"PK\x05\x06"  # begins the record that ends an archive
_ZIP_END_SIZE = 22  # bytes of that record, without a comment
_NPY_SIZE = slice(8, 10)  # of the rest of an npy header, little-endian

_PIECE = 2**20  # bytes read from a stream at a time
_SPARE = 2**24  # bytes that a file may have besides those of its masks

# A reader inflates an array to at most this many bytes more than the whole file has, so
# a header of that size may be deflated. Codes are as good as random, except where small
# masks resemble each other.
_MAX_EXTRA_INFLATED = 2**20
_MAX_CODES_TO_DEFLATE = 2**16

_LONGEST_DTYPE = 49  # characters of the name of a dtype
_MOST_DIMENSIONS = 64  # of a numpy array
_LARGEST = 2**63 - 1  # number in a header


Code = bytes | memoryview

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 200
short = _repr.repr  # for messages: a file may have values of a megabyte


class StoredMask(NamedTuple):
    """A mask in a file, with what the header says of its tensor."""

    name: str
    tied: list[str]  # its other names
    shape: list[int]
    dtype: str | None  # of the weights, such as "float32"; None in old versions
    kept: int  # how many entries
    rescale: bool
    estimator: str  # its repr, for people
    coding: str
    bytes: int  # of the code
    fingerprint: str  # of the weights
    code: Code  # not in the header


class MaskFile(NamedTuple):
    version: int
    masks: list[StoredMask]


class _Arrays(NamedTuple):
    header: memoryview
    masks: memoryview
    digest: memoryview


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_shape(value: Any) -> bool:
    few = isinstance(value, list) and len(value) <= _MOST_DIMENSIONS
    return few and all(map(_is_count, value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dtype(value: Any) -> bool:
    is_name = isinstance(value, str) and value.isidentifier()
    return is_name and len(value) <= _LONGEST_DTYPE


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{32}", value) is not None


class _Check(NamedTuple):
    holds: Callable[[Any], bool]
    expected: str


# The fields that the header has for each tensor.
_CHECKS = {
    "name": _Check(_is_text, "a string"),
    "tied": _Check(_is_texts, "a list of strings"),
    "shape": _Check(_is_shape, f"a list of at most {_MOST_DIMENSIONS} sizes"),
    "dtype": _Check(_is_dtype, "the name of a dtype"),
    "kept": _Check(_is_count, "a number of entries"),
    "rescale": _Check(_is_flag, "true or false"),
    "estimator": _Check(_is_text, "a string"),
    "coding": _Check(_is_text, "a string"),
    "bytes": _Check(_is_count, "a number of bytes"),
    "fingerprint": _Check(_is_fingerprint, "32 hex digits"),
}


# -- reading: the bytes ----------------------------------------------------------------


def read(source: PathOrFile, most_entries: int) -> MaskFile:
    """Read a file whose masks have at most `most_entries` entries in all.

    Raises:
        ValueError: it is not a mask file, or damaged, or of a newer version.
        TypeError: `source` is neither a path nor a file of bytes.
        OSError: nothing can be read.
    """
    most_bytes = most_entries // 4 + _SPARE  # twice the bits of the masks, and a header
    if _is_stream(source, "read"):
        return _read_stream(source, most_bytes)
    path = os.fspath(source)
    if os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR,
            "expected a mask file, found a folder: name a file in it",
            path,
        )
    with open(path, "rb") as file:
        return _parsed(_content(file, most_bytes))


def _is_stream(path_or_file: PathOrFile, method: str) -> TypeIs[BinaryIO]:
    """Tell an open file from a path; a path object may have methods of a file."""
    return not isinstance(path_or_file, os.PathLike) and hasattr(path_or_file, method)


def _read_stream(stream: BinaryIO, most_bytes: int) -> MaskFile:
    content = _content(stream, most_bytes)
    if not content.startswith(_ZIP_START):
        raise _foreign(
            f"{_described(content)}, read from the stream's position to its end. If it "
            "was not at its start, call seek(0) first"
        )
    return _parsed(content)


def _content(stream: BinaryIO, most: int) -> bytes:
    """Read a stream to its end; raise if it has more than `most` bytes."""
    content = bytearray()
    while (piece := stream.read(_PIECE)) != b"":
        if piece is None:
            raise BlockingIOError("the stream has no bytes for now: make it block")
        if isinstance(piece, str):
            raise TypeError(
                "expected a file of bytes, found one of str: open it with mode 'rb'"
            )
        content += piece
        if len(content) > most:
            raise ValueError(
                f"expected a mask file of at most {most} bytes, which is enough for "
                "these tensors, found more."
            )
    return bytes(content)


def _parsed(content: bytes) -> MaskFile:
    arrays = _arrays(content)
    header = _header(arrays.header)
    version = _version(header)
    digest = hashlib.sha256(bytes(arrays.header) + arrays.masks).digest()
    if arrays.digest != digest:
        raise damaged("its contents do not match their digest")
    return MaskFile(version, _stored_masks(header, version, arrays.masks))


def _foreign(found: str) -> ValueError:
    return ValueError(
        f"expected a file that masktorch.save_masks wrote, found {found}. Pass what "
        "save_masks(model, path_or_file) wrote."
    )


def damaged(how: str) -> ValueError:
    return ValueError(
        f"the mask file is damaged: {how}. Copy it again, or save it again with "
        "masktorch.save_masks."
    )


# -- reading: the archive --------------------------------------------------------------


def _arrays(content: bytes) -> _Arrays:
    archive = _opened(content)
    _check_names(archive.namelist())
    first_entry_offset = archive.infolist()[0].header_offset
    ends_with_archive = content[-_ZIP_END_SIZE:].startswith(_ZIP_END)
    if first_entry_offset != 0 or not ends_with_archive:
        raise damaged("it has other bytes before or after it")
    return _Arrays(*(_array(archive, name, len(content)) for name in _ARRAYS))


def _opened(content: bytes) -> zipfile.ZipFile:
    """Open a zip archive in memory."""
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:  # a damaged archive raises almost anything in zipfile
        if not content.startswith(_ZIP_START):
            raise _foreign(_described(content)) from error
        raise damaged(
            f"its {len(content)} bytes are not a whole zip archive ({error})"
        ) from error


def _described(content: bytes) -> str:
    if not content:
        return "0 bytes"
    return f"{len(content)} bytes that start with {content[:8]!r}"


def _check_names(names: list[str]) -> None:
    if set(_ARRAYS) <= set(names):
        return
    if any(name.endswith("/data.pkl") for name in names):
        raise _foreign(
            "a PyTorch checkpoint: read it with torch.load and, if it is a state_dict, "
            "load it with model.load_state_dict"
        )
    raise _foreign(f"a zip archive of {short(names)}")


def _array(archive: zipfile.ZipFile, name: str, file_size: int) -> memoryview:
    """Inflate an array to the size that it declares, and skip its npy header."""
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise damaged(f"{name!r} is compressed by another method than deflate")
    if entry.file_size > file_size + _MAX_EXTRA_INFLATED:
        raise damaged(f"{name!r} claims to have {entry.file_size} bytes")
    try:
        npy = archive.open(entry).read(entry.file_size)
    except Exception as error:  # as above
        raise damaged(f"{name!r} cannot be read ({error})") from error
    start = _NPY_SIZE.stop + int.from_bytes(npy[_NPY_SIZE], "little")
    return memoryview(npy)[start:]


# -- reading: the header ---------------------------------------------------------------


def _header(text: memoryview) -> dict[str, Any]:
    try:
        header = json.loads(bytes(text))
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _foreign("an archive with a header of another kind")
    return header


def _version(header: dict[str, Any]) -> int:
    version: Any = header.get("version")
    if not _is_count(version) or version == 0:
        raise damaged(f"its format version is {short(version)}")
    if version > _VERSION:
        raise ValueError(
            f"expected a mask file of format version {_VERSION} or older, found "
            f"version {version}, which a newer masktorch wrote: upgrade masktorch."
        )
    return int(version)


def _stored_masks(
    header: dict[str, Any], version: int, codes: memoryview
) -> list[StoredMask]:
    rows = header.get("tensors")
    if not isinstance(rows, list):
        raise damaged(f"its header has no list of tensors, but {short(rows)}")
    masks = []
    end = 0
    for index, row in enumerate(rows):
        fields = _checked_fields(row, version, f"tensor {index} of its header")
        start, end = end, end + fields["bytes"]
        masks.append(StoredMask(**fields, code=codes[start:end]))
    if end != len(codes):
        raise damaged(f"its masks have {len(codes)} bytes, its header says {end}")
    _check_unique([name for mask in masks for name in (mask.name, *mask.tied)])
    return masks


def _checked_fields(row: Any, version: int, where: str) -> dict[str, Any]:
    """Check what a header says of one tensor, and add what old versions leave out."""
    if not isinstance(row, dict):
        raise damaged(f"{where} is {short(row)}")
    left_out = _LEFT_OUT[version]
    expected = [field for field in _CHECKS if field not in left_out]
    missing = [field for field in expected if field not in row]
    unknown = [field for field in row if field not in expected]
    if missing:
        raise damaged(f"{where} lacks {missing}")
    if unknown:
        raise damaged(f"{where} has unknown fields {short(unknown)}")
    for field in expected:
        check = _CHECKS[field]
        if not check.holds(row[field]):
            raise damaged(
                f"expected {field!r} to be {check.expected} in {where}, found "
                f"{short(row[field])}"
            )
    return {**left_out, **row}


def _check_unique(names: list[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise damaged(f"its header names {short(name)} twice")
        seen.add(name)


# -- writing ---------------------------------------------------------------------------


def check_target(target: PathOrFile) -> None:
    """Raise if nothing can be written there, before any work is done for it."""
    if _is_stream(target, "write"):
        if isinstance(target, io.TextIOBase):
            raise TypeError(
                "save_masks() expected a file of bytes, found one of str: open it with "
                "mode 'wb'"
            )
        return
    path = _real_path(target)
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(
            errno.EISDIR,
            "save_masks() expected the path of a file, found a folder: add a file name",
            path,
        )
    if not os.path.exists(folder):
        raise FileNotFoundError(
            errno.ENOENT,
            f"save_masks() found no folder {folder!r}: call os.makedirs for it first",
            path,
        )


def write(target: PathOrFile, masks: list[StoredMask]) -> None:
    """Write a whole file, or leave the one that was at its path."""
    content = _archived(masks)
    if _is_stream(target, "write"):
        _write_to_stream(target, content)
    else:
        _write_to_path(_real_path(target), content)


def _real_path(target: str | os.PathLike[str]) -> str:
    """Find where a path leads, so that a symbolic link stays one."""
    return os.path.realpath(os.fsdecode(target))


def _archived(masks: list[StoredMask]) -> bytes:
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        # The top floor cannot be imported from here.
        "masktorch": sys.modules["masktorch"].__version__,
        "tensors": [
            {field: getattr(mask, field) for field in _CHECKS} for mask in masks
        ],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    codes = b"".join(mask.code for mask in masks)
    digest = hashlib.sha256(text + codes).digest()
    most_deflated = (_MAX_EXTRA_INFLATED, _MAX_CODES_TO_DEFLATE, len(digest))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, array, most in zip(
            _ARRAYS, (text, codes, digest), most_deflated, strict=True
        ):
            deflates = len(array) <= most
            archive.writestr(
                zipfile.ZipInfo(name),  # with a constant date: equal masks, equal files
                _npy(array),
                zipfile.ZIP_DEFLATED if deflates else zipfile.ZIP_STORED,
            )
    return file.getvalue()


def _npy(array: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.frombuffer(array, np.uint8))
    return file.getvalue()


def _write_to_stream(stream: BinaryIO, content: bytes) -> None:
    """Write all bytes, also to an unbuffered stream that takes a part at a time."""
    while content:
        written = stream.write(content)
        if written is None and not isinstance(stream, io.RawIOBase):
            return  # a class of the user's own, which does not count
        if not written:
            raise BlockingIOError(
                "save_masks() found a stream that takes no more bytes for now: make it "
                "block, or save to io.BytesIO() and send its bytes"
            )
        content = content[written:]


def _write_to_path(path: str, content: bytes) -> None:
    """Replace a file in one step; write straight to a pipe or a device."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as device:
            device.write(content)
        return
    # Not made from the file's own name, which may be as long as names can be.
    temporary = os.path.join(
        os.path.dirname(path), f".masktorch-{secrets.token_hex(8)}.tmp"
    )
    try:
        with open(temporary, "xb") as file:
            if os.path.exists(path):
                shutil.copymode(path, temporary)  # before there is anything to read
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)
