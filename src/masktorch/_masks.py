"""Masks as values: read from a model by tensor name, set, drawn, used for a while."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from masktorch._masking.identity import sharing_memory
from masktorch._masking.lookup import (
    Masked,
    MaskedTensor,
    Model,
    checked_masks,
    find_masks,
    masked_tensors,
    warn_if_empty,
)
from masktorch._masking.mask import total, without_autocast
from masktorch._masking.overrides import override_of, overriding
from masktorch._methods import protocol
from masktorch._wrapping import put_fixed_masks

Function = TypeVar("Function", bound=Callable[..., Any])


def masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the deterministic masks by tensor name.

    Each is a bool tensor of the shape and on the device of the tensor under it: what
    evaluation uses, and within `masktorch.using` the mask in use. The tensors are
    copies.

    Raises:
        ValueError: nothing is masked.

    Examples:
        >>> from masktorch import wrap
        >>> masks(wrap(nn.Linear(2, 1)))
        {'weight': tensor([[True, True]])}
    """
    return {
        tensor.name: tensor.mask.mode().clone(memory_format=torch.preserve_format)
        for tensor in masked_tensors(model, "masks")
    }


def set_masks(model: Model, masks: Mapping[str, Tensor]) -> Model:
    """Make the deterministic masks exactly those given, in place.

    On a wrapped model, changes only the scores it has to. On a plain model, puts fixed
    masks on the tensors named. Fixed masks are replaced. Warns if a mask keeps nothing
    of its tensor. On an error nothing changes.

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
    if masks == {}:
        found = masked_tensors(model, "set_masks")  # no masks for a plain model: raise
    else:
        found = find_masks(model, "set_masks")
    if not found:
        return put_fixed_masks(model, masks, rescale=False, caller="set_masks")
    return change_masks(model, found, masks)


def change_masks(model: Model, found: Masked, masks: Mapping[str, Tensor]) -> Model:
    """Change the masks of a wrapped model. Public functions call this directly.

    Args:
        model: the wrapped model.
        found: its masks.
        masks: those to have, as for `set_masks`.
    """
    wanted = checked_masks("set_masks", found, masks)
    if any(override_of(tensor.mask) is not None for tensor in found):
        raise ValueError(
            "set_masks() within masktorch.using would not be seen: leave it first."
        )
    moved = [_scores_for(tensor, wanted[tensor.name]) for tensor in found]
    # A mask of this model may be given for another one, to exchange the two.
    for position, _ in sharing_memory(moved, [mask.scores for mask, _ in found]):
        moved[position] = moved[position].clone()
    # before anything changes, because a warning may be an error
    for name, given in wanted.items():
        # The frames: `warn_if_empty`, this one, the public function, and its caller.
        warn_if_empty(name, given, stacklevel=4)
    with torch.no_grad():
        for tensor, scores in zip(found, moved, strict=True):
            tensor.mask.scores.copy_(scores)
    return model


def using(
    model: Model, masks: Mapping[str, Tensor] | None
) -> contextlib.AbstractContextManager[Model]:
    """Context manager: the model uses `masks` in every mode; `None` disables masking.

    `masks`, `report` and `save_masks` see these masks too, scores get no gradient, and
    nothing is drawn. Nothing of the model changes, so every thread and every async task
    can use masks of its own at the same time. A task inherits the masks in use where it
    was created; a new thread starts without. Blocks nest. With activation
    checkpointing, call `backward` inside the block.

    Args:
        model: a wrapped model.
        masks: bool tensors by full tensor name, one for every masked tensor, or None.
            Do not write into them while they are in use.

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
    return _Using(model, masks)


class _Using(contextlib.AbstractContextManager[Any]):
    """What `using` returns: one block, or a decorator that opens one for each call."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor] | None):
        self.model, self.masks = model, masks
        self.unused = [_using(model, masks)]
        self.entered: contextlib.AbstractContextManager[Any] | None = None

    @override
    def __enter__(self) -> nn.Module:
        try:
            block = self.unused.pop()  # of several threads, one gets it
        except IndexError:
            raise RuntimeError(
                "what using() returns can be entered once: call using() for each "
                "`with`, and in each thread or task."
            ) from None
        self.entered = block
        model: nn.Module = block.__enter__()
        return model

    @override
    def __exit__(self, *error: Any) -> bool | None:
        return None if self.entered is None else self.entered.__exit__(*error)

    def __call__(self, function: Function) -> Function:
        """Decorate a function that has run when its call returns."""
        if (
            inspect.isgeneratorfunction(function)
            or inspect.iscoroutinefunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError(
                "using() expected a function that runs when it is called, found "
                f"{function.__qualname__}, a generator or async function: its body "
                "runs later, without these masks. Write `with masktorch.using(...)` "
                "inside it."
            )

        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            with using(self.model, self.masks):
                return function(*args, **kwargs)

        return cast(Function, decorated)


@contextlib.contextmanager
def _using(model: nn.Module, masks: Mapping[str, Tensor] | None) -> Iterator[nn.Module]:
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "using() cannot be entered in code that is being compiled: enter it "
            "outside."
        )
    found = masked_tensors(model, "using")
    if masks is None:
        masks = {
            tensor.name: torch.ones_like(tensor.place.parameter, dtype=torch.bool)
            for tensor in found
        }
    wanted = checked_masks("using", found, masks)
    with overriding({tensor.mask: wanted[tensor.name] for tensor in found}):
        yield model


def sample_masks(
    model: nn.Module, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Draw each mask once, as training would, and return the draws by tensor name.

    The masks are bool tensors of the tensors' shapes, on their devices. A mask that is
    deterministic, frozen or fixed is returned as `masktorch.masks` returns it; a
    relaxed draw (`HardConcrete`) counts as kept where it is positive.

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
    # Drawn before the fork, which puts PyTorch's own generators back.
    seed = None if generator is None else _seed_of(generator)
    with torch.random.fork_rng(devices, enabled=seed is not None), torch.no_grad():
        if seed is not None:
            _seed_streams(devices, seed)
        return {
            tensor.name: tensor.mask.sample().clone(memory_format=torch.preserve_format)
            for tensor in found
        }


def _seed_of(generator: torch.Generator) -> int:
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    return int(seed)


def _seed_streams(devices: set[torch.device], seed: int) -> None:
    """Seed the streams of the CPU and of these devices."""
    cuda = [torch.cuda.default_generators[device.index] for device in devices]
    for stream in (torch.default_generator, *cuda):
        stream.manual_seed(seed)


def _scores_for(tensor: MaskedTensor, wanted: Tensor) -> Tensor:
    """Return scores whose deterministic mask is `wanted`.

    A fixed mask is its own scores.
    """
    mask = tensor.mask
    if not mask.has_scores:
        return wanted
    # A copy, because the estimator is the user's and may write into it.
    scores = mask.scores.detach().clone()
    try:
        with without_autocast(scores):
            moved = protocol.scores_for(mask.estimator, scores, wanted)
            if moved.shape != scores.shape:
                raise ValueError(
                    f"scores_for of {mask.estimator!r} gave scores of shape "
                    f"{tuple(moved.shape)}, expected {tuple(scores.shape)}."
                )
            moved = moved.to(scores.dtype)
            expressed = mask.estimator.mode(moved).expand(wanted.shape)
        if not torch.equal(expressed, wanted):
            raise ValueError(
                f"{mask.estimator!r} cannot express it: of {wanted.numel()} entries "
                f"the mask keeps {total(wanted)}, the estimator would keep "
                f"{total(expressed)}. Call set_estimator or set_density first, if the "
                "density differs."
            )
    except ValueError as error:
        raise ValueError(
            f"set_masks() cannot give {tensor.name!r} this mask: {error}"
        ) from error
    return moved
