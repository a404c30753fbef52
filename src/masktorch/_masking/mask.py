"""The mask of one tensor: what is computed with it, where it lives, how it is saved."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from masktorch._kernels.dtypes import at_least_float32
from masktorch._kernels.selecting import select
from masktorch._masking.forward_state import ForwardState
from masktorch._masking.identity import identity, register
from masktorch._masking.overrides import InThread, override_of
from masktorch._masking.saved_state import (
    MaskState,
    encoded,
    packed,
    running_load,
    warn_of_differences,
)
from masktorch._methods import protocol
from masktorch._methods.protocol import Estimator
from masktorch._sharding import gathered, is_sharded, parted


class Mask(nn.Module):
    """The mask of one tensor, shared by every place that holds the tensor.

    A learnable mask has scores: a parameter, at least float32, of the shape that its
    estimator decides. A fixed mask has no scores: there, `scores` is the mask itself, a
    bool buffer.

    What a layer uses, by state (an override is a mask in use within `masktorch.using`):

        override?   frozen or fixed?   module training?   mask
        yes         any                any                the override
        no          yes                any                `estimator.mode(scores)`
        no          no                 no (eval)          `estimator.mode(scores)`
        no          no                 yes                `estimator(scores)`
    """

    is_tensor = True  # for torch.nn.utils.parametrize: the mask sits on one tensor

    # transformers reads {pattern: name} to learn which scores are tied; it prefixes the
    # pattern with this mask's name, and the leading `|` ends that prefix.
    _tied_weights_keys: ClassVar = {r"|\.parametrizations\.\w+\.scores$": "scores"}

    scores: Tensor

    def __init__(
        self,
        estimator: Estimator,
        scores: Tensor,
        *,
        shape: torch.Size,
        rescale: bool,
        was_trainable: bool,
    ):
        super().__init__()
        is_fixed = scores.dtype is torch.bool
        self.scores = nn.Buffer(scores) if is_fixed else nn.Parameter(scores)
        self.use_estimator(estimator)
        self.shape = shape  # of the tensor under the mask
        self.rescale = bool(rescale)
        self.frozen = is_fixed
        # `requires_grad` of the tensor before it was wrapped.
        self.was_trainable = was_trainable
        self.containers = _no_containers()
        self.in_thread = InThread()

    def use_estimator(self, estimator: Estimator) -> None:
        """Compute with this estimator from now on."""
        self.estimator = estimator
        # Asked here and not in each forward, which is slower.
        self.draws = protocol.is_stochastic(estimator)
        self.offers_product = protocol.offers(estimator, "product")
        self.offers_mode_product = protocol.offers(estimator, "mode_product")

    @property
    def has_scores(self) -> bool:
        """Whether the mask is learnable; a fixed mask is not."""
        return isinstance(self.scores, nn.Parameter)

    @property
    def is_learning(self) -> bool:
        """Whether training sees the estimator's own forward."""
        return not self.frozen and override_of(self) is None

    def is_stochastic(self, training: bool) -> bool:
        """Whether two reads of the tensor may see two masks."""
        return training and not self.frozen and self.draws and override_of(self) is None

    def own_scores(self) -> Tensor:
        """Return `self.scores` without the slow `nn.Module.__getattr__`."""
        scores = self._parameters.get("scores")
        return self.scores if scores is None else scores

    def mode(self) -> Tensor:
        """Return the deterministic mask: bool, of the tensor's shape.

        It may be the mask in use itself: do not write into it.
        """
        in_use = override_of(self)
        return self.own_mode() if in_use is None else in_use

    def own_mode(self) -> Tensor:
        """Return the deterministic mask that follows from the scores.

        It must not depend on autocast, whose rounding may change an estimator's mask.
        """
        with without_autocast(self.scores):
            mask = deterministic(self.estimator, self.scores, self.shape)
        return self._expanded(mask)

    def expected(self) -> Tensor:
        """Return the probability that each entry is kept.

        While the mask is learning, it is differentiable, and whole even if the scores
        are sharded, because a process may hold a part of a group. Otherwise it is
        sharded as `mode()` is.
        """
        if not self.is_learning:
            return self.mode().to(torch.float32)
        return self._expanded(protocol.expected(self.estimator, gathered(self.scores)))

    def sample(self) -> Tensor:
        """Return a bool mask as training would draw it."""
        if not self.is_stochastic(training=True):
            return self.mode().clone()
        # All processes take rank 0's draw of the whole mask. If each drew its own part,
        # equal seeds would give equal parts.
        drawn = protocol.sample(self.estimator, gathered(self.scores))
        return parted(self._expanded(drawn), self.scores)

    @override
    def forward(self, weight: Tensor, training: bool) -> Tensor:
        """Return `weight * m`, or with `rescale` that times `numel / sum(m)`.

        Args:
            weight: the tensor under the mask.
            training: the mode of the module that holds it.
        """
        # Looked up once, because every layer pays for it in every forward.
        in_use = override_of(self)
        learning = training and not self.frozen and in_use is None
        if in_use is None and not self.rescale:
            estimator: Any = self.estimator
            masked: Tensor
            if learning and self.offers_product:
                masked = estimator.product(self.own_scores(), weight)
                return masked
            if not learning and self.offers_mode_product:
                masked = estimator.mode_product(self.own_scores(), weight)
                return masked
        mask = self._learning_mask(weight) if learning else self.mode()
        if is_sharded(mask) and not is_sharded(weight):
            # A mask given to `using` is sharded; FSDP2 has gathered the weight.
            mask = gathered(mask)
        masked = (weight * mask).to(weight.dtype) if learning else select(mask, weight)
        return self._rescaled(masked, mask) if self.rescale else masked

    def _learning_mask(self, weight: Tensor) -> Tensor:
        """Return the estimator's mask of training; raise unless it can be used."""
        mask = self.estimator(self.scores)
        must_learn = torch.is_grad_enabled() and self.scores.requires_grad
        if not _broadcasts(mask, weight.shape) or (
            must_learn and not mask.requires_grad
        ):
            raise TypeError(
                f"{self.estimator!r} expected to return a floating-point mask that "
                "depends on the scores differentiably and broadcasts to shape "
                f"{tuple(weight.shape)}, "
                f"found {mask.dtype} of shape {tuple(mask.shape)}, "
                f"requires_grad={mask.requires_grad}."
            )
        return mask

    def _rescaled(self, masked: Tensor, mask: Tensor) -> Tensor:
        """`masked * numel / sum(m)`; unchanged where nothing is kept."""
        # The factor may overflow float16.
        wide = at_least_float32(masked.dtype)
        kept = mask.expand_as(masked).sum(dtype=wide)
        size = float(masked.numel())
        factor = size / torch.where(kept > 0, kept, size)
        return (masked.to(wide) * factor).to(masked.dtype)

    def _expanded(self, mask: Tensor) -> Tensor:
        return mask if mask.shape == self.shape else mask.expand(self.shape)

    def places(self) -> "list[tuple[Masks, str]]":
        """Where the mask is: the masks of a module, and the name of the parameter."""
        return [
            (container, name)
            for container in self.containers
            for name, mask in masks_in(container).items()
            if mask is self and container.parameter(name) is not None
        ]

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations reads it, too."""
        found = [container.parameter(name) for container, name in self.places()]
        if not found:
            raise ValueError("this mask has been taken off its tensor.")
        tensors = {identity(tensor) for tensor in found}
        if len(tensors) > 1:
            raise ValueError(
                f"expected one tensor under this mask, found {len(tensors)}: its tied "
                "weights have been untied (by load_state_dict(assign=True), for "
                "instance). Tie them again, or read each from the `_parameters` of its "
                "module."
            )
        return cast(Tensor, found[0])

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the scores as `.to()` asks, but never narrow them or cast a fixed mask.

        A bfloat16 score of 1.0 cannot move by 1e-3, so no mask of a bfloat16 model
        would learn, and rounding the scores would change a frozen mask.
        """

        def without_narrowing(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            is_fixed_mask = tensor.dtype is torch.bool
            if is_fixed_mask or is_narrower(moved.dtype, tensor.dtype):
                if tensor.is_meta:  # to_empty gives memory without values
                    return torch.empty_like(tensor, device=moved.device)
                return tensor.to(moved.device)
            return moved

        return super()._apply(without_narrowing, recurse)  # type: ignore[no-untyped-call]

    @override
    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Load scores in the wider of both dtypes: rounding could change a mask."""
        key = f"{prefix}scores"
        loaded = state_dict.get(key)
        if isinstance(loaded, Tensor):
            present = self.scores
            if is_narrower(loaded.dtype, present.dtype):
                state_dict[key] = loaded.to(present.dtype)
            elif (
                is_narrower(present.dtype, loaded.dtype)
                and loaded.shape == present.shape
            ):
                present.data = present.data.to(loaded.dtype)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def state(self) -> MaskState:
        """What a checkpoint knows of the mask, except for its scores."""
        weights = [container.parameter(name) for container, name in self.places()]
        return MaskState(
            rescale=bool(self.rescale),
            mask_frozen=self.frozen,
            # Not known, so not claimed, if the module is out of reach: a copy made
            # without its memo.
            weights_frozen=bool(weights)
            and not any(weight.requires_grad for weight in weights),
            estimator=encoded(self.estimator),
            scores_train=self.scores.requires_grad,
        )

    @override
    def get_extra_state(self) -> Tensor:
        return packed(self.state())

    @override
    def set_extra_state(self, state: Any) -> None:
        """Change nothing: loading only warns of differences (`match_checkpoint`)."""

    @override
    def __getstate__(self) -> dict[str, Any]:
        """A copy has containers of its own, and no override."""
        state = dict(self.__dict__)
        del state["containers"], state["in_thread"]
        return state

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.containers = _no_containers()
        self.in_thread = InThread()

    # torch treats what lies in `parametrizations` as a list and would add to it or move
    # it: refuse that.

    def __iter__(self) -> NoReturn:
        raise TypeError(_NOT_A_LIST)

    def __getitem__(self, index: object) -> NoReturn:
        raise TypeError(_NOT_A_LIST)

    def append(self, module: nn.Module) -> NoReturn:
        raise TypeError(_NOT_A_LIST)

    @override
    def extra_repr(self) -> str:
        if not self.has_scores:
            state = "fixed"
        else:
            state = "frozen" if self.frozen else "learning"
        rescaled = ", rescale=True" if self.rescale else ""
        return f"{self.estimator!r}, {state}{rescaled}"


def _no_containers() -> "weakref.WeakKeyDictionary[Masks, None]":
    """Make the set of a Mask's containers, which does not keep them alive."""
    return weakref.WeakKeyDictionary()


class Masks(nn.ModuleDict):
    """The masks of one module by parameter name: its `parametrizations`."""

    def __init__(self, modules: dict[str, Any], module: nn.Module):
        super().__init__(modules)
        self._belong_to(module)

    def _belong_to(self, module: nn.Module) -> None:
        # A weak reference: a cycle would keep a large model alive until the next
        # garbage collection. Not its `_parameters`: torch.export replaces that dict for
        # a while.
        self._module = weakref.ref(module)
        self.forward_state = ForwardState()
        register(self)
        for mask in masks_in(self).values():
            mask.containers[self] = None

    def parameter(self, name: str) -> Any:
        """The parameter under the mask `name`, or None if its module is gone."""
        module = self._module()
        return None if module is None else module._parameters.get(name)

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "_module": self._module()}
        del state["forward_state"]
        return state

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._belong_to(state["_module"])

    @override
    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *arguments: Any
    ) -> None:
        """Load a module's masks; the first ones of a model compare all of them."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        *_, errors = arguments
        for name, mask in masks_in(self).items():
            # A checkpoint of torch's own parametrizations has no extra state.
            state_dict.setdefault(f"{prefix}{name}._extra_state", None)
            _keep_out_another_kind(mask, f"{prefix}{name}.scores", state_dict, errors)
        self._warn_once_per_load(state_dict, prefix)

    def _warn_once_per_load(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Warn of differences in the whole model when its first masks are loaded.

        Args:
            state_dict: what is being loaded.
            prefix: what the names of these masks begin with in it.
        """
        load = running_load()
        first = next(_containers_in(load.root), None) if load else None
        if load is None or first is None:
            # Called by code other than `load_state_dict`: compare these masks only.
            # The frames: `warn_of_differences`, this one, `_load_from_state_dict`, and
            # the code to blame.
            states = _states_in(self, prefix, state_dict)
            warn_of_differences(states, state_dict, stacklevel=4)
            return
        first_prefix, _ = first
        if first_prefix == prefix:
            states = _states_in(load.root, "", load.state_dict)
            warn_of_differences(states, load.state_dict, load.stacklevel)


def masks_in(container: Masks) -> dict[str, Mask]:
    """The masks among what computes the parameters of a module."""
    return {name: mask for name, mask in container.items() if isinstance(mask, Mask)}


def _keep_out_another_kind(
    mask: Mask, key: str, state_dict: dict[str, Any], errors: list[str]
) -> None:
    """Report a fixed mask that would be loaded as scores, or the reverse."""
    loaded = state_dict.get(key)
    if not isinstance(loaded, Tensor) or _is_of_kind(mask, loaded):
        return
    what = "scores, found a mask" if mask.has_scores else "a mask, found scores"
    errors.append(
        f"{key!r}: expected {what} ({loaded.dtype}). Call "
        "masktorch.match_checkpoint(model, state_dict) first, or leave the 'scores' "
        "keys out and move masks with masktorch.set_masks."
    )
    state_dict[key] = mask.scores  # they stay


def _is_of_kind(mask: Mask, scores: Tensor) -> bool:
    """Whether both are learnable or both fixed."""
    return (scores.dtype is not torch.bool) == mask.has_scores


def _containers_in(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, Masks]]:
    """The masks of each module with its prefix, in the order in which torch loads."""
    for name, module in root.named_modules():
        if isinstance(module, Masks):
            yield f"{prefix}{name}." if name else prefix, module


def _states_in(
    root: nn.Module, prefix: str, state_dict: Mapping[str, Any]
) -> dict[str, MaskState]:
    """The states of the masks that a state dict can change; a shared mask once."""
    names: dict[Mask, str] = {}
    for container_prefix, container in _containers_in(root, prefix):
        for name, mask in masks_in(container).items():
            scores = state_dict.get(f"{container_prefix}{name}.scores")
            if isinstance(scores, Tensor) and _is_of_kind(mask, scores):
                names.setdefault(mask, f"{container_prefix}{name}")
    return {name: mask.state() for mask, name in names.items()}


def attached(module: nn.Module) -> dict[str, Mask]:
    """The masks on the parameters of `module` itself, by parameter name."""
    if "parametrizations" not in module._modules:  # a scripted module has no .get
        return {}
    container = module._modules["parametrizations"]
    return masks_in(container) if isinstance(container, Masks) else {}


def forward_state_of(module: nn.Module) -> ForwardState | None:
    """The state of a module with masks; None after they have been taken off."""
    container = module._modules.get("parametrizations")
    return container.forward_state if isinstance(container, Masks) else None


def deterministic(estimator: Estimator, scores: Tensor, shape: torch.Size) -> Tensor:
    """Return an estimator's deterministic mask of these scores; raise unless it is one.

    Args:
        estimator: any estimator.
        scores: its scores, of any shape.
        shape: that of the tensor under the mask, to which the mask must broadcast.
    """
    mask = estimator.mode(scores)
    if mask.dtype is not torch.bool or not _broadcasts(mask, shape):
        raise TypeError(
            f"{estimator!r}.mode() expected to return a bool tensor that broadcasts to "
            f"shape {tuple(shape)}, found {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off on the device of a tensor."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def _broadcasts(mask: Tensor, shape: torch.Size) -> bool:
    """Whether the mask can be expanded to a shape."""
    if mask.shape == shape:
        return True
    missing = len(shape) - mask.dim()
    return missing >= 0 and all(
        size in (1, wanted)
        for size, wanted in zip(mask.shape, shape[missing:], strict=True)
    )


def is_narrower(dtype: torch.dtype, than: torch.dtype) -> bool:
    """Whether floating-point values of the dtype `than` would be rounded in `dtype`."""
    both_floating = dtype.is_floating_point and than.is_floating_point
    return both_floating and torch.promote_types(dtype, than) is not dtype


_NOT_A_LIST = (
    "a mask is not a list of parametrizations: nothing can be added to a masked tensor "
    "or moved from it to another module. Do that before masktorch.wrap or set_masks, "
    "or after masktorch.unwrap."
)


def total(mask: Tensor) -> int:
    """The entries that a mask keeps, over all processes."""
    return int(gathered(mask.sum() if is_sharded(mask) else torch.count_nonzero(mask)))
