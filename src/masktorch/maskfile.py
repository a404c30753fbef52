"""Masks in a file: about their entropy in bytes, checked against the weights they belong to."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from masktorch.archive import MaskFile, PathOrFile, Row, read, unreadable, write
from masktorch.coding import Bools, decode, encode
from masktorch.fitting import (
    Named,
    check_names,
    check_tensors,
    check_weights,
    fingerprint,
    in_parallel,
    named_tensors,
    out_of_reach,
)
from masktorch.mask import Mask
from masktorch.model import Model, find_masks, masked_tensors
from masktorch.values import set_masks
from masktorch.wrapping import give_masks


def save_masks(model: nn.Module, path_or_file: PathOrFile) -> None:
    """Writes the deterministic masks of a wrapped model to a file of about their entropy.

    The file, a numpy `.npz`, also holds a fingerprint of each tensor under a mask, by which
    `load_masks` tells whether it meets the same weights.

    Args:
        model: a wrapped model, or one whose masks were given.
        path_or_file: a path, used as given, or a file open for writing bytes. At a path the file
            is written beside the old one and then renamed: a crash leaves the old one.

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
    places = [
        ([name for name, p in names.items() if p is parameter], mask, parameter)
        for mask, names in named_tensors(model)
        if mask
        for parameter in dict.fromkeys(names.values())
    ]
    for (name, *_), _, parameter in places:
        if why := out_of_reach(parameter):
            raise ValueError(f"save_masks() can't save the mask of {name!r}: {why}")
    tensors = [(names, mask, mask.mode().cpu().numpy(), p) for names, mask, p in places]
    write(path_or_file, in_parallel(_row, tensors))


def _row(tensor: tuple[list[str], Mask, Bools, nn.Parameter]) -> Row:
    (name, *tied), mask, kept, parameter = tensor
    coding, code = encode(kept.ravel())
    count, estimator, sha = int(kept.sum()), repr(mask.estimator), fingerprint(parameter)
    shape = list(kept.shape)
    return Row(name, tied, shape, count, mask.rescale, estimator, coding, len(code), sha, code)


def read_masks(path_or_file: PathOrFile, *, most: int = 2**30) -> dict[str, Tensor]:
    """The masks of a file by tensor name, as `masktorch.masks` gave them: bool, on the CPU.

    No model is needed, and no weights are compared.

    Args:
        path_or_file: a path, or a file open for reading bytes, read from where it stands to its
            end.
        most: entries that the masks may have in all. A byte of memory each is what a file can
            ask for that was made to do harm.

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
    file = read(path_or_file, "read_masks", most)
    if (found := sum(row.size for row in file.rows)) > most:
        raise ValueError(
            f"read_masks() expected at most {most} entries in {file.called}, found {found}, a byte "
            f"of memory each. If you trust the file, read_masks(path, most={found})."
        )
    return _decoded(file, "read_masks")


def load_masks(model: Model, path_or_file: PathOrFile, *, any_weights: bool = False) -> Model:
    """Puts the masks of a file on a model, in place.

    A plain model gets masks that do not learn, a bool per entry. The masked tensors of a wrapped
    one must be those of the file; their scores move as by `masktorch.set_masks`, so that learning
    can go on (a frozen mask stays frozen). A tensor that had several names where the masks were
    saved (tied weights) is masked under all of them.

    Args:
        model: a plain or a wrapped model. Nothing in it changes if an error is raised.
        path_or_file: what `save_masks` wrote: a path, or a file open for reading bytes, read from
            where it stands to its end.
        any_weights: accept weights other than those the masks were saved over.

    Raises `ValueError` where the file is damaged, is none of `save_masks` or of a newer format,
    and where its tensors, their shapes, `rescale` or fingerprints are not those of the model;
    `TypeError` for a file of text.

    Examples:
        >>> import io
        >>> from masktorch import wrap
        >>> layer = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> save_masks(layer, file := io.BytesIO())
        >>> plain = nn.Linear(2, 1)
        >>> _ = plain.load_state_dict(layer.state_dict(), strict=False), file.seek(0)
        >>> load_masks(plain, file).parametrizations.weight.mode()
        tensor([[ True, False]])
    """
    wrapped = bool(find_masks(model, "load_masks"))
    entries = sum(p.numel() for p in model.parameters() if not is_lazy(p))
    file = read(path_or_file, "load_masks", entries)
    tensors = [tensor for tensor in named_tensors(model) if tensor.mask or not wrapped]
    if file.version == 1:  # it says the first name only
        tensors = [Named(mask, dict([*names.items()][:1])) for mask, names in tensors]
    rows = {name: row for row in file.rows for name in row.names}
    with _fitting(file):
        check_names(rows, tensors, wrapped)
        tensors = [tensor for tensor in tensors if not tensor.names.keys().isdisjoint(rows)]
        check_tensors(rows, tensors)
        if not any_weights:
            check_weights(rows, tensors)
    decoded = _decoded(file, "load_masks")
    first = [next(iter(names)) for _, names in tensors]
    masks = {name: decoded[rows[name].name] for name in first}
    with _fitting(file):  # another parametrization, an estimator that can't express it
        if wrapped:
            return set_masks(model, masks)
        rescale = {name: rows[name].rescale for name in first}
        return give_masks(model, masks, rescale=rescale, caller="load_masks")


@contextmanager
def _fitting(file: MaskFile) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        message = f"load_masks() can't put the masks of {file.called} on this model: {error}"
        raise ValueError(message) from error


def _decoded(file: MaskFile, caller: str) -> dict[str, Tensor]:
    def mask(row: Row) -> Tensor:
        try:
            entries = decode(row.coding, row.code, row.kept, row.size)
        except (ValueError, zlib.error) as error:
            raise unreadable(caller, file.called, f"for {row.name!r} {error}") from error
        return torch.from_numpy(entries).view(row.shape)

    return dict(zip([row.name for row in file.rows], in_parallel(mask, file.rows), strict=True))
