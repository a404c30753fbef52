"""The mask on a tensor, and the class that makes a module use it.

The invariant: a masked parameter stays where it was, under its own name, the same object. Only
*reading* `module.weight` changes: the class of the module is swapped for a subclass on which
`weight` is a property that returns the parameter under its mask. Optimisers, `state_dict` keys
of the weights, hooks and initialisers that go through `named_parameters` see what they saw.

The mask itself is the module `module.parametrizations.weight`, where
`torch.nn.utils.parametrize` looks: `is_parametrized`, `remove_parametrizations` and
`cached` of torch work on it.
"""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from masktorch import functional
from masktorch.estimators import Estimator


class Mask(nn.Module):
    """The mask of one tensor, shared by every place that holds the tensor.

    Its scores are a parameter. Those of a given mask are the mask itself, a bool buffer that is
    frozen for good.
    """

    is_tensor = True  # for torch.nn.utils.parametrize: the mask sits on one tensor

    def __init__(self, estimator: Estimator, scores: Tensor, *, rescale: bool, trained: bool):
        super().__init__()
        self.scores: Tensor
        if scores.dtype is torch.bool:
            self.register_buffer("scores", scores)
        else:
            self.scores = nn.Parameter(scores)
        self.estimator = estimator
        self.rescale = rescale
        self.trained = trained  # requires_grad of the tensor when it was wrapped
        self.frozen = scores.dtype is torch.bool
        self.owner: tuple[nn.Module, str] | None = None

    def mode(self) -> Tensor:
        """The deterministic mask, bool."""
        mask = self.estimator.mode(self.scores)
        if mask.dtype is not torch.bool or mask.shape != self.scores.shape:
            raise TypeError(
                f"{self.estimator!r}.mode() expected to return a bool tensor of shape "
                f"{tuple(self.scores.shape)}, found {mask.dtype} of shape {tuple(mask.shape)}. "
                "mode() is the mask itself, True where a weight is kept."
            )
        return mask

    def forward(self, weight: Tensor) -> Tensor:
        """`weight * m`, and `* numel / sum(m)` if rescaled."""
        if self.training and not self.frozen:
            product = getattr(self.estimator, "product", None)
            if product is not None and not self.rescale:
                return cast(Tensor, product(self.scores, weight))
            mask = self.estimator(self.scores)
            masked = weight * mask
        else:
            mask = self.mode()
            masked = functional.select(weight, mask)
        if self.rescale:
            kept = mask.sum(dtype=torch.promote_types(weight.dtype, torch.float32))
            masked = masked * (mask.numel() / kept.clamp(min=1)).to(weight.dtype)
        return masked

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations asks for it."""
        module, name = cast("tuple[nn.Module, str]", self.owner)
        return cast(Tensor, module._parameters[name])

    def extra_repr(self) -> str:
        state = "frozen" if self.frozen else "learning"
        return f"{self.estimator!r}, {state}" + (", rescale=True" if self.rescale else "")


def attached(module: nn.Module) -> dict[str, Mask]:
    """The masks on the parameters of `module` itself, by parameter name."""
    masks = module._modules.get("parametrizations")
    if not isinstance(masks, nn.ModuleDict):
        return {}
    return {name: mask for name, mask in masks.items() if isinstance(mask, Mask)}


def attach(module: nn.Module, name: str, mask: Mask) -> None:
    """Puts `mask` on the parameter `name` of `module`."""
    masks = cast(nn.ModuleDict, module._modules.setdefault("parametrizations", nn.ModuleDict()))
    masks[name] = mask
    mask.owner = mask.owner or (module, name)
    _set_class(module)


def detach(module: nn.Module, name: str) -> None:
    """Takes the mask off the parameter `name`; the last one gives the original class back."""
    masks = cast(nn.ModuleDict, module._modules["parametrizations"])
    del masks[name]
    if not masks:
        del module._modules["parametrizations"]
    _set_class(module)


def _set_class(module: nn.Module) -> None:
    original = type(module).__dict__.get("_original_class", type(module))
    names = frozenset(attached(module))
    module.__class__ = masked_class(original, names) if names else original


def _masked_tensor(name: str) -> property:
    def read(module: Any) -> Tensor:
        weight: Tensor = module._parameters[name]
        mask: Mask | None = module._modules["parametrizations"]._modules.get(name)
        if mask is None:  # taken off by torch's remove_parametrizations, another one remains
            return weight
        held: Any = parametrize._cache if parametrize._cache_enabled else module._held
        if held is None:
            return cast(Tensor, mask(weight))
        key = (id(mask), name)
        if key not in held:
            held[key] = mask(weight)
        return cast(Tensor, held[key])

    return property(read)


@functools.cache
def masked_class(original: Any, names: frozenset[str]) -> type[nn.Module]:
    """The subclass of `original` whose parameters `names` are read under their masks.

    One class serves every module of that type, so a compiled block is compiled once for all.
    """

    class Shared(type(original)):  # type: ignore[misc]
        def __delattr__(cls, name: str) -> None:
            """torch's remove_parametrizations deletes the property of the module it leaves; the
            other modules of this class still need it."""

    class Masked(original, metaclass=Shared):  # type: ignore[misc]
        _original_class = original
        _held: dict[Any, Tensor] | None = None  # what was read in the forward under way

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """However often a forward reads its weight, it draws one mask."""
            before = self._held
            object.__setattr__(self, "_held", {})
            try:
                return super().forward(*args, **kwargs)
            finally:
                object.__setattr__(self, "_held", before)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            if name in names and type(value) is Tensor:
                with torch.no_grad():
                    self._parameters[name].copy_(value)
            else:
                super().__setattr__(name, value)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """The class is made at run time, so a copy or a pickle names how to make it."""
            state = super().__reduce_ex__(2)[2]
            return _empty, (original, names), state

    for name in names:
        type.__setattr__(Masked, name, _masked_tensor(name))
    Masked.__name__ = Masked.__qualname__ = f"Masked{original.__name__}"
    Masked.__module__ = original.__module__
    Masked.__doc__ = original.__doc__
    return Masked


def _empty(original: Any, names: frozenset[str]) -> nn.Module:
    cls = masked_class(original, names)
    return cls.__new__(cls)
