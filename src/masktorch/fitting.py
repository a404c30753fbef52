"""Whether the masks of a file and the tensors of a model belong together."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch.archive import MaskFile, Row, some
from masktorch.mask import Mask, is_sharded
from masktorch.parametrization import attached
from masktorch.targets import join, plain_name


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
        return (
            "it has no values yet (a lazy module or the meta device). Run a batch through the lazy "
            "module or load its weights first."
        )
    if is_sharded(parameter):
        return (
            "each process holds a part of it (FSDP2). Load masks before fully_shard; to save them, "
            "gather the state dict into a plain wrapped model (see docs/distributed.md)."
        )
    return None


def check_names(file: MaskFile, rows: dict[str, Row], tensors: list[Named], wrapped: bool) -> None:
    """Raises where the names in a file are not those of a model, or of its masked tensors."""
    known = {name for _, names in tensors for name in names}
    missing = [name for name in rows if name not in known]
    extra = [next(iter(t.names)) for t in tensors if wrapped and t.names.keys().isdisjoint(rows)]
    if missing or extra:
        hint = _prefixed(rows, known) or (
            "Wrap the same tensors (targets=[...]), or unwrap the model first."
            if wrapped
            else "Build the model that the masks were saved from."
        )
        raise unfit(
            file,
            f"expected {'its masked tensors' if wrapped else 'parameters'} by the names in the "
            "file. "
            + (f"In the file only: {some(missing)}. " if missing else "")
            + (f"Masked in the model only: {some(extra)}. " if extra else "")
            + hint,
        )


def _prefixed(rows: dict[str, Row], known: set[str]) -> str | None:
    """What to do where all names in a file lack a prefix of the model's, or have one more."""
    first = next(iter(rows), "")
    for prefix in (name[: -len(first)] for name in known if name.endswith(f".{first}")):
        if all(prefix + name in known for name in rows):
            return (
                f"Every name in the file lacks the prefix {prefix!r} that this model has: load the "
                f"masks into model.get_submodule({prefix[:-1]!r})."
            )
    for prefix in (first[: -len(name)] for name in known if first.endswith(f".{name}")):
        if all(name.startswith(prefix) and name[len(prefix) :] in known for name in rows):
            return (
                f"Every name in the file has the prefix {prefix!r} that this model lacks: load the "
                f"masks into the module that has this model as its {prefix[:-1]!r}."
            )
    return None


def check_tensors(file: MaskFile, rows: dict[str, Row], tensors: list[Named]) -> None:
    """Raises where a mask can't be that of a tensor, whatever the values of both."""
    codes = dict(zip([row.name for row in file.rows], file.codes, strict=True))
    for mask, names in tensors:
        name, row = next((name, rows[name]) for name in names if name in rows)
        for other, parameter in names.items():
            if why := out_of_reach(parameter):
                raise unfit(file, f"{other!r} needs its weights: {why}")
            if row.shape != list(parameter.shape):
                raise unfit(
                    file,
                    f"expected shape {tuple(parameter.shape)} for {name!r}, found "
                    f"{tuple(row.shape)} in the file. Build the model that the masks were saved "
                    "from.",
                )
            its = rows.get(other)
            if its is not row and (
                its is None
                or (its.shape, its.kept, its.rescale) != (row.shape, row.kept, row.rescale)
                or codes[its.name] != codes[row.name]
            ):
                raise unfit(
                    file,
                    f"expected one mask for {name!r} and {other!r}, the same tensor in this model "
                    f"(tied weights), found {'none for the second' if its is None else 'two'}. "
                    "Untie them, as they were when the masks were saved.",
                )
        if mask and mask.rescale != row.rescale:
            raise unfit(
                file,
                f"expected rescale={mask.rescale} for {name!r}, found rescale={row.rescale} in the "
                "file, with which the layer computes something else. Wrap the model with "
                f"rescale={row.rescale}.",
            )


def check_weights(
    pool: ThreadPoolExecutor, file: MaskFile, parameters: dict[str, nn.Parameter]
) -> None:
    """Raises where the fingerprints of the tensors of a model are not those of the file."""
    distinct = list(dict.fromkeys(parameters.values()))
    found = dict(zip(distinct, pool.map(fingerprint, distinct), strict=True))
    other = {
        row.name: (row.fingerprint, found[parameters[name]])
        for row in file.rows
        for name in row.names
        if found[parameters[name]] != row.fingerprint
    }
    if other:
        name, (expected, present) = next(iter(other.items()))
        raise unfit(
            file,
            "expected the weights that the masks were saved over, found others in "
            f"{len(other)} of {len(file.rows)} tensors: {some([*other])} (fingerprint {expected} "
            f"in the file for {name!r}, {present} in the model). Load those weights first, or "
            "accept these with load_masks(model, path, any_weights=True).",
        )


def fingerprint(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and values in row-major order, the first 32 hex digits."""
    values = tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy()
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    sha.update(values.data)
    return sha.hexdigest()[:32]


def unfit(file: MaskFile, why: str) -> ValueError:
    return ValueError(f"load_masks() can't put the masks of {file.called} on this model: {why}")
