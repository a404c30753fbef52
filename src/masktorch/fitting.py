"""Whether the masks of a file and the tensors of a model belong together."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch.archive import Row, some
from masktorch.mask import Mask, is_sharded
from masktorch.parametrization import attached
from masktorch.targets import join, plain_name

T = TypeVar("T")
Rows = dict[str, Row]  # by every name of their tensors


class Named(NamedTuple):
    """A tensor of a model: its mask, if it has one, and all its names."""

    mask: Mask | None
    names: dict[str, nn.Parameter]  # to several parameters where what was tied is no longer


def named_tensors(model: nn.Module) -> list[Named]:
    """The parameters of a model; unlike `Place` with every name of a module that is in several."""
    found: dict[nn.Module | nn.Parameter, Named] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        masks = attached(module)
        for attribute, parameter in module._parameters.items():
            mask = masks.get(attribute)
            if parameter is not None:
                tensor = found.setdefault(mask or parameter, Named(mask, {}))
                tensor.names[plain_name(join(module_name, attribute))] = parameter
    return list(found.values())


def out_of_reach(parameter: nn.Parameter) -> str | None:
    """Why there are no values to save a mask over, or to put one on."""
    if is_lazy(parameter) or parameter.is_meta:
        return "it has no values yet (a lazy module or the meta device). Load its weights first."
    if is_sharded(parameter):
        return "each process holds a part of it. Save and load masks before fully_shard (FSDP2)."
    return None


def check_names(rows: Rows, tensors: list[Named], wrapped: bool) -> None:
    """Raises where the names in a file are not those of a model, or of its masked tensors."""
    known = {name for _, names in tensors for name in names}
    missing = [name for name in rows if name not in known]
    extra = [next(iter(t.names)) for t in tensors if wrapped and t.names.keys().isdisjoint(rows)]
    if missing or extra:
        raise ValueError(
            f"expected {'its masked tensors' if wrapped else 'parameters'} by the names in the "
            "file. "
            + (f"In the file only: {some(missing)}. " if missing else "")
            + (f"Masked in the model only: {some(extra)}. " if extra else "")
            + _what_to_do(rows, known, wrapped)
        )


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
        if first.endswith(f".{name}") and all(
            row.startswith(prefix) and row.removeprefix(prefix) in known for row in rows
        ):
            return (
                f"Every name in the file has the prefix {prefix!r} that this model lacks: load the "
                f"masks into the module that has this model as its {prefix[:-1]!r}."
            )
    if wrapped:
        return "Wrap the same tensors (targets=[...]), or unwrap the model first."
    return "Build the model that the masks were saved from."


def check_tensors(rows: Rows, tensors: list[Named]) -> None:
    """Raises where a mask can't be that of a tensor, whatever the values of both."""
    for mask, names in tensors:
        name = next(name for name in names if name in rows)
        row = rows[name]
        for other, parameter in names.items():
            if why := out_of_reach(parameter):
                raise ValueError(f"{other!r} needs its weights: {why}")
            if row.shape != list(parameter.shape):
                raise ValueError(
                    f"expected shape {tuple(parameter.shape)} for {name!r}, found "
                    f"{tuple(row.shape)} in the file. Build the model that the masks were saved "
                    "from."
                )
            its = rows.get(other)
            if its is None or its.mask != row.mask:
                raise ValueError(
                    f"expected one mask for {name!r} and {other!r}, the same tensor in this model "
                    f"(tied weights), found {'two' if its else 'none for the second'}. "
                    "Untie them, as they were when the masks were saved."
                )
        if mask and mask.rescale != row.rescale:
            raise ValueError(
                f"expected rescale={mask.rescale} for {name!r}, found rescale={row.rescale} in the "
                "file, with which the layer computes something else. Wrap the model with "
                f"rescale={row.rescale}."
            )


def check_weights(rows: Rows, tensors: list[Named]) -> None:
    """Raises where the fingerprints of the tensors of a model are not those of the file."""
    parameters = {name: p for _, names in tensors for name, p in names.items()}
    distinct = list(dict.fromkeys(parameters.values()))
    found = dict(zip(distinct, in_parallel(fingerprint, distinct), strict=True))
    other = {
        row.name: (row.fingerprint, found[parameters[name]])
        for name, row in rows.items()
        if found[parameters[name]] != row.fingerprint
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


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values in row-major order, the first 32 hex digits."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


def in_parallel(function: Callable[[Any], T], values: Iterable[Any]) -> list[T]:
    """The results in order; zlib and hashing release the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, values))
