"""Save masks to a file and load them; check that a file and a model belong together."""

import hashlib
import math
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch._files.archive import (
    PathOrFile,
    StoredMask,
    check_target,
    damaged,
    read,
    short,
    write,
)
from masktorch._files.coding import Bools, decode, encode
from masktorch._masking.identity import identity
from masktorch._masking.lookup import Model, find_masks, masked_tensors
from masktorch._masking.mask import Mask, attached
from masktorch._masking.names import join, plain_name
from masktorch._masking.saved_state import described
from masktorch._masks import change_masks
from masktorch._sharding import is_sharded
from masktorch._wrapping import put_fixed_masks

T = TypeVar("T")

_WEIGHTS_ADVICE = (
    "Load the weights that the masks were saved over or, if these are meant, "
    "load_masks(model, path, any_weights=True)."
)


class _Tensor(NamedTuple):
    """A tensor of a model. If a tie broke under a mask, that mask has several."""

    names: list[str]
    parameter: nn.Parameter
    mask: Mask | None


class _Match(NamedTuple):
    """A tensor of a model, with the mask in a file for each of its names."""

    tensor: _Tensor
    saved: list[StoredMask]


def save_masks(model: nn.Module, path_or_file: PathOrFile) -> None:
    """Save the deterministic masks of a model to a file of about their entropy.

    The file is a numpy `.npz`. It also has the dtype and a fingerprint of each tensor
    under a mask, by which `load_masks` recognises the weights. Within `masktorch.using`
    the masks in use are saved.

    Args:
        model: a wrapped model, or one with fixed masks.
        path_or_file: a path, used as given, or a file open for writing bytes. At a path
            the file replaces the old one in one step: a crash leaves the old one.

    Raises:
        ValueError: nothing is masked, or a tensor has no values (lazy module, meta
            device) or only a part of them (FSDP2).
        TypeError: `path_or_file` is neither a path nor a file of bytes.
        OSError: nothing can be written there, as in a folder that does not exist.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> file = io.BytesIO()
        >>> save_masks(wrap(nn.Linear(1000, 1000)), file)  # a million entries, all kept
        >>> len(file.getvalue()) < 1500
        True
    """
    masked_tensors(model, "save_masks")
    check_target(path_or_file)
    tensors = _tensors(model, masked_only=True)
    for tensor in tensors:
        _check_values("save_masks", tensor)
    masks = [tensor.mask for tensor in tensors if tensor.mask is not None]
    # Read here, because the threads of a pool do not see the masks of masktorch.using.
    modes = [mask.mode().cpu().numpy() for mask in masks]
    write(path_or_file, _in_parallel(_stored, tensors, masks, modes))


def read_masks(path_or_file: PathOrFile, *, most: int = 2**30) -> dict[str, Tensor]:
    """Read the masks of a file without a model: bool tensors on the CPU, by name.

    No weights are compared. A tied tensor is under its first name.

    Args:
        path_or_file: a path, or a file open for reading bytes, which is read from its
            position to its end.
        most: how many entries the masks may have in all, at a byte of memory each. A
            small file can claim any number of them.

    Returns:
        the masks, as `masktorch.masks` returned them when they were saved.

    Raises:
        ValueError: it is not a mask file, or damaged, of a newer version, or of more
            entries than `most`.
        TypeError: `path_or_file` is neither a path nor a file of bytes.
        OSError: nothing can be read there.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> save_masks(wrap(nn.Linear(2, 1)), file := io.BytesIO())
        >>> read_masks(io.BytesIO(file.getvalue()))
        {'weight': tensor([[True, True]])}
    """
    with _completing_errors("read_masks", path_or_file):
        saved = read(path_or_file, most).masks
        found = sum(math.prod(mask.shape) for mask in saved)
        if found > most:
            raise ValueError(
                f"expected at most {most} entries, found {short(found)}, a byte "
                "of memory each. If you trust the file, read_masks(path, "
                f"most={short(found)})."
            )
        return _decoded(saved)


def load_masks(
    model: Model, path_or_file: PathOrFile, *, any_weights: bool = False
) -> Model:
    """Put the masks of a file on a model, in place.

    A plain model gets fixed masks. On a wrapped model, whose masked tensors must be
    those of the file, the scores change as by `masktorch.set_masks`, and learning can
    go on. A tensor that had several names when its mask was saved (tied weights) is
    masked under all of them. On an error the model is unchanged.

    Args:
        model: a plain or a wrapped model.
        path_or_file: as for `read_masks`.
        any_weights: accept weights of other values or another dtype than those that
            the masks were saved over.

    Returns:
        The same model.

    Raises:
        ValueError: it is not a mask file, or damaged, or of a newer version; or its
            names, shapes, `rescale` or weights are not those of the model.
        TypeError: `path_or_file` is neither a path nor a file of bytes.
        OSError: nothing can be read there.

    Examples:
        >>> import io
        >>> from masktorch import masks, set_masks, wrap
        >>> mask = torch.tensor([[True, False]])
        >>> layer = set_masks(wrap(nn.Linear(2, 1)), {"weight": mask})
        >>> save_masks(layer, file := io.BytesIO())
        >>> masks(load_masks(layer, io.BytesIO(file.getvalue())))
        {'weight': tensor([[ True, False]])}
    """
    masked = find_masks(model, "load_masks")
    wrapped = bool(masked)
    tensors = _tensors(model, masked_only=wrapped)
    with _completing_errors("load_masks", path_or_file):
        entries = sum(p.numel() for p in model.parameters() if not is_lazy(p))
        version, saved = read(path_or_file, entries)
        if version == 1:  # files of this version have the first names only
            tensors = [tensor._replace(names=tensor.names[:1]) for tensor in tensors]
        matches = _matches(saved, tensors, wrapped)
        for match in matches:
            _check_match(match)
        if not any_weights:
            _check_weights(matches)
        decoded = _decoded(saved)
        first = {match.tensor.names[0]: match.saved[0] for match in matches}
        masks = {name: decoded[stored.name] for name, stored in first.items()}
        if wrapped:
            return change_masks(model, masked, masks)
        rescale = {name: stored.rescale for name, stored in first.items()}
        return put_fixed_masks(model, masks, rescale=rescale, caller="load_masks")


@contextmanager
def _completing_errors(caller: str, source: PathOrFile) -> Iterator[None]:
    """Say in an error which call failed, on which file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{caller}() can't load {source!r}: {error}") from error


# -- the tensors of a model ------------------------------------------------------------


def _tensors(model: nn.Module, *, masked_only: bool) -> list[_Tensor]:
    """List the parameters with every name, also those of a module in several places."""
    found: dict[tuple[Mask | None, Hashable], _Tensor] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        masks = attached(module)
        for attribute, parameter in module._parameters.items():
            mask = masks.get(attribute)
            if parameter is None or (mask is None and masked_only):
                continue
            key = mask, identity(parameter)
            tensor = found.setdefault(key, _Tensor([], parameter, mask))
            tensor.names.append(plain_name(join(module_name, attribute)))
    return list(found.values())


def _check_values(caller: str, tensor: _Tensor) -> None:
    parameter = tensor.parameter
    if is_lazy(parameter) or parameter.is_meta or is_sharded(parameter):
        raise ValueError(
            f"{caller}() needs all values of {tensor.names[0]!r}, found none (a lazy "
            "module, the meta device) or a part (FSDP2). Load its weights first; save "
            "and load masks before fully_shard."
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _fingerprint(tensor: Tensor) -> str:
    """Hash dtype, shape and values in row-major order: 32 hex digits of SHA-256."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


# -- masks as a file has them ----------------------------------------------------------


def _stored(tensor: _Tensor, mask: Mask, mode: Bools) -> StoredMask:
    name, *tied = tensor.names
    coded = encode(mode.ravel())
    return StoredMask(
        name=name,
        tied=tied,
        shape=list(tensor.parameter.shape),
        dtype=_dtype(tensor.parameter),
        kept=int(np.count_nonzero(mode)),
        rescale=mask.rescale,
        estimator=described(mask.estimator),
        coding=coded.coding,
        bytes=len(coded.code),
        fingerprint=_fingerprint(tensor.parameter),
        code=coded.code,
    )


def _decoded(saved: list[StoredMask]) -> dict[str, Tensor]:
    masks = _in_parallel(_decoded_mask, saved)
    return {stored.name: mask for stored, mask in zip(saved, masks, strict=True)}


def _decoded_mask(stored: StoredMask) -> Tensor:
    size = math.prod(stored.shape)
    try:
        entries = decode(stored.coding, stored.code, stored.kept, size)
        return torch.from_numpy(entries).view(stored.shape)
    except (ValueError, RuntimeError) as error:  # a shape may be too much for torch
        raise damaged(f"in the mask of {stored.name!r}, {error}") from error


# -- whether a file and a model belong together ----------------------------------------


def _matches(
    saved: list[StoredMask], tensors: list[_Tensor], wrapped: bool
) -> list[_Match]:
    """Find the tensor of each mask by its names.

    Raises:
        ValueError: a name is left over in the file, or a masked tensor in the model.
    """
    saved_by_name = {
        name: stored for stored in saved for name in (stored.name, *stored.tied)
    }
    matches, extra = [], []
    for tensor in tensors:
        found = [saved_by_name[name] for name in tensor.names if name in saved_by_name]
        if found:
            matches.append(_Match(tensor, found))
        elif wrapped:
            extra.append(tensor.names[0])
    known = {name for tensor in tensors for name in tensor.names}
    missing = [name for name in saved_by_name if name not in known]
    if missing or extra:
        kind = "masked tensors" if wrapped else "parameters"
        advice = _prefix_advice(saved_by_name.keys(), known) or _names_advice(wrapped)
        raise ValueError(
            f"expected the names of its {kind}, found {len(missing)} in the file only "
            f"{short(missing[:3])}, {len(extra)} masked in the model only {extra[:3]}. "
            f"{advice}"
        )
    return matches


def _prefix_advice(saved: Collection[str], known: Collection[str]) -> str | None:
    """Advise if the file and the model have the same names but for one prefix."""
    if not saved or len(saved) > len(known):
        return None
    first = next(iter(saved))
    for name in known:
        lacking = _prefix_of(name, first)
        if lacking and all(lacking + other in known for other in saved):
            return _lacking_prefix_advice(lacking)
        extra = _prefix_of(first, name)
        if extra and all(
            other.startswith(extra) and other.removeprefix(extra) in known
            for other in saved
        ):
            return _extra_prefix_advice(extra)
    return None


def _prefix_of(name: str, end: str) -> str | None:
    """Return the prefix that turns `end` into `name`, such as "encoder.", or None."""
    return name.removesuffix(end) if name.endswith(f".{end}") else None


def _lacking_prefix_advice(prefix: str) -> str:
    return (
        f"Every name in the file lacks the prefix {prefix!r}: load the masks into "
        f"model.get_submodule({prefix[:-1]!r})."
    )


def _extra_prefix_advice(prefix: str) -> str:
    return (
        f"Every name in the file has the prefix {prefix!r}, which this model lacks: "
        f"load the masks into the model whose {prefix[:-1]!r} it is. To take the "
        "prefix off, without a comparison of weights: masktorch.set_masks(model, "
        f"{{name.removeprefix({prefix!r}): mask for name, mask in "
        "masktorch.read_masks(path).items()})."
    )


def _names_advice(wrapped: bool) -> str:
    if wrapped:
        return (
            "Wrap the tensors that were masked when the masks were saved, "
            "wrap(model, targets=[...]), or load them into a plain model."
        )
    return "Build the model that the masks were saved from."


def _check_match(match: _Match) -> None:
    """Raise unless the masks in the file fit the tensor, apart from its values."""
    tensor = match.tensor
    _check_values("load_masks", tensor)
    name, shape = tensor.names[0], list(tensor.parameter.shape)
    for stored in match.saved:
        if stored.shape != shape:
            raise ValueError(
                f"expected shape {shape} for {name!r}, found {short(stored.shape)} in "
                "the file. Build the model that the masks were saved from."
            )
        if tensor.mask is not None and tensor.mask.rescale != stored.rescale:
            raise ValueError(
                f"expected rescale={tensor.mask.rescale} for {name!r}, found "
                f"rescale={stored.rescale} in the file: the layer would compute "
                f"something else. Wrap the model with rescale={stored.rescale}."
            )
    _check_tied(match)


def _check_tied(match: _Match) -> None:
    """Raise unless the file has one mask for all names of a tensor."""
    names = match.tensor.names
    unmasked = len(names) - len(match.saved)
    contents = [(mask.rescale, mask.kept, mask.code) for mask in match.saved]
    if unmasked or any(content != contents[0] for content in contents):
        found = f"none for {unmasked} of them" if unmasked else "different ones"
        raise ValueError(
            f"expected one mask for {names}, the same tensor in this model (tied "
            f"weights), found {found}. Untie them, as when the masks were saved."
        )


def _check_weights(matches: list[_Match]) -> None:
    """Raise unless the masks were saved over the weights of the model."""
    for match in matches:
        _check_dtype(match)
    present = _in_parallel(_fingerprint, [match.tensor.parameter for match in matches])
    for match, fingerprint in zip(matches, present, strict=True):
        for stored in match.saved:
            if stored.fingerprint != fingerprint:
                raise ValueError(
                    f"expected fingerprint {fingerprint} for "
                    f"{match.tensor.names[0]!r}, found {stored.fingerprint} in "
                    "the file: its mask was saved over weights of other values. "
                    f"{_WEIGHTS_ADVICE}"
                )


def _check_dtype(match: _Match) -> None:
    here = _dtype(match.tensor.parameter)
    for stored in match.saved:
        if stored.dtype is not None and stored.dtype != here:
            raise ValueError(
                f"expected dtype {here} for {match.tensor.names[0]!r}, found "
                f"{stored.dtype} in the file: saved over {stored.dtype}, "
                f"here {here}. {_WEIGHTS_ADVICE}"
            )


# -- threads ---------------------------------------------------------------------------


def _in_parallel(function: Callable[..., T], *values: Sequence[Any]) -> list[T]:
    """Map a function over values, in threads: zlib and hashing release the interpreter.

    If no thread can start (the interpreter is exiting, or the system sets a limit), the
    calling thread does the work.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            results = pool.map(function, *values)  # starts the threads
        except RuntimeError:
            pool.shutdown(cancel_futures=True)
            return list(map(function, *values))
        return list(results)
