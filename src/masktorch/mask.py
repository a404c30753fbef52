"""The mask on a tensor: what is computed with it, where it lives, what a checkpoint knows of it."""

import json
import re
import warnings
import weakref
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from masktorch.estimators import Estimator
from masktorch.selection import select
from masktorch.targets import plain_name

_SIZE = 512
"""Bytes of what a checkpoint knows of a mask: one size, as loading in place asks for."""


class Mask(nn.Module):
    """The mask of one tensor, shared by every place that holds the tensor.

    Its scores are a parameter. Those of a given mask are the mask itself, a bool buffer that is
    frozen for good.
    """

    is_tensor = True  # for torch.nn.utils.parametrize: the mask sits on one tensor
    __slots__ = ("_place",)  # of a mask seen from one of its places

    # For transformers' save_pretrained, which writes a tensor under one of its names only and wants
    # to be told the others, as a pattern that it puts after this mask's own name: the scores of
    # tied weights have a name in every place.
    _tied_weights_keys: ClassVar = {r"|\.parametrizations\.\w+\.scores$": "scores"}

    def __init__(self, estimator: Estimator, scores: Tensor, *, rescale: bool, trained: bool):
        super().__init__()
        self.scores: Tensor
        if scores.dtype is torch.bool:
            self.register_buffer("scores", scores)
        else:
            self.scores = nn.Parameter(scores)
        self.estimator = estimator
        self.rescale = bool(rescale)
        self.trained = trained  # requires_grad of the tensor when it was wrapped
        self.frozen = scores.dtype is torch.bool
        self.homes = weakref.WeakKeyDictionary[Masks, None]()
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
        # in half precision 1 - p would be 0
        wide = torch.promote_types(self.scores.dtype, torch.float32)
        return cast(Tensor, expected(self.scores.to(wide)))

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
            masked = select(mask, weight)
        if self.rescale:
            kept = mask.sum(dtype=torch.promote_types(weight.dtype, torch.float32))
            # may be too large for half precision; where nothing is kept, nothing is scaled
            factor = mask.numel() / torch.where(kept > 0, kept, 1.0)
            masked = (masked.to(factor.dtype) * factor).to(weight.dtype)
        return masked

    @property
    def learns(self) -> bool:
        """Whether there are scores to train: not where the mask was given."""
        return isinstance(self.scores, nn.Parameter)

    def places(self) -> "list[tuple[Masks, str]]":
        """Where the mask is: the masks of a module, the name of the parameter."""
        return [
            (home, name)
            for home in self.homes
            for name, mask in home.items()
            if isinstance(mask, Mask) and mask.homes is self.homes
        ]

    def seen_from(self, home: "Masks", name: str) -> "Mask":
        """The mask; where its places hold several tensors, as one whose `original` is that one."""
        if torch.compiler.is_compiling() or len({id(h.tensors[n]) for h, n in self.places()}) < 2:
            return self
        seen = Mask.__new__(Mask)
        object.__setattr__(seen, "__dict__", self.__dict__)
        object.__setattr__(seen, "_place", (home, name))
        return seen

    @property
    def original(self) -> Tensor:
        """The tensor under the mask; torch's remove_parametrizations asks for it."""
        home, name = getattr(self, "_place", None) or self.places()[0]
        return cast(Tensor, home.tensors[name])

    def known(self) -> dict[str, Any]:
        """What a checkpoint knows of the mask beside its scores."""
        return {
            "estimator": described(self.estimator),
            "rescale": self.rescale,
            "mask_frozen": self.frozen,
            "weights_frozen": not any(
                cast(Tensor, home.tensors[name]).requires_grad for home, name in self.places()
            ),
        }

    def get_extra_state(self) -> Tensor:
        """That, as JSON in bytes."""
        code = json.dumps(self.known()).encode().ljust(_SIZE)
        return torch.tensor(list(code), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Loading changes none of it: `compare` warns where it differs."""

    def compare(self, name: str, state: Tensor) -> None:
        """Warns where a checkpoint of the tensor `name` knows something else of its mask."""
        present = self.known()
        try:
            loaded = json.loads(bytes(state.tolist()))
            saved = {key: loaded[key] for key in present}
        except (KeyError, TypeError, ValueError):
            warnings.warn(
                f"load_state_dict() can't read what the checkpoint knows of the mask of {name!r}: "
                "it may be of another version of masktorch. Check that it is of the same "
                "estimator, rescale and phase.",
                stacklevel=2,
            )
            return
        other = [key for key in present if saved[key] != present[key]]
        if other:
            calls = {
                "estimator": f"masktorch.set_estimator(model, {saved['estimator']})",
                "rescale": f"masktorch.wrap(..., rescale={saved['rescale']})",
                "mask_frozen": f"masktorch.freeze_mask(model, {saved['mask_frozen']})",
                "weights_frozen": f"masktorch.freeze_weights(model, {saved['weights_frozen']})",
            }
            warnings.warn(
                f"load_state_dict() of {name!r}: its mask was saved with "
                f"{', '.join(f'{key}={saved[key]}' for key in other)}; here it has "
                f"{', '.join(f'{key}={present[key]}' for key in other)}. To make them agree: "
                f"{', '.join(calls[key] for key in other)}."
                + " Where tensors differ in it, give a mapping by name."
                * ("estimator" in other),
                stacklevel=2,
            )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Scores are no mask: copied into one, all but zeros would be kept."""
        found, name = state_dict.get(prefix + "scores"), prefix + "scores"
        *_, missing, _, errors = arguments
        if isinstance(found, Tensor) and (found.dtype is torch.bool) == self.learns:
            expected, other = ("scores", "a mask") if self.learns else ("a mask", "scores")
            errors.append(
                f"{name!r}: expected {expected}, found {other} ({found.dtype}). Masks that learn "
                "have scores, those that load_masks put on a plain model have none: leave the "
                "'scores' keys out, and move masks with masktorch.load_masks or set_masks."
            )
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)
            if prefix + "_extra_state" in missing:  # a checkpoint of 0.1.0 knows nothing
                missing.remove(prefix + "_extra_state")

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle has the mask's own: what is used within masktorch.using ends there,
        and its places are those of the copy."""
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

    tensors: dict[str, Tensor | None]  # the parameters of the module

    def __setitem__(self, name: str, module: nn.Module) -> None:
        super().__setitem__(name, module)
        self._at_home()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._at_home()

    def _at_home(self) -> None:
        for mask in self.values():
            if isinstance(mask, Mask):
                mask.homes[self] = None

    def __getitem__(self, name: str) -> nn.Module:
        return cast(nn.Module, getattr(self, name))

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return found.seen_from(self, name) if isinstance(found, Mask) else found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        """Compares what a checkpoint knows of each mask, once where weights are tied, if its scores
        are loaded too."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        for name, mask in self.items():
            scores = state_dict.get(f"{prefix}{name}.scores")
            known = state_dict.get(f"{prefix}{name}._extra_state")
            if (
                isinstance(mask, Mask)
                and isinstance(scores, Tensor)
                and isinstance(known, Tensor)
                and mask.learns == (scores.dtype is not torch.bool)
                and mask.places()[0] == (self, name)
                and not known.is_meta
            ):
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
