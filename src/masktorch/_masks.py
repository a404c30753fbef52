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
from masktorch._masking.overrides import override_of, overriding
from masktorch._wrapping import put_fixed_masks


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the deterministic masks by tensor name.

    Each is a bool tensor of the shape and on the device of the tensor under it: what
    evaluation uses, and within `masktorch.using` the mask in use. The tensors are copies.

    Raises:
        ValueError: nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    return {
        place.name: mask.mode().clone(memory_format=torch.preserve_format)
        for mask, (place, *_) in masked_tensors(model, "masks")
    }


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Make the deterministic masks exactly those given, in place.

    On a wrapped model, changes only the scores it has to. On a plain model, puts fixed masks
    on the tensors named. Fixed masks are replaced. Warns if a mask keeps nothing of its
    tensor. On an error nothing changes.

    Args:
        model: any module.
        masks: bool tensors by full tensor name, of the tensors' shapes, as
            `masktorch.masks` returns them.

    Raises:
        ValueError: a name is missing or unknown, a shape is wrong, the estimator cannot
            express a mask, or the model is within `masktorch.using`.
        TypeError: a mask is not a dense bool tensor.

    Examples:
        >>> from masktorch import wrap
        >>> model = wrap(nn.Linear(2, 1))
        >>> model = set_masks(model, {"weight": torch.tensor([[True, False]])})
        >>> model.parametrizations.weight.scores.data
        tensor([[ 1., -1.]])
    """
    found = (
        masked_tensors(model, "set_masks")
        if masks == {}
        else find_masks(model, "set_masks")
    )
    if not found:
        return put_fixed_masks(model, masks, rescale=False, caller="set_masks")
    wanted = checked_masks("set_masks", found, masks)
    if any(override_of(mask) is not None for mask, _ in found):
        raise ValueError(
            "set_masks() within masktorch.using would not be seen: leave it first."
        )
    moved = [
        (mask, _scores_for(mask, place.name, wanted[place.name]))
        for mask, (place, *_) in found
    ]
    with torch.no_grad():
        for mask, scores in moved:
            mask.scores.copy_(scores)
    for name, given in wanted.items():
        warn_if_empty(name, given)
    return model


@contextlib.contextmanager
def using(model: Model, masks: Mapping[str, Tensor] | None) -> Iterator[Model]:
    """Context manager: the model uses `masks` in every mode; `None` disables masking.

    `masks`, `report` and `save_masks` see these masks too, scores get no gradient, and
    nothing is drawn. Nothing of the model changes, so every thread and every async task can
    use masks of its own at the same time. A task inherits the masks in use where it was
    created; a new thread starts without. Blocks nest. With activation checkpointing, call
    `backward` inside the block.

    Args:
        model: a wrapped model.
        masks: bool tensors by full tensor name, one for every masked tensor, or None.

    Raises:
        ValueError: a name is missing or unknown, or a shape is wrong.
        TypeError: a mask is not a dense bool tensor.
        RuntimeError: entered in code that is being compiled.

    Examples:
        >>> from masktorch import wrap
        >>> layer = wrap(nn.Linear(2, 1, bias=False))
        >>> with using(layer, {"weight": torch.tensor([[False, False]])}):
        ...     layer(torch.ones(1, 2)).item()
        0.0
    """
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "using() cannot be entered in code that is being compiled: enter it outside."
        )
    found = masked_tensors(model, "using")
    if masks is None:
        masks = {
            place.name: torch.ones_like(place.parameter, dtype=torch.bool)
            for _, (place, *_) in found
        }
    wanted = checked_masks("using", found, masks)
    with overriding({mask: wanted[place.name] for mask, (place, *_) in found}):
        yield model


def sample_masks(
    model: nn.Module, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Draw each mask once, as training would, and return the draws by tensor name.

    The masks are bool tensors of the tensors' shapes, on their devices. A mask that is
    deterministic, frozen or fixed is returned as `masktorch.masks` returns it; a relaxed
    draw (`HardConcrete`) counts as kept where it is positive.

    Args:
        model: a wrapped model.
        generator: draw from it and leave PyTorch's global random stream alone.

    Raises:
        ValueError: nothing is masked.
        TypeError: `generator` is not a `torch.Generator`.

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
    with (
        torch.random.fork_rng(devices, enabled=generator is not None),
        torch.no_grad(),
    ):
        if generator is not None:
            _seed_streams(devices, generator)
        return {
            place.name: mask.sample().clone(memory_format=torch.preserve_format)
            for mask, (place, *_) in found
        }


def _seed_streams(devices: set[torch.device], generator: torch.Generator) -> None:
    """Seed the streams of the CPU and of these devices from a generator."""
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    cuda = [torch.cuda.default_generators[device.index] for device in devices]
    for stream in (torch.default_generator, *cuda):
        stream.manual_seed(int(seed))


def _scores_for(mask: Mask, name: str, wanted: Tensor) -> Tensor:
    """Return scores whose deterministic mask is `wanted`; a fixed mask is its own scores."""
    if not mask.has_scores:
        return wanted
    scores = mask.scores.detach()
    scores_for = getattr(mask.estimator, "scores_for", None)
    try:
        if scores_for is not None:
            moved: Tensor = scores_for(scores, wanted)
        elif scores.shape == wanted.shape:
            moved = wanted.to(scores.dtype)
        else:
            raise ValueError(
                f"{mask.estimator!r} has scores of shape {tuple(scores.shape)} and no "
                "scores_for(scores, mask) that says which of them give a mask."
            )
        expressed = mask.estimator.mode(moved).expand(wanted.shape)
        if not torch.equal(expressed, wanted):
            raise ValueError(
                f"{mask.estimator!r} cannot express it: of {wanted.numel()} entries the mask "
                f"keeps {total(wanted)}, the estimator would keep {total(expressed)}. Call "
                "set_estimator or set_density first, if the density differs."
            )
    except ValueError as error:
        raise ValueError(
            f"set_masks() cannot give {name!r} this mask: {error}"
        ) from error
    return moved
