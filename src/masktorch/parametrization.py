"""The mask on a tensor, and the class that makes a module use it.

The invariant: a masked parameter stays where it was, under its own name, the same object. Only
*reading* `module.weight` changes: the class of the module is swapped for a subclass on which
`weight` is a property that returns the parameter under its mask. Optimisers, `state_dict` keys
of the weights, hooks and initialisers that go through `named_parameters` see what they saw.

The mask itself is the module `module.parametrizations.weight`, where
`torch.nn.utils.parametrize` looks: `is_parametrized` and `cached` of torch work on it, and
`remove_parametrizations` takes it off (baked, in the mode the module is in).
"""

import functools
from typing import Any, NoReturn, cast

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
        self.used: Tensor | None = None  # within masktorch.using, the mask in place of its own

    def mode(self) -> Tensor:
        """The deterministic mask, bool."""
        if self.used is not None:
            return self.used
        return deterministic(self.estimator, self.scores)

    def expected(self) -> Tensor:
        """The probability that each entry is kept, differentiable while the mask learns."""
        if self.frozen or self.used is not None:
            return self.mode().to(torch.get_default_dtype())
        expected = getattr(self.estimator, "expected", self.estimator)
        return cast(Tensor, expected(self.scores))

    def sample(self) -> Tensor:
        """A mask as training would draw it, bool."""
        if not self.draws(training=True):
            return self.mode().clone()
        sample = getattr(self.estimator, "sample", None)
        return cast(
            Tensor, self.estimator(self.scores) > 0 if sample is None else sample(self.scores)
        )

    def draws(self, training: bool) -> bool:
        """Whether two reads of the tensor may see two masks."""
        return training and self.learning and getattr(self.estimator, "draws", True)

    @property
    def learning(self) -> bool:
        """Whether training sees the estimator's own forward: not frozen, nothing used instead."""
        return not self.frozen and self.used is None

    def forward(self, weight: Tensor, training: bool) -> Tensor:
        """`weight * m`, and `* numel / sum(m)` if rescaled; `training` is the module's mode."""
        learning = training and self.learning
        if not self.rescale and self.used is None:
            product = getattr(self.estimator, "product" if learning else "mode_product", None)
            if product is not None:
                return cast(Tensor, product(self.scores, weight))
        if learning:
            mask = self.estimator(self.scores)
            if not mask.is_floating_point() or mask.shape != self.scores.shape:
                raise TypeError(
                    f"{self.estimator!r} expected to return a floating-point mask of shape "
                    f"{tuple(self.scores.shape)}, found {mask.dtype} of shape {tuple(mask.shape)}."
                )
            if torch.is_grad_enabled() and self.scores.requires_grad and not mask.requires_grad:
                raise TypeError(
                    f"{self.estimator!r} expected to return a mask that depends on the scores "
                    "differentiably, found one without a gradient. mode() may be so, __call__ not."
                )
            masked = weight * mask
        else:
            mask = self.mode()
            masked = functional.select(weight, mask)
        if self.rescale:
            kept = mask.sum(dtype=torch.promote_types(weight.dtype, torch.float32))
            factor = mask.numel() / kept.clamp(min=1)  # may be too large for half precision
            masked = (masked.to(factor.dtype) * factor).to(weight.dtype)
        return masked

    @property
    def learns(self) -> bool:
        """Whether there are scores to train: not where the mask was given."""
        return isinstance(self.scores, nn.Parameter)

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations asks for it."""
        module, name = cast("tuple[nn.Module, str]", self.owner)
        return cast(Tensor, module._parameters[name])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Scores are no mask: copied into one, all but zeros would be kept."""
        found, name = state_dict.get(prefix + "scores"), prefix + "scores"
        if isinstance(found, Tensor) and (found.dtype is torch.bool) == self.learns:
            expected, other = ("scores", "a mask") if self.learns else ("a mask", "scores")
            errors = arguments[-1]
            errors.append(
                f"{name!r}: expected {expected}, found {other} ({found.dtype}). Masks that learn "
                "have scores, those that load_masks put on a plain model have none: leave the "
                "'scores' keys out, and move masks with masktorch.load_masks or set_masks."
            )
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has the mask's own: what is used within masktorch.using ends there."""
        return {**self.__dict__, "used": None}

    def append(self, parametrization: nn.Module) -> NoReturn:
        """torch's register_parametrization asks for it."""
        raise TypeError(
            "a masked tensor can't be parametrized further. Register other parametrizations before "
            "masktorch.wrap, and mask the tensors they compute with (targets=[...])."
        )

    def extra_repr(self) -> str:
        state = "frozen" if self.frozen else "learning"
        return f"{self.estimator!r}, {state}" + (", rescale=True" if self.rescale else "")


def deterministic(estimator: Estimator, scores: Tensor) -> Tensor:
    """An estimator's mask of these scores, if it is one."""
    mask = estimator.mode(scores)
    if mask.dtype is not torch.bool or mask.shape != scores.shape:
        raise TypeError(
            f"{estimator!r}.mode() expected to return a bool tensor of shape "
            f"{tuple(scores.shape)}, found {mask.dtype} of shape {tuple(mask.shape)}. "
            "mode() is the mask itself, True where a weight is kept."
        )
    return mask


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, of which each process holds a part."""
    return type(tensor) is not nn.Parameter and hasattr(tensor, "full_tensor")


def total(mask: Tensor) -> int:
    """The entries that a mask keeps, over all processes."""
    if is_sharded(mask):
        return int(mask.sum().full_tensor())  # type: ignore[attr-defined]
    return int(torch.count_nonzero(mask))  # many times faster than the sum of a bool


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
    _hold(module, None)


def detach(module: nn.Module, name: str) -> None:
    """Takes the mask off the parameter `name`; the last one gives the original class back."""
    masks = cast(nn.ModuleDict, module._modules["parametrizations"])
    del masks[name]
    if not masks:
        del module._modules["parametrizations"]
    if not attached(module):
        module.__dict__.pop("_held", None)
    _set_class(module)


def _set_class(module: nn.Module) -> None:
    original, names = original_class(module), frozenset(attached(module))
    # past a __setattr__ of the module's own
    object.__setattr__(module, "__class__", masked_class(original, names) if names else original)


def original_class(module: nn.Module) -> Any:
    """The class of a module as it was before it had masks."""
    return type(module).__dict__.get("_original_class", type(module))


def _masked_tensor(name: str) -> property:
    def read(module: Any) -> Any:
        if name not in module._parameters:
            raise AttributeError(f"{type(module).__name__!r} object has no attribute {name!r}")
        weight = module._parameters[name]
        masks = module._modules.get("parametrizations")
        mask = None if masks is None else masks._modules.get(name)
        if mask is None:  # a new module of this class, or torch's remove_parametrizations was here
            return weight
        held: Any = module._held
        if held is None and is_sharded(weight):
            return weight  # FSDP2 asks for the parameter itself; a forward sees it gathered
        if held and name in held:
            return held[name]
        key: Any = name
        if parametrize._cache_enabled:  # the user holds what is read for longer than a forward
            held, key = parametrize._cache, (id(mask), name)
            if key in held:
                return held[key]
        elif held is None or not mask.draws(module.training):
            return _apply(mask, weight, module.training)
        with torch.enable_grad():  # a later read may want the gradient that the first does not
            held[key] = _apply(mask, weight, module.training)
        return held[key]

    return property(read)


def _hold(module: nn.Module, tensors: dict[str, Tensor] | None) -> None:
    object.__setattr__(module, "_held", tensors)


def _apply(mask: Mask, weight: Tensor, training: bool) -> Tensor:
    try:
        return cast(Tensor, mask(weight, training))
    except AttributeError as error:
        # From a property, nn.Module would take it for "no such attribute" and go on to look in its
        # parameters, where it finds the weight without its mask.
        raise RuntimeError(f"{mask.estimator!r} failed: {error}") from error


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
        _held: dict[str, Tensor] | None = None  # what was read in the forward under way

        @functools.wraps(original.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """However often a forward reads its weight, it draws one mask."""
            if not isinstance(self, Masked) or self._held is not None:
                # kept by somebody beyond unwrap, or within a forward of this module already
                return original.forward(self, *args, **kwargs)
            _hold(self, {})
            try:
                return original.forward(self, *args, **kwargs)
            finally:
                _hold(self, None)

        def __setattr__(self, name: str, value: Any) -> None:
            """`layer.weight = tensor` assigns the tensor under the mask."""
            if name in names and name in self._parameters:
                expected = self._parameters[name].shape
                if not isinstance(value, Tensor) or value.shape != expected:
                    found = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
                    raise ValueError(
                        f"{name!r} has a mask: expected a tensor of shape {tuple(expected)}, found "
                        f"{found}. masktorch.unwrap(model) first to set anything else."
                    )
                (self._held or {}).pop(name, None)
            if name in names and type(value) is Tensor:
                with torch.no_grad():
                    self._parameters[name].copy_(value)
            elif name in names and isinstance(value, nn.Parameter) and name in self._parameters:
                # nn.Module first asks hasattr(self, name): let it find the parameter, not draw a
                # mask, nor compute one while FSDP2 swaps weight and scores one after the other.
                before = self._held
                _hold(self, {name: self._parameters[name]})
                try:
                    original.__setattr__(self, name, value)
                finally:
                    _hold(self, before)
            else:
                original.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            """torch's register_parametrization begins so, and would go on to change this class."""
            if name in self._parameters:
                raise TypeError(
                    f"{name!r} can't be taken from a layer with masks. Register parametrizations "
                    "before masktorch.wrap, or masktorch.unwrap(model) first."
                )
            original.__delattr__(self, name)

        def __reduce_ex__(self, protocol: Any) -> Any:
            """The class is made at run time, so a copy or a pickle names how to make it."""
            if original.__reduce__ is not object.__reduce__:
                raise TypeError(
                    f"a masked {original.__name__} can't be copied or pickled: the class has a "
                    "__reduce__ of its own. masktorch.unwrap(model) first."
                )
            # An RNN reads its weights into its state: let it find the parameters themselves.
            before = self._held
            _hold(self, {name: self._parameters[name] for name in attached(self)})
            try:
                state: Any = object.__reduce_ex__(self, 2)[2]
            finally:
                _hold(self, before)
            return _empty, (original, names), {**state, "_held": None}

    for name in names:
        type.__setattr__(Masked, name, _masked_tensor(name))
    Masked.__name__ = Masked.__qualname__ = f"Masked{original.__name__}"
    Masked.__module__ = original.__module__
    Masked.__doc__ = original.__doc__
    return Masked


def _empty(original: Any, names: frozenset[str]) -> nn.Module:
    cls = masked_class(original, names)
    return cls.__new__(cls)
