"""Masks in a file: about their entropy in bytes, checked against the weights they belong to."""

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch.archive import PathOrFile, Row, read, some, unreadable, write
from masktorch.coding import Bools, decode, encode
from masktorch.mask import Mask, described, is_sharded
from masktorch.model import Model, find_masks, masked_tensors
from masktorch.parametrization import attached
from masktorch.targets import join, plain_name
from masktorch.values import set_masks
from masktorch.wrapping import give_masks

T = TypeVar("T")
Rows = dict[str, Row]  # by every name of their tensors


class _Tensor(NamedTuple):
    """A tensor of a model; a mask has two where something has untied what was tied."""

    names: list[str]
    parameter: nn.Parameter
    mask: Mask | None


def save_masks(model: nn.Module, path_or_file: PathOrFile) -> None:
    """Writes the deterministic masks of a wrapped model to a file of about their entropy.

    The file, a numpy `.npz`, also holds a fingerprint of each tensor under a mask, by which
    `load_masks` tells whether it meets the same weights. It goes to a path, used as given, where a
    crash leaves the old file, or into a file open for writing bytes.
    Raises `ValueError` if nothing is masked, a tensor is on the meta device or the file is closed,
    `TypeError` for a file of text, `OSError` where nothing can be written.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> save_masks(wrap(nn.Linear(1000, 1000)), file := io.BytesIO())  # everything kept:
        >>> len(file.getvalue()) < 1500  # next to no bytes
        True
    """
    masked_tensors(model, "save_masks")
    tensors = _tensors(model, masked=True)
    for (name, *_), parameter, _ in tensors:
        if why := _out_of_reach(parameter):
            raise ValueError(f"save_masks() can't save the mask of {name!r}: {why}")
    kept = [mask.mode().cpu().numpy() for _, _, mask in tensors if mask]
    write(path_or_file, _in_parallel(_row, tensors, kept))


def read_masks(path_or_file: PathOrFile, *, most: int = 2**30) -> dict[str, Tensor]:
    """The masks of a file by tensor name, as `masktorch.masks` gave them: bool, on the CPU.

    No model is needed, and no weights are compared. A tied tensor is under its first name. A file
    open for reading bytes is read from where it stands to its end. The masks may have `most`
    entries in all: a byte of memory each is what a file can ask for that was made to do harm.
    Raises `ValueError` where the file is damaged, is none of `save_masks`, of a newer format, or of
    more entries; `TypeError` for a file of text.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> save_masks(wrap(nn.Linear(2, 1)), file := io.BytesIO())
        >>> _ = file.seek(0)
        >>> read_masks(file)
        {'weight': tensor([[True, True]])}
    """
    called, _, rows = read(path_or_file, "read_masks", most)
    found = sum(math.prod(row.shape) for name, row in rows.items() if name == row.name)
    if found > most:
        raise ValueError(
            f"read_masks() expected at most {most} entries in {called}, found {found}, a byte of "
            f"memory each. If you trust the file, read_masks(path, most={found})."
        )
    return _decoded(rows, "read_masks", called)


def load_masks(model: Model, path_or_file: PathOrFile, *, any_weights: bool = False) -> Model:
    """Puts the masks of a file on a model, in place.

    A plain model gets masks that do not learn. The masked tensors of a wrapped one must be those
    of the file; their scores move as by `masktorch.set_masks`, so that learning can go on. A tensor
    that had several names where the masks were saved (tied weights) is masked under all of them.
    Weights other than those the masks were saved over are accepted with `any_weights=True`. On an
    error nothing changes. Raises `ValueError` where the file is damaged, is none of `save_masks` or
    of a newer format, and where its tensors, their shapes, `rescale` or fingerprints are not those
    of the model; `TypeError` for a file of text.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> layer = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> save_masks(layer, file := io.BytesIO())
        >>> _ = file.seek(0)
        >>> load_masks(nn.Linear(2, 1), file, any_weights=True).parametrizations.weight.mode()
        tensor([[ True, False]])
    """
    wrapped = bool(find_masks(model, "load_masks"))
    entries = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    called, version, rows = read(path_or_file, "load_masks", entries)
    tensors = _tensors(model, masked=wrapped)
    if version == 1:  # it says the first name only
        tensors = [tensor._replace(names=tensor.names[:1]) for tensor in tensors]
    with _fitting(called):
        tensors = _checked(rows, tensors, wrapped)
        if not any_weights:
            _check_weights(rows, tensors)
    decoded = _decoded(rows, "load_masks", called)
    loaded = {name: decoded[rows[name].name] for (name, *_), _, _ in tensors}
    with _fitting(called):  # another parametrization, an estimator that can't express it
        if wrapped:
            return set_masks(model, loaded)
        rescale = {name: rows[name].rescale for name in loaded}
        return give_masks(model, loaded, rescale=rescale, caller="load_masks")


@contextmanager
def _fitting(called: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        message = f"load_masks() can't put the masks of {called} on this model: {error}"
        raise ValueError(message) from error


def _tensors(model: nn.Module, *, masked: bool) -> list[_Tensor]:
    """The parameters, or those under masks; unlike `Place` with all names of a module."""
    found: dict[tuple[Mask | None, nn.Parameter], _Tensor] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        masks = attached(module)
        for attribute, parameter in module._parameters.items():
            mask = masks.get(attribute)
            if parameter is not None and (mask or not masked):
                tensor = found.setdefault((mask, parameter), _Tensor([], parameter, mask))
                tensor.names.append(plain_name(join(module_name, attribute)))
    return list(found.values())


def _row(tensor: Any, kept: Bools) -> Row:
    (name, *tied), parameter, mask = tensor
    coding, code = encode(kept.ravel())
    count, estimator, sha = int(kept.sum()), described(mask.estimator), _fingerprint(parameter)
    shape = list(kept.shape)
    return Row(name, tied, shape, count, mask.rescale, estimator, coding, len(code), sha, code)


def _decoded(rows: Rows, caller: str, called: str) -> dict[str, Tensor]:
    def mask(row: Row) -> Tensor:
        try:
            entries = decode(row.coding, row.code, row.kept, math.prod(row.shape))
        except (ValueError, zlib.error) as error:
            raise unreadable(caller, called, f"for {row.name!r} {error}") from error
        return torch.from_numpy(entries).view(row.shape)

    own = {name: row for name, row in rows.items() if name == row.name}
    return dict(zip(own, _in_parallel(mask, own.values()), strict=True))


def _out_of_reach(parameter: nn.Parameter) -> str | None:
    """Why there are no values to save a mask over, or to put one on."""
    if is_lazy(parameter) or parameter.is_meta:
        return "it has no values yet (a lazy module or the meta device). Load its weights first."
    if is_sharded(parameter):
        return "each process holds a part of it. Save and load masks before fully_shard (FSDP2)."
    return None


def _checked(rows: Rows, tensors: list[_Tensor], wrapped: bool) -> list[_Tensor]:
    """The tensors that the masks are of; raises where they can't be, whatever their values."""
    known = {name for tensor in tensors for name in tensor.names}
    missing = [name for name in rows if name not in known]
    found = [tensor for tensor in tensors if not rows.keys().isdisjoint(tensor.names)]
    extra = [t.names[0] for t in tensors if wrapped and rows.keys().isdisjoint(t.names)]
    if missing or extra:
        raise ValueError(
            f"expected {'its masked tensors' if wrapped else 'parameters'} by the names in the "
            "file. "
            + (f"In the file only: {some(missing)}. " if missing else "")
            + (f"Masked in the model only: {some(extra)}. " if extra else "")
            + _what_to_do(rows, known, wrapped)
        )
    for names, parameter, mask in found:
        name = next(name for name in names if name in rows)
        row = rows[name]
        if why := _out_of_reach(parameter):
            raise ValueError(f"{name!r} needs its weights: {why}")
        if row.shape != list(parameter.shape):
            raise ValueError(
                f"expected shape {tuple(parameter.shape)} for {name!r}, found {tuple(row.shape)} "
                "in the file. Build the model that the masks were saved from."
            )
        for other in names:
            if other not in rows or rows[other].mask != row.mask:
                count = "two" if other in rows else "none for the second"
                raise ValueError(
                    f"expected one mask for {name!r} and {other!r}, the same tensor in this model "
                    f"(tied weights), found {count}. Untie them, as they were when the masks were "
                    "saved."
                )
        if mask and mask.rescale != row.rescale:
            raise ValueError(
                f"expected rescale={mask.rescale} for {name!r}, found rescale={row.rescale} in the "
                "file, with which the layer computes something else. Wrap the model with "
                f"rescale={row.rescale}."
            )
    return found


def _what_to_do(rows: Rows, known: set[str], wrapped: bool) -> str:
    first = next(iter(rows), "")
    for name in known:
        prefix = name.removesuffix(first)
        if name.endswith(f".{first}") and all(prefix + row in known for row in rows):
            return (
                f"Every name in the file lacks the prefix {prefix!r} that this model has: load the "
                f"masks into model.get_submodule({prefix[:-1]!r})."
            )
        prefix = first.removesuffix(name)
        if first.endswith(f".{name}") and rows.keys() <= {prefix + other for other in known}:
            return (
                f"Every name in the file has the prefix {prefix!r} that this model lacks: load the "
                f"masks into the module that has this model as its {prefix[:-1]!r}."
            )
    if wrapped:
        return "Wrap the same tensors (targets=[...]), or unwrap the model first."
    return "Build the model that the masks were saved from."


def _check_weights(rows: Rows, tensors: list[_Tensor]) -> None:
    """Raises where the fingerprints of the tensors of a model are not those of the file."""
    found = _in_parallel(_fingerprint, [tensor.parameter for tensor in tensors])
    other = {
        rows[name].name: (rows[name].fingerprint, present)
        for (names, *_), present in zip(tensors, found, strict=True)
        for name in names
        if rows[name].fingerprint != present
    }
    if other:
        name, (expected, present) = next(iter(other.items()))
        raise ValueError(
            "expected the weights that the masks were saved over, found others in "
            f"{len(other)} of {len({row.name for row in rows.values()})} tensors: "
            f"{some([*other])} (fingerprint {expected} in the file for {name!r}, {present} in the "
            "model). Load those weights first, or accept these with "
            "load_masks(model, path, any_weights=True)."
        )


def _fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values in row-major order, the first 32 hex digits."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


def _in_parallel(function: Callable[..., T], *values: Iterable[Any]) -> list[T]:
    """The results in order; zlib and hashing release the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *values))
