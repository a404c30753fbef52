"""Masks as values: read from a model by tensor name, set, drawn, used for a while."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from masktorch._masking.lookup import (
    Model,
    checked_masks,
    find_masks,
    masked_tensors,
    warn_if_empty,
)
from masktorch._masking.mask import Mask, total
from masktorch._wrapping import give_masks


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The deterministic masks by tensor name: bool, shaped like them. `ValueError` without masks.

    Examples:
        >>> from masktorch import wrap
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    return {
        place.name: mask.mode()
        if mask.learns and mask.used is None
        else mask.mode().clone()
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
    found = (masked_tensors if masks == {} else find_masks)(model, "set_masks")
    if not found:
        return give_masks(model, masks, rescale=False, caller="set_masks")
    wanted = checked_masks("set_masks", found, masks)
    if any(mask.used is not None for mask, _ in found):
        raise ValueError(
            "set_masks() within masktorch.using would not be seen: leave it first."
        )
    moved = [
        (mask, _scores_for(mask, p.name, wanted[p.name])) for mask, (p, *_) in found
    ]
    with torch.no_grad():
        for mask, scores in moved:
            mask.scores.copy_(scores)
    for name, given in wanted.items():
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
            "using() can't be entered in code that is being compiled: enter outside"
        )
    found = masked_tensors(model, "using")
    if masks is None:
        masks = {
            p.name: torch.ones_like(m.scores, dtype=torch.bool) for m, (p, *_) in found
        }
    wanted, before = (
        checked_masks("using", found, masks),
        [mask.used for mask, _ in found],
    )
    try:
        for mask, (place, *_) in found:
            mask.used = wanted[place.name]
        yield model
    finally:
        for (mask, _), its_own in zip(found, before, strict=True):
            mask.used = its_own


def sample_masks(
    model: nn.Module, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
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
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(
            f"sample_masks() expected a torch.Generator, found {generator!r}."
        )
    found = masked_tensors(model, "sample_masks")
    devices = {mask.scores.device for mask, _ in found if mask.scores.is_cuda}
    with torch.random.fork_rng(devices, enabled=generator is not None), torch.no_grad():
        if generator is not None:
            seed = torch.randint(
                2**63 - 1, (), generator=generator, device=generator.device
            )
            cuda = [torch.cuda.default_generators[device.index] for device in devices]
            for stream in (
                torch.default_generator,
                *cuda,
            ):  # of no device that is not forked
                stream.manual_seed(int(seed))
        return {place.name: mask.sample() for mask, (place, *_) in found}


def _scores_for(mask: Mask, name: str, wanted: Tensor) -> Tensor:
    """The scores of exactly that mask; of a given mask it is the mask itself."""
    if not mask.learns:
        return wanted
    scores_for = getattr(mask.estimator, "scores_for", lambda s, m: m.to(s.dtype))
    try:
        moved: Tensor = scores_for(mask.scores.detach(), wanted)
        if not torch.equal(own := mask.estimator.mode(moved), wanted):
            raise ValueError(
                f"{mask.estimator!r} does not express it, or its scores_for() is wrong (of "
                f"{wanted.numel()} entries it keeps {total(wanted)}, the estimator {total(own)})."
            )
    except ValueError as error:
        raise ValueError(
            f"set_masks() can't give {name!r} this mask: {error}"
        ) from error
    return moved
