"""Masks in a file: about their entropy in bytes, checked against the weights they belong to."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch._files.archive import PathOrFile, Row, read, write
from masktorch._files.coding import Bools, decode, encode
from masktorch._masking.checkpoint import described
from masktorch._masking.lookup import Model, find_masks, masked_tensors
from masktorch._masking.mask import Mask, attached
from masktorch._masking.names import join, plain_name
from masktorch._masks import set_masks
from masktorch._sharding import is_sharded
from masktorch._wrapping import put_fixed_masks


class _Tensor(NamedTuple):
    """A tensor of a model; a mask has two where something has untied what was tied."""

    names: list[str]
    parameter: nn.Parameter
    mask: Mask | None


def save_masks(model: nn.Module, path_or_file: PathOrFile) -> None:
    """Writes the deterministic masks of a wrapped model to a file of about their entropy.

    The file, a numpy `.npz`, also holds a fingerprint of each tensor under a mask, by which
    `load_masks` tells whether it meets the same weights. It goes to a path, used as given, where a
    crash leaves the old file, or into a file open for writing bytes. Raises `ValueError` if nothing
    is masked or a tensor has no values, and what Python raises where nothing can be written.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> save_masks(wrap(nn.Linear(1000, 1000)), file := io.BytesIO())  # everything kept:
        >>> len(file.getvalue()) < 1500  # next to no bytes
        True
    """
    masked_tensors(model, "save_masks")
    tensors = _tensors(model, masked=True)
    for tensor in tensors:
        _check_values("save_masks", tensor)
    kept = [mask.mode().cpu().numpy() for _, _, mask in tensors if mask]
    write(path_or_file, _in_parallel(_row, tensors, kept))


def read_masks(path_or_file: PathOrFile, *, most: int = 2**30) -> dict[str, Tensor]:
    """The masks of a file by tensor name, as `masktorch.masks` gave them: bool, on the CPU.

    No model is needed, and no weights are compared. A tied tensor is under its first name. A file
    open for reading bytes is read from where it stands to its end. The masks may have `most`
    entries in all, a byte of memory each, lest a file made to do harm asks for more. Raises
    `ValueError` for more, and where the file is damaged, none of `save_masks` or of a newer format.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> save_masks(wrap(nn.Linear(2, 1)), file := io.BytesIO())
        >>> read_masks(io.BytesIO(file.getvalue()))
        {'weight': tensor([[True, True]])}
    """
    with _naming("read_masks", path_or_file):
        _, rows = read(path_or_file, most)
        if (found := sum(math.prod(row.shape) for row in rows)) > most:
            raise ValueError(
                f"expected at most {most} entries, found {found}, a byte of memory each. If you "
                f"trust the file, read_masks(path, most={found})."
            )
        return _decoded(rows)


def load_masks(
    model: Model, path_or_file: PathOrFile, *, any_weights: bool = False
) -> Model:
    """Puts the masks of a file on a model, in place.

    A plain model gets masks that do not learn. The masked tensors of a wrapped one must be those
    of the file; their scores move as by `masktorch.set_masks`, so that learning can go on. A tensor
    that had several names where the masks were saved (tied weights) is masked under all of them.
    Raises as `read_masks`, and `ValueError` where names, shapes, `rescale` or, unless
    `any_weights=True`, the weights are other than when the masks were saved; nothing has changed.

    Examples:
        >>> import io
        >>> from masktorch import masks, wrap
        >>> layer = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> save_masks(layer, file := io.BytesIO())
        >>> masks(load_masks(layer, io.BytesIO(file.getvalue())))
        {'weight': tensor([[ True, False]])}
    """
    wrapped = bool(find_masks(model, "load_masks"))
    tensors = _tensors(model, masked=wrapped)
    with _naming("load_masks", path_or_file):
        entries = sum(p.numel() for p in model.parameters() if not is_lazy(p))
        version, saved = read(path_or_file, entries)
        if version == 1:  # it says the first name only
            tensors = [tensor._replace(names=tensor.names[:1]) for tensor in tensors]
        rows = {name: row for row in saved for name in (row.name, *row.tied)}
        tensors = _named(rows, tensors, wrapped)
        _in_parallel(lambda tensor: _check(rows, tensor, any_weights), tensors)
        decoded = _decoded(saved)
        loaded = {name: decoded[rows[name].name] for (name, *_), _, _ in tensors}
        if wrapped:
            return set_masks(model, loaded)
        rescale = {name: rows[name].rescale for name in loaded}
        return put_fixed_masks(model, loaded, rescale=rescale, caller="load_masks")


@contextmanager
def _naming(caller: str, source: PathOrFile) -> Iterator[None]:
    """Completes errors by who raises them, and over which file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{caller}() can't load {source!r}: {error}") from error


def _tensors(model: nn.Module, *, masked: bool) -> list[_Tensor]:
    """The parameters, or those under masks; unlike `Place` with all names of a module."""
    found: dict[tuple[Mask | None, nn.Parameter], _Tensor] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        masks = attached(module)
        for attribute, parameter in module._parameters.items():
            mask = masks.get(attribute)
            if parameter is not None and (mask or not masked):
                tensor = found.setdefault(
                    (mask, parameter), _Tensor([], parameter, mask)
                )
                tensor.names.append(plain_name(join(module_name, attribute)))
    return list(found.values())


def _row(tensor: Any, kept: Bools) -> Row:
    (name, *tied), parameter, mask = tensor
    coding, code = encode(kept.ravel())
    count, estimator, sha = (
        int(kept.sum()),
        described(mask.estimator),
        _fingerprint(parameter),
    )
    shape = list(kept.shape)
    return Row(
        name, tied, shape, count, mask.rescale, estimator, coding, len(code), sha, code
    )


def _decoded(rows: list[Row]) -> dict[str, Tensor]:
    def mask(row: Row) -> Tensor:
        try:
            entries = decode(row.coding, row.code, row.kept, math.prod(row.shape))
            return torch.from_numpy(entries).view(row.shape)
        except Exception as error:  # whatever numpy, zlib and torch raise
            raise ValueError(f"the mask of {row.name!r} is damaged: {error}") from error

    return dict(zip([row.name for row in rows], _in_parallel(mask, rows), strict=True))


def _check_values(caller: str, tensor: _Tensor) -> None:
    (name, *_), parameter, _ = tensor
    if is_lazy(parameter) or parameter.is_meta or is_sharded(parameter):
        raise ValueError(
            f"{caller}() needs all values of {name!r}, found none (a lazy module, the meta device) "
            "or a part (FSDP2). Load its weights first; save and load masks before fully_shard."
        )


def _named(
    rows: dict[str, Row], tensors: list[_Tensor], wrapped: bool
) -> list[_Tensor]:
    """The tensors that go by the names in a file; raises where names are left over."""
    known = {name for tensor in tensors for name in tensor.names}
    missing = [name for name in rows if name not in known]
    extra = [t.names[0] for t in tensors if wrapped and rows.keys().isdisjoint(t.names)]
    if missing or extra:
        raise ValueError(
            f"expected the names of its {'masked tensors' if wrapped else 'parameters'}, found "
            f"{len(missing)} in the file only {missing[:3]}, {len(extra)} masked in the model only "
            f"{extra[:3]}. Build the model, and wrap the tensors, that the masks were saved from, "
            "or load them into that part of the model, model.get_submodule(prefix)."
        )
    return [tensor for tensor in tensors if not rows.keys().isdisjoint(tensor.names)]


def _check(rows: dict[str, Row], tensor: _Tensor, any_weights: bool) -> None:
    """Raises where a tensor is not the one that its mask in a file was saved over."""
    _check_values("load_masks", tensor)
    names, parameter, mask = tensor
    saved = [rows[name] for name in names if name in rows]
    present: dict[str, object] = {"shape": list(parameter.shape)}
    if mask:
        present["rescale"] = mask.rescale
    if not any_weights:
        present["fingerprint"] = _fingerprint(parameter)
    for field, expected in present.items():
        if found := [
            getattr(row, field) for row in saved if getattr(row, field) != expected
        ]:
            raise ValueError(
                f"expected {field} {expected} for {names[0]!r}, found {found[0]} in the file. "
                "Build, wrap and load the model as when the masks were saved; if its weights alone "
                "are to be others, load_masks(model, path, any_weights=True)."
            )
    masks = [(row.rescale, row.kept, row.code) for row in saved]
    if len(masks) < len(names) or masks.count(masks[0]) < len(masks):
        raise ValueError(
            f"expected one mask for {names}, the same tensor in this model (tied weights), "
            "found two, or none for one of the names. Untie them, as when the masks were saved."
        )


def _fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values in row-major order, the first 32 hex digits."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


def _in_parallel(function: Callable[..., Any], *values: Iterable[Any]) -> list[Any]:
    """The results in order; zlib and hashing release the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, *values))
