"""Masks as values: read from a model by tensor name, set, drawn, used for a while."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from masktorch.mask import Mask, is_sharded
from masktorch.model import (
    Masked,
    Model,
    by_name,
    checked_mask,
    find_masks,
    masked_tensors,
    warn_if_empty,
)
from masktorch.selection import parted
from masktorch.wrapping import give_masks


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The deterministic masks by tensor name: bool, shaped like their tensors, on their device.
    Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    return {
        place.name: mask.mode() if mask.learns and mask.used is None else mask.mode().clone()
        for mask, (place, *_) in masked_tensors(model, "masks")
    }


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Makes the deterministic masks exactly those given: bool, by name, as `masks` returns them.

    Of a wrapped model those scores move that must. A plain model gets masks that do not learn, on
    the tensors named; given masks are replaced. Warns where a mask keeps nothing of its tensor. On
    an error nothing changes. Raises `ValueError` for a missing or unknown name, a wrong shape, a
    mask that the estimator can't express, and within `using`; `TypeError` for other than bools.

    Examples:
        >>> from masktorch import wrap
        >>> model = set_masks(wrap(nn.Linear(2, 1)), {"weight": torch.tensor([[True, False]])})
        >>> model.parametrizations.weight.scores.data
        tensor([[ 1., -1.]])
    """
    _check_mapping("set_masks", masks)
    found = (find_masks if masks else masked_tensors)(model, "set_masks")
    if not found:
        return give_masks(model, masks, rescale=dict.fromkeys(masks, False), caller="set_masks")
    wanted = _checked("set_masks", found, masks)
    if any(mask.used is not None for mask, _ in found):
        raise ValueError("set_masks() within masktorch.using would not be seen: leave it first.")
    moved = [
        _scores_for(name, mask, given) if mask.learns else given for mask, name, given in wanted
    ]
    with torch.no_grad():
        for (mask, *_), scores in zip(wanted, moved, strict=True):
            mask.scores.copy_(scores)
    for _, name, given in wanted:
        warn_if_empty(name, given)
    return model


@contextlib.contextmanager
def using(model: Model, masks: Mapping[str, Tensor] | None) -> Iterator[Model]:
    """Within it a model computes with these masks in every mode; `None` is no masks at all.

    `masks`, `report` and `save_masks` see them too, scores get no gradient, and nothing is drawn.
    On leaving everything is as before. It nests. Call `backward` within it too where activations
    are checkpointed. Raises as `set_masks`, and `RuntimeError` in code that is being compiled.

    Examples:
        >>> from masktorch import wrap
        >>> layer = wrap(nn.Linear(2, 1, bias=False))
        >>> with using(layer, {"weight": torch.tensor([[False, False]])}):
        ...     layer(torch.ones(1, 2)).item()
        0.0
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "using() can't be entered in code that is being compiled. Enter it outside, and call "
            "the compiled model within."
        )
    found = masked_tensors(model, "using")
    if masks is None:
        masks = {p.name: torch.ones_like(m.scores, dtype=torch.bool) for m, (p, *_) in found}
    _check_mapping("using", masks)
    wanted, before = _checked("using", found, masks), [mask.used for mask, _ in found]
    try:
        for mask, _, used in wanted:
            mask.used = used
        yield model
    finally:
        for (mask, _), its_own in zip(found, before, strict=True):
            mask.used = its_own


def sample_masks(model: nn.Module, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A draw of each mask as training would make it, by tensor name: bool, on their device.

    Masks that are not drawn, frozen or given are the deterministic ones; a relaxed mask
    (`HardConcrete`) is kept where it is positive. With a generator PyTorch's own random stream is
    left alone. Raises `ValueError` if nothing is masked.

    Examples:
        >>> from masktorch import Bernoulli, wrap
        >>> model = wrap(nn.Linear(2, 1), Bernoulli(), init=50.0)
        >>> sample_masks(model)
        {'weight': tensor([[True, True]])}
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"sample_masks() expected a torch.Generator, found {type(generator).__name__}."
        )
    found = masked_tensors(model, "sample_masks")
    with contextlib.ExitStack() as stack, torch.no_grad():
        if generator is not None:
            devices = {mask.scores.device for mask, _ in found if mask.scores.is_cuda}
            stack.enter_context(torch.random.fork_rng(devices))
            seed = torch.empty((), dtype=torch.int64, device=generator.device)
            seed.random_(generator=generator)
            cuda = [torch.cuda.default_generators[device.index] for device in devices]
            for stream in (torch.default_generator, *cuda):  # of no device that is not forked
                stream.manual_seed(int(seed))
        return {place.name: mask.sample() for mask, (place, *_) in found}


def _check_mapping(caller: str, masks: Mapping[str, Tensor]) -> None:
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"{caller}() expected a dict from tensor names to masks, as masktorch.masks(model) "
            f"returns it, found {type(masks).__name__}."
        )


def _checked(
    caller: str, found: Masked, masks: Mapping[str, Tensor]
) -> list[tuple[Mask, str, Tensor]]:
    """What each mask, of the tensor of that name, is to be: on its device and in its shards."""
    masks = by_name(caller, "mask for each masked tensor", found, masks)
    checked = []
    for mask, (place, *_) in found:
        name, scores = place.name, mask.scores
        wanted = checked_mask(caller, name, masks[name], scores.shape).to(scores.device)
        if is_sharded(scores) and not is_sharded(wanted):
            wanted = parted(wanted, scores)
        checked.append((mask, name, wanted))
    return checked


def _scores_for(name: str, mask: Mask, wanted: Tensor) -> Tensor:
    scores = mask.scores.detach()
    scores_for = getattr(mask.estimator, "scores_for", None)
    try:
        moved = wanted.to(scores.dtype) if scores_for is None else scores_for(scores, wanted)
    except ValueError as error:  # the estimator knows why, and not of which tensor
        raise ValueError(f"set_masks() can't give {name!r} this mask: {error}") from error
    if not torch.equal(mask.estimator.mode(moved), wanted):
        raise ValueError(
            f"set_masks() can't give {name!r} this mask: {mask.estimator!r} does not express it "
            f"({int(wanted.sum())} of {wanted.numel()} entries kept). Give the estimator a method "
            "scores_for(scores, mask) that does, or use a mask it can express."
        )
    return cast(Tensor, moved)
