"""The mask on a tensor: what is computed with it, where it lives, what a checkpoint knows of it."""

import json
import re
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from masktorch.estimators import Estimator
from masktorch.selection import select
from masktorch.targets import plain_name

_CALLS = {
    "rescale": "masktorch.wrap(..., rescale={})",
    "mask_frozen": "masktorch.freeze_mask(model, {})",
    "weights_frozen": "masktorch.freeze_weights(model, {})",
    "estimator": "masktorch.set_estimator(model, {}). "
    "Where tensors differ in it, give a mapping by name",
}
"""What a checkpoint knows of a mask, and the calls that make a model agree."""


class Mask(nn.Module):
    """The mask of one tensor, shared by every place that holds the tensor.

    Its scores are a parameter. Those of a given mask are the mask itself, a bool buffer that is
    frozen for good.
    """

    is_tensor = True  # for torch.nn.utils.parametrize: the mask sits on one tensor
    __slots__ = ("_seen",)  # the tensor under a mask seen from one of its places

    # For transformers' save_pretrained: the other names of the scores of tied weights, as a pattern
    # that it puts after this mask's own name.
    _tied_weights_keys: ClassVar = {r"|\.parametrizations\.\w+\.scores$": "scores"}

    def __init__(self, estimator: Estimator, scores: Tensor, *, rescale: bool, trained: bool):
        super().__init__()
        self.frozen = scores.dtype is torch.bool
        self.scores: Tensor = nn.Buffer(scores) if self.frozen else nn.Parameter(scores)
        self.estimator = estimator
        self.rescale = bool(rescale)
        self.trained = trained  # requires_grad of the tensor when it was wrapped
        self.homes = weakref.WeakKeyDictionary[Masks, None]()
        self.used: Tensor | None = None  # within masktorch.using, the mask in place of its own

    def mode(self) -> Tensor:
        """The deterministic mask, bool."""
        return deterministic(self.estimator, self.scores) if self.used is None else self.used

    def expected(self) -> Tensor:
        """The probability that each entry is kept, differentiable while the mask learns."""
        if not self.learning:
            return self.mode().to(torch.get_default_dtype())
        expected = getattr(self.estimator, "expected", self.estimator)
        wide = torch.promote_types(self.scores.dtype, torch.float32)  # in half, 1 - p would be 0
        return cast(Tensor, expected(self.scores.to(wide)))

    def sample(self) -> Tensor:
        """A mask as training would draw it, bool."""
        if not self.draws(training=True):
            return self.mode().clone()
        sample = getattr(self.estimator, "sample", lambda scores: self.estimator(scores) > 0)
        return cast(Tensor, sample(self.scores))

    def draws(self, training: bool) -> bool:
        """Whether two reads of the tensor may see two masks."""
        return training and self.learning and getattr(self.estimator, "draws", True)

    @property
    def learning(self) -> bool:
        """Whether training sees the estimator's own forward: not frozen, nothing used instead."""
        return not self.frozen and self.used is None

    @property
    def learns(self) -> bool:
        """Whether there are scores to train: not where the mask was given."""
        return isinstance(self.scores, nn.Parameter)

    def forward(self, weight: Tensor, training: bool) -> Tensor:
        """`weight * m`, and `* numel / sum(m)` if rescaled; `training` is the module's mode."""
        learning = training and self.learning
        if not self.rescale and self.used is None:
            product = getattr(self.estimator, "product" if learning else "mode_product", None)
            if product is not None:
                return cast(Tensor, product(self.scores, weight))
        if learning:
            mask = self.estimator(self.scores)
            learns = torch.is_grad_enabled() and self.scores.requires_grad
            fits = mask.is_floating_point() and mask.shape == self.scores.shape
            if not fits or (learns and not mask.requires_grad):
                raise TypeError(
                    f"{self.estimator!r} expected to return a floating-point mask of shape "
                    f"{tuple(self.scores.shape)} that depends on the scores differentiably, found "
                    f"{mask.dtype} of shape {tuple(mask.shape)}, "
                    f"requires_grad={mask.requires_grad}."
                )
            masked = weight * mask
        else:
            mask = self.mode()
            masked = select(mask, weight)
        if self.rescale:
            kept = mask.sum(dtype=torch.promote_types(weight.dtype, torch.float32))
            # may be too large for half precision; where nothing is kept, nothing is scaled
            factor = mask.numel() / torch.where(kept > 0, kept, 1.0)
            masked = (masked.to(factor.dtype) * factor).to(weight.dtype)
        return masked

    def places(self) -> "list[tuple[Masks, str]]":
        """Where the mask is: the masks of a module, the name of the parameter."""
        return [
            (home, name)
            for home in self.homes
            for name, mask in home.own().items()
            if mask.homes is self.homes
        ]

    def originals(self) -> list[Tensor]:
        """The tensor under the mask; several if something has untied what was tied."""
        return list(dict.fromkeys(home.tensors[name] for home, name in self.places()))

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations asks for it."""
        seen = getattr(self, "_seen", None)
        return self.originals()[0] if seen is None else seen

    def get_extra_state(self) -> Tensor:
        """What a checkpoint knows of the mask beside its scores, as JSON in bytes: of one size, as
        loading in place asks for."""
        known = {
            "rescale": self.rescale,
            "mask_frozen": self.frozen,
            "weights_frozen": not any(tensor.requires_grad for tensor in self.originals()),
            "estimator": described(self.estimator),
        }
        code = json.dumps(known).encode().ljust(512)
        return torch.tensor(list(code), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Loading changes none of it: `compare` warns where it differs."""

    def compare(self, name: str, state: Tensor) -> None:
        """Warns where a checkpoint of the tensor `name` knows something else of its mask."""
        try:
            here, there = (json.loads(bytes(s.tolist())) for s in (self.get_extra_state(), state))
            saved = {key: there[key] for key in here if there[key] != here[key]}
        except (KeyError, TypeError, ValueError):
            warnings.warn(
                f"load_state_dict() can't read what the checkpoint knows of the mask of {name!r}: "
                "it may be of another version of masktorch. Check that it is of the same "
                "estimator, rescale and phase.",
                stacklevel=2,
            )
            return
        if saved:
            warnings.warn(
                f"load_state_dict() of {name!r}: its mask was saved with "
                f"{', '.join(f'{key}={value}' for key, value in saved.items())}; here it has "
                f"{', '.join(f'{key}={here[key]}' for key in saved)}. To make them agree: "
                f"{', '.join(_CALLS[key].format(value) for key, value in saved.items())}.",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy has places of its own, and what masktorch.using put in place of it ends there."""
        return {**self.__dict__, "used": None, "homes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "homes": weakref.WeakKeyDictionary()})  # type: ignore[no-untyped-call]

    def append(self, parametrization: nn.Module) -> NoReturn:
        """torch's register_parametrization asks for it."""
        raise TypeError(
            "a masked tensor can't be parametrized further. Register other parametrizations before "
            "masktorch.wrap, and mask the tensors they compute with (targets=[...])."
        )

    def extra_repr(self) -> str:
        state = "frozen" if self.frozen else "learning"
        return f"{self.estimator!r}, {state}" + (", rescale=True" if self.rescale else "")


class Masks(nn.ModuleDict):
    """The masks of one module by the names of its parameters: its `parametrizations`."""

    def __init__(self, modules: Mapping[str, nn.Module], tensors: dict[str, Any]):
        super().__init__(modules)
        self.tensors = tensors  # the parameters of the module
        for mask in self.own().values():
            mask.homes[self] = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        for mask in self.own().values():
            mask.homes[self] = None

    def own(self) -> dict[str, Mask]:
        """The masks among what computes the parameters of the module."""
        return {name: mask for name, mask in self.items() if isinstance(mask, Mask)}

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, getattr(self, name))

    def __getattr__(self, name: str) -> Any:
        """A mask; where its places hold several tensors, as one whose `original` is that here."""
        mask = super().__getattr__(name)
        if torch.compiler.is_compiling() or not isinstance(mask, Mask) or len(mask.originals()) < 2:
            return mask
        seen = Mask.__new__(Mask)
        object.__setattr__(seen, "__dict__", mask.__dict__)
        object.__setattr__(seen, "_seen", self.tensors[name])
        return seen

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Compares what a checkpoint knows of each mask, once where weights are tied."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for name, mask in self.own().items():
            key = f"{prefix}{name}.scores"
            scores = state_dict.get(key)
            known = state_dict.setdefault(f"{prefix}{name}._extra_state")  # 0.1.0 knew nothing
            first = mask.places()[0] == (self, name)
            if isinstance(scores, Tensor) and (scores.dtype is torch.bool) == mask.learns:
                what = "scores, found a mask" if mask.learns else "a mask, found scores"
                arguments[-1].append(
                    f"{key!r}: expected {what} ({scores.dtype}). Masks that learn have scores, "
                    "those that load_masks put on a plain model have none: leave the 'scores' keys "
                    "out, and move masks with masktorch.load_masks or set_masks."
                )
                state_dict[key] = mask.scores  # they stay
            elif first and key in state_dict and isinstance(known, Tensor) and not known.is_meta:
                mask.compare(plain_name(prefix.removesuffix("parametrizations.") + name), known)


def described(estimator: Estimator) -> str:
    """An estimator's repr in ASCII, cut, without the address that stands in some."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(estimator))
    return text.encode("ascii", "backslashreplace")[:200].decode()


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
