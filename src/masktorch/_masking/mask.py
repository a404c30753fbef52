"""The mask on a tensor: what is computed with it, where it lives, what a checkpoint knows of it."""

import json
import re
import warnings
import weakref
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from masktorch._kernels.selecting import select
from masktorch._masking.targets import plain_name
from masktorch._methods.protocol import Estimator
from masktorch._sharding import gathered, is_sharded

_CALLS = {  # what a checkpoint knows of a mask, and the calls that make a model agree
    "rescale": "masktorch.wrap(..., rescale={})",
    "mask_frozen": "masktorch.freeze_mask(model, {})",
    "weights_frozen": "masktorch.freeze_weights(model, {})",
    "estimator": "masktorch.set_estimator(model, {})",
}


class Mask(nn.Module):
    """The mask of one tensor, shared by every place that holds the tensor. Its scores are a
    parameter; those of a given mask are the mask itself, a bool buffer, frozen for good."""

    is_tensor = True  # for torch.nn.utils.parametrize: the mask sits on one tensor
    # transformers' save_pretrained puts it after this mask's name: the other names of tied scores
    _tied_weights_keys: ClassVar = {r"|\.parametrizations\.\w+\.scores$": "scores"}

    def __init__(
        self, estimator: Estimator, scores: Tensor, *, rescale: bool, trained: bool
    ):
        super().__init__()
        self.frozen = scores.dtype is torch.bool
        self.scores: Tensor = nn.Buffer(scores) if self.frozen else nn.Parameter(scores)
        self.estimator = estimator
        self.rescale = bool(rescale)
        self.trained = trained  # requires_grad of the tensor when it was wrapped
        self.homes: Any = ()  # weak keys, once it has some
        self.used: Tensor | None = (
            None  # within masktorch.using, the mask in place of its own
        )

    @property
    def learning(self) -> bool:
        """Whether training sees the estimator's own forward: not frozen, nothing used instead."""
        return not self.frozen and self.used is None

    @property
    def learns(self) -> bool:
        """Whether there are scores to train: not where the mask was given."""
        return isinstance(self.scores, nn.Parameter)

    def draws(self, training: bool) -> bool:
        """Whether two reads of the tensor may see two masks."""
        return training and self.learning and getattr(self.estimator, "draws", True)

    def mode(self) -> Tensor:
        """The deterministic mask, bool."""
        return (
            deterministic(self.estimator, self.scores)
            if self.used is None
            else self.used
        )

    def expected(self) -> Tensor:
        """The probability that each entry is kept, differentiable while the mask learns."""
        if not self.learning:
            return self.mode().to(torch.float32)
        expected = getattr(self.estimator, "expected", self.estimator)
        wide = torch.promote_types(
            self.scores.dtype, torch.float32
        )  # in half, 1 - p would be 0
        return cast(Tensor, expected(self.scores.to(wide)))

    def sample(self) -> Tensor:
        """A mask as training would draw it, bool."""
        if not self.draws(training=True):
            return self.mode().clone()
        sample = getattr(
            self.estimator, "sample", lambda scores: self.estimator(scores) > 0
        )
        return cast(Tensor, sample(self.scores))

    def forward(self, weight: Tensor, training: bool) -> Tensor:
        """`weight * m`, and `* numel / sum(m)` if rescaled; `training` is the module's mode."""
        learning = training and self.learning
        if not self.rescale and self.used is None:
            product = getattr(
                self.estimator, "product" if learning else "mode_product", None
            )
            if product is not None:
                return cast(Tensor, product(self.scores, weight))
        if learning:
            mask = self.estimator(self.scores)
            learns = torch.is_grad_enabled() and self.scores.requires_grad
            if mask.shape != self.scores.shape or (learns and not mask.requires_grad):
                raise TypeError(
                    f"{self.estimator!r} expected to return a floating-point mask that depends on "
                    f"the scores differentiably, of shape {tuple(self.scores.shape)}, found "
                    f"{mask.dtype} of {tuple(mask.shape)}, requires_grad={mask.requires_grad}."
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
            (h, name)
            for h in self.homes
            for name, mask in h.own().items()
            if mask is self
        ]

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations asks for it, too."""
        (tensor,) = {
            h.tensors[name] for h, name in self.places()
        }  # several: come untied
        return cast(Tensor, tensor)

    def get_extra_state(self) -> Tensor:
        """What a checkpoint knows of it, as JSON in bytes: of one size, to be loaded in place."""
        known = {
            "rescale": self.rescale,
            "mask_frozen": self.frozen,
            "weights_frozen": not any(
                h.tensors[name].requires_grad for h, name in self.places()
            ),
            "estimator": described(self.estimator),
        }
        code = json.dumps(known).encode().ljust(512)
        return torch.tensor(list(code), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Loading changes none of it: `compare` warns where it differs."""

    def compare(self, name: str, state: Tensor) -> None:
        """Warns where a checkpoint of the tensor `name` knows something else of its mask."""
        here = json.loads(bytes(self.get_extra_state().tolist()))
        try:
            there = json.loads(bytes(state.tolist()))
            saved = {key: there[key] for key in here if there[key] != here[key]}
        except (
            KeyError,
            TypeError,
            ValueError,
        ):  # averaged, or of another version of masktorch
            saved = dict.fromkeys(here, "?")
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
        return {**self.__dict__, "used": None, "homes": ()}

    def extra_repr(self) -> str:
        state = "frozen" if self.frozen else "learning"
        return f"{self.estimator!r}, {state}" + (
            ", rescale=True" if self.rescale else ""
        )


class Masks(nn.ModuleDict):
    """The masks of one module by the names of its parameters: its `parametrizations`."""

    def __init__(self, modules: dict[str, Any], tensors: dict[str, Any]):
        super().__init__(modules)
        self.__setstate__({"tensors": tensors})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.tensors: dict[str, Any] = state["tensors"]  # the parameters of the module
        for mask in self.own().values():
            mask.homes = mask.homes or weakref.WeakKeyDictionary()
            mask.homes[self] = None

    def own(self) -> dict[str, Mask]:
        """The masks among what computes the parameters of the module."""
        return {name: mask for name, mask in self.items() if isinstance(mask, Mask)}

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *arguments: Any
    ) -> None:
        """Compares what a checkpoint knows of each mask, once where weights are tied."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for name, mask in self.own().items():
            key = f"{prefix}{name}.scores"
            scores = state_dict.get(key)
            known = state_dict.setdefault(
                f"{prefix}{name}._extra_state"
            )  # 0.1.0 knew nothing
            first = mask.places()[0] == (self, name)
            if (
                isinstance(scores, Tensor)
                and (scores.dtype is torch.bool) == mask.learns
            ):
                what = "scores, found a mask" if mask.learns else "a mask, found scores"
                arguments[-1].append(
                    f"{key!r}: expected {what} ({scores.dtype}). Leave the 'scores' keys out, and "
                    "move masks with masktorch.set_masks."
                )
                state_dict[key] = mask.scores  # they stay
            elif (
                first
                and key in state_dict
                and isinstance(known, Tensor)
                and not known.is_meta
            ):
                mask.compare(
                    plain_name(prefix.removesuffix("parametrizations.") + name), known
                )


def described(estimator: Estimator) -> str:
    """An estimator's repr in ASCII, cut, without the address that stands in some."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", ascii(estimator))[:200]


def deterministic(estimator: Estimator, scores: Tensor) -> Tensor:
    """An estimator's mask of these scores, if it is one."""
    mask = estimator.mode(scores)
    if mask.dtype is not torch.bool or mask.shape != scores.shape:
        raise TypeError(
            f"{estimator!r}.mode() expected to return a bool tensor of shape "
            f"{tuple(scores.shape)}, found {mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask


def total(mask: Tensor) -> int:
    """The entries that a mask keeps, over all processes."""
    return int(gathered(mask.sum() if is_sharded(mask) else torch.count_nonzero(mask)))
