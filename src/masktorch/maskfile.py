"""Masks in a file: about their entropy in bytes, checked against the weights they belong to.

A mask file is a numpy `.npz` of three uint8 arrays:

- `header`: JSON, the format and its version, and a row for each tensor (`_Row` below);
- `masks`: the coded masks, one after the other, in the order of the rows;
- `digest`: SHA-256 of `header` and `masks`, so that nothing in them changes unnoticed.

A mask is coded as the positions of the rarer kind of its entries, kept or masked: from one to the
next, the number of entries between them as a byte. The byte 255 passes 255 entries by and goes on.
The bytes are deflated, symbol by symbol (Huffman), which is close to the entropy where entries are
independent.
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import secrets
import sys
import zipfile
import zlib
from typing import BinaryIO, NamedTuple, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch.mask import is_sharded
from masktorch.model import Model, masked_tensors
from masktorch.targets import plain_name
from masktorch.values import set_masks
from masktorch.wrapping import give_masks

Path = str | os.PathLike[str]
Bools = npt.NDArray[np.bool_]

_FORMAT, _VERSION = "masktorch masks", 1
_ARRAYS = ("header", "masks", "digest")
_INFLATED = 2**24  # bytes an array may be larger than its whole file: only the header shrinks
_PASS = 255  # the byte that stands for 255 entries and none of the rarer kind
_PIECE = 2**18  # entries coded at a time, which keeps memory small


class _Row(NamedTuple):
    """What the header says of one tensor."""

    name: str
    shape: list[int]
    kept: int  # entries kept; at most half of them: their positions are coded, else the others'
    rescale: bool
    estimator: str  # its repr, for the reader; a mask is a mask
    bytes: int  # of its coded mask
    fingerprint: str  # of the tensor under the mask

    def is_valid(self) -> bool:
        """Whether every field is of its kind, as it need not be in a file."""
        kinds = [get_origin(kind) or kind for kind in get_type_hints(_Row).values()]
        numbers = [self.kept, self.bytes, *(self.shape if type(self.shape) is list else [])]
        return [type(value) for value in self] == kinds and all(
            type(number) is int and number >= 0 for number in numbers
        )


def save_masks(model: nn.Module, path: Path) -> None:
    """Writes the deterministic masks of a wrapped model to a file of about their entropy.

    The file, a numpy `.npz`, also holds a fingerprint of each tensor under a mask, by which
    `load_masks` tells whether it meets the same weights. It is written beside `path` and then
    renamed: a crash leaves the old file. The path is used as given, nothing is appended.

    Raises `ValueError` if nothing is masked or a tensor is on the meta device.

    Examples:
        >>> import os, tempfile
        >>> from masktorch import wrap
        >>> path = tempfile.mkdtemp() + "/masks.npz"
        >>> save_masks(wrap(nn.Linear(1000, 1000)), path)  # everything kept: next to no bytes
        >>> os.path.getsize(path) < 1500
        True
    """
    rows, coded = [], []
    for mask, (place, *_) in masked_tensors(model, "save_masks"):
        if place.parameter.is_meta:
            raise ValueError(f"save_masks() can't save the mask of {place.name!r}: {_NO_VALUES}")
        if is_sharded(place.parameter):
            raise ValueError(f"save_masks() can't save the mask of {place.name!r}: {_SHARDED}")
        kept = mask.mode().cpu().numpy()
        coded.append(_encode(kept.ravel()))
        rows.append(
            _Row(
                name=place.name,
                shape=list(kept.shape),
                kept=int(np.count_nonzero(kept)),
                rescale=mask.rescale,
                estimator=repr(mask.estimator),
                bytes=len(coded[-1]),
                fingerprint=_fingerprint(place.parameter),
            )
        )
    version = sys.modules["masktorch"].__version__
    described = {"format": _FORMAT, "version": _VERSION, "masktorch": version}
    header = json.dumps({**described, "tensors": [row._asdict() for row in rows]}).encode()
    masks = b"".join(coded)
    arrays = (header, masks, hashlib.sha256(header + masks).digest())
    _write(path, {k: np.frombuffer(v, np.uint8) for k, v in zip(_ARRAYS, arrays, strict=True)})


def load_masks(model: Model, path: Path, *, any_weights: bool = False) -> Model:
    """Puts the masks of a file on a model, in place.

    A plain model gets masks that do not learn, a bool per entry. The masked tensors of a wrapped
    one must be those of the file; their scores move as by `masktorch.set_masks`, so that learning
    can go on (a frozen mask stays frozen).

    Args:
        model: a plain or a wrapped model. Nothing in it changes if an error is raised.
        path: a file that `save_masks` wrote.
        any_weights: accept weights other than those the masks were saved over.

    Raises `ValueError` where the file is damaged, is none of `save_masks` or of a newer format,
    and where its tensors, their shapes, `rescale` or fingerprints are not those of the model.

    Examples:
        >>> import tempfile
        >>> from masktorch import wrap
        >>> path = tempfile.mkdtemp() + "/masks.npz"
        >>> layer = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> save_masks(layer, path)
        >>> plain = nn.Linear(2, 1)
        >>> _ = plain.load_state_dict(layer.state_dict(), strict=False)
        >>> load_masks(plain, path).parametrizations.weight.mode()
        tensor([[ True, False]])
    """
    path = os.fsdecode(path)
    rows, coded = _read(path)
    try:
        wrapped = masked_tensors(model, "load_masks")
    except ValueError:  # nothing is masked: a plain model
        wrapped = []
    rescaled = {place.name: mask.rescale for mask, (place, *_) in wrapped}
    tensors = {place.name: place.parameter for _, (place, *_) in wrapped}
    tensors = tensors or {plain_name(name): p for name, p in model.named_parameters()}
    _check(path, rows, tensors, rescaled, any_weights)
    masks = {}
    for row, code in zip(rows, coded, strict=True):
        try:
            mask = _decode(code, row.kept, math.prod(row.shape))
        except (ValueError, zlib.error) as error:
            raise _unreadable(path, f"for {row.name!r} {error}") from error
        masks[row.name] = torch.from_numpy(mask).view(row.shape)
    try:
        if wrapped:
            return set_masks(model, masks)
        rescale = {row.name: row.rescale for row in rows}
        return give_masks(model, masks, rescale=rescale, caller="load_masks")
    except ValueError as error:  # another parametrization, an estimator that can't express it
        raise _unfit(path, str(error)) from error


_NO_VALUES = (
    "it has no values yet (a lazy module or the meta device). Run a batch through the lazy module "
    "or load its weights first."
)


_SHARDED = (
    "each process holds a part of it (FSDP2). Load masks before fully_shard; to save them, gather "
    "the state dict into a plain wrapped model (see docs/distributed.md)."
)


def _check(
    path: str,
    rows: list[_Row],
    tensors: dict[str, nn.Parameter],
    rescaled: dict[str, bool],
    any_weights: bool,
) -> None:
    """Raises where the rows of a file and the tensors of a model do not belong together.

    `rescaled` is that of the masked tensors of a wrapped model, empty for a plain one.
    """
    names = [row.name for row in rows]
    missing = [name for name in names if name not in tensors]
    if missing or (rescaled and len(rescaled) != len(names)):
        extra = [name for name in rescaled if name not in names]
        raise _unfit(
            path,
            f"expected {'its masked tensors' if rescaled else 'parameters'} by the names in the "
            "file. "
            + (f"In the file only: {_some(missing)}. " if missing else "")
            + (f"Masked in the model only: {_some(extra)}. " if extra else "")
            + ("Wrap the same tensors (targets=[...]), or unwrap the model first." if rescaled else
               "Build the model that the masks were saved from."),
        )  # fmt: skip
    for name, shape, _, rescale, *_ in rows:
        if is_lazy(tensors[name]) or tensors[name].is_meta:
            raise _unfit(path, f"{name!r} needs its weights: {_NO_VALUES}")
        if is_sharded(tensors[name]):
            raise _unfit(path, f"{name!r} needs all its weights: {_SHARDED}")
        if shape != list(tensors[name].shape):
            raise _unfit(
                path,
                f"expected shape {tuple(tensors[name].shape)} for {name!r}, found {tuple(shape)} "
                "in the file. Build the model that the masks were saved from.",
            )
        if rescale != rescaled.get(name, rescale):
            raise _unfit(
                path,
                f"expected rescale={rescaled[name]} for {name!r}, found rescale={rescale} in the "
                f"file, with which the layer computes something else. Wrap the model with "
                f"rescale={rescale}.",
            )
    found = {row.name: _fingerprint(tensors[row.name]) for row in rows}
    other = [row for row in rows if row.fingerprint != found[row.name]]
    if other and not any_weights:
        name, expected = other[0].name, other[0].fingerprint
        raise _unfit(
            path,
            f"expected the weights that the masks were saved over, found others in {len(other)} of "
            f"{len(rows)} tensors: {_some([row.name for row in other])} (fingerprint {expected} in "
            f"the file for {name!r}, {found[name]} in the model). Load those weights first, or "
            "accept these with load_masks(model, path, any_weights=True).",
        )


def _encode(mask: Bools) -> bytes:
    """The code of a flat mask."""
    kept = int(np.count_nonzero(mask))
    # Where there are many passes, runs of them are coded as such (measured: smaller from here on).
    runs = min(kept, mask.size - kept) * 6 * _PASS < mask.size
    strategy = zlib.Z_RLE if runs else zlib.Z_HUFFMAN_ONLY
    deflate = zlib.compressobj(wbits=-15, memLevel=9, strategy=strategy)
    code, last = [], -1
    for start in range(0, mask.size, _PIECE):
        rare = np.flatnonzero(mask[start : start + _PIECE] == _rare_is_kept(kept, mask.size))
        between = np.diff(rare + start, prepend=last) - 1
        last += int(between.sum()) + rare.size
        passes = between // _PASS
        steps = np.full(rare.size + passes.sum(), _PASS, np.uint8)
        steps[np.cumsum(passes + 1) - 1] = between % _PASS
        code.append(deflate.compress(steps.tobytes()))
    return b"".join([*code, deflate.flush()])


def _decode(code: bytes, kept: int, size: int) -> Bools:
    """The flat mask of `size` entries, `kept` of them True; raises where the code is not that."""
    count = min(kept, size - kept)
    most = max(count, 0) + size // _PASS  # bytes that the steps can take
    inflate = zlib.decompressobj(wbits=-15)
    steps = np.frombuffer(inflate.decompress(code, most + 1), np.uint8)
    entry = steps != _PASS
    rare = np.cumsum(steps + entry, dtype=np.int64)[entry] - 1
    ended = inflate.eof and not inflate.unused_data
    if not ended or rare.size != count or (count and rare[-1] >= size):
        raise ValueError(f"a code that is not of a mask with {kept} of {size} entries kept")
    mask = np.full(size, not _rare_is_kept(kept, size))
    mask[rare] = _rare_is_kept(kept, size)
    return mask


def _rare_is_kept(kept: int, size: int) -> bool:
    return 2 * kept <= size


def _fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values in row-major order, the first 32 hex digits."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


def _write(path: Path, arrays: dict[str, npt.NDArray[np.uint8]]) -> None:
    """All of the file, or the one that was there."""
    path = os.path.realpath(os.fsdecode(path))
    beside = os.path.join(os.path.dirname(path), f".masktorch-{secrets.token_hex(8)}.tmp")
    try:
        with open(beside, "xb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(beside)
        raise


def _read(path: str) -> tuple[list[_Row], list[bytes]]:
    """The rows of a file and their coded masks; raises `ValueError` where it is not as written."""
    with open(path, "rb") as file:
        try:
            header, masks, digest = _arrays(file)
            described = json.loads(header)
        except Exception as error:  # whatever the readers of zip, npy and JSON raise
            raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise _unreadable(path, f"a header that does not say format={_FORMAT!r}")
    version = described.get("version")
    if type(version) is not int or version < 1:
        raise _unreadable(path, "a header without a format version")
    if version > _VERSION:
        raise ValueError(
            f"load_masks() can't read {path!r}: expected format version {_VERSION}, found version "
            f"{version}, of a newer masktorch. Upgrade masktorch."
        )
    if digest != hashlib.sha256(header + masks).digest():
        raise _unreadable(path, "a digest that is not that of its contents")
    try:
        rows = [_Row(**row) for row in described["tensors"]]
    except (KeyError, TypeError) as error:
        raise _unreadable(path, f"a header of other fields: {error}") from error
    for i, row in enumerate(rows):
        if not row.is_valid():
            raise _unreadable(path, f"a field of the wrong kind in its header for tensor {i}")
    if len({row.name for row in rows}) != len(rows):
        raise _unreadable(path, "two tensors of one name in its header")
    ends = [0, *itertools.accumulate(row.bytes for row in rows)]
    if ends[-1] != len(masks):
        raise _unreadable(path, f"{len(masks)} bytes of masks, not the {ends[-1]} of its header")
    return rows, [masks[start:end] for start, end in itertools.pairwise(ends)]


def _arrays(file: BinaryIO) -> list[bytes]:
    """The three arrays of a file. What a damaged one claims to hold is not allocated."""
    most = os.fstat(file.fileno()).st_size + _INFLATED
    with zipfile.ZipFile(file) as archive:
        names, expected = archive.namelist(), [f"{name}.npy" for name in _ARRAYS]
        if sorted(names) != sorted(expected):
            raise ValueError(f"the entries {_some(names)} in place of {_some(expected)}")
        arrays = []
        for name in expected:
            if archive.getinfo(name).file_size > most:
                raise ValueError(f"an entry {name!r} that is too large")
            array = io.BytesIO(archive.read(name))
            np.lib.format.read_magic(array)
            shape, _, dtype = np.lib.format.read_array_header_1_0(array)
            arrays.append(array.read())
            if dtype != np.uint8 or shape != (len(arrays[-1]),):
                raise ValueError(f"an entry {name!r} of {dtype} and shape {shape}")
    return arrays


def _unreadable(path: str, found: str) -> ValueError:
    return ValueError(
        f"load_masks() can't read {path!r}: expected a file that masktorch.save_masks wrote, found "
        f"{found}. If it was one, it is damaged: copy or save it again."
    )


def _unfit(path: str, why: str) -> ValueError:
    return ValueError(f"load_masks() can't put the masks of {path!r} on this model: {why}")


def _some(names: list[str]) -> str:
    """The first few of some names, and how many there are."""
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)} in all)"
