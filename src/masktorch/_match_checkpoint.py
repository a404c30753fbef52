"""Make a model what it was when a checkpoint was saved, before weights are loaded."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masktorch._masking.lookup import (
    Model,
    check_can_change,
    check_not_distributed,
    find_masks,
    set_trains,
)
from masktorch._masking.mask import Mask, attached, deterministic
from masktorch._masking.module_class import attach, detach, masked_class, original_class
from masktorch._masking.names import join, plain_name
from masktorch._masking.overrides import override_of
from masktorch._masking.places import Place, places_of
from masktorch._masking.saved_state import (
    MaskState,
    class_name,
    described,
    has_complete_repr,
    restored,
    tensor_name,
    unpacked,
)
from masktorch._masking.scores import scores_dtype
from masktorch._masking.targets import plan, refuse_learnable_masks_elsewhere
from masktorch._methods.fixed import Fixed
from masktorch._methods.protocol import Estimator

CALLER = "match_checkpoint"
_MASK_OF_SCORES = re.compile(r"((?:.*\.)?parametrizations\.[^.]+)\.scores")


def match_checkpoint(
    model: Model,
    state_dict: Mapping[str, Any],
    *,
    prefix: str = "",
    estimators: Iterable[type] = (),
) -> Model:
    """Make a model what it was when a state dict was saved, except for its values.

    Afterwards the model has masks on the same tensors, learnable or fixed, with the
    same estimators, `rescale` and phase, and `model.load_state_dict(state_dict)` loads
    scores and weights without a warning. Masks that the checkpoint lacks are taken off,
    and leave the tensors under them as they are. Nothing is loaded, drawn or evaluated,
    and on an error the model is unchanged.

    Args:
        model: plain or wrapped. Its parameters, and scores of the right shape, stay the
            same objects, so an optimiser may hold them already.
        state_dict: what `model.state_dict()` returned when it was saved.
        prefix: what the names in `state_dict` begin with, such as `"model."` where a
            LightningModule holds the model.
        estimators: the classes of your own estimators. An estimator is stored as the
            name of its class and its dataclass fields, which must be JSON values,
            tuples or estimators; a class that is not a dataclass must not have instance
            attributes.

    Returns:
        The same model.

    Raises:
        ValueError: there is no mask under this prefix; a tensor is missing, has another
            shape, was made in inference mode or has a learnable mask elsewhere; an
            estimator can't be restored; what the checkpoint knows of a mask can't be
            read; or the model is distributed already.
        TypeError: an argument is of the wrong kind.

    Examples:
        >>> from masktorch import Bernoulli, freeze_mask, wrap
        >>> state = freeze_mask(wrap(nn.Linear(2, 1), Bernoulli(0.3))).state_dict()
        >>> match_checkpoint(nn.Linear(2, 1), state).parametrizations.weight
        Mask(Bernoulli(tau=0.3), frozen)
    """
    check_not_distributed(model, CALLER, "Match first, then DDP or fully_shard.")
    saved = _by_first_names(model, _saved_masks(state_dict, prefix))
    classes = _classes_by_name(estimators)
    _check_names(model, saved, prefix)
    matches, removed = [], []
    for present, places in _tensors(model, saved):
        if present is not None and override_of(present) is not None:
            raise ValueError(
                f"{CALLER}() within masktorch.using would end its masks: leave it "
                "first."
            )
        own = _agreed(places, saved, state_dict, prefix)
        if own is not None:
            matches.append(_matched(places, present, own, classes))
        elif present is not None:
            removed.append((present, places))
    replaced = [
        m.places for m in matches if m.mask.has_scores and m.present is not m.mask
    ]
    refuse_learnable_masks_elsewhere(CALLER, model, replaced)
    for match in matches:
        check_can_change("match_checkpoint", match.places)
    _put_masks(model, matches)
    for mask, places in removed:
        for place in places:
            set_trains(place.parameter, mask.was_trainable)
    for match in matches:
        _set_state(match)
    return model


# -- reading the checkpoint ------------------------------------------------------------


class _Saved(NamedTuple):
    """One mask in a state dict."""

    scores: Tensor  # only its shape and dtype matter; bool if the mask is fixed
    state: MaskState


def _saved_masks(state_dict: Mapping[str, Any], prefix: str) -> dict[str, _Saved]:
    """The masks of a state dict by the names of their tensors, without the prefix."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{CALLER}() expected a state dict, as model.state_dict() returns it, "
            f"found {type(state_dict).__name__}."
        )
    if not isinstance(prefix, str):
        raise TypeError(f"{CALLER}() expected prefix to be a string, found {prefix!r}.")
    if prefix and not prefix.endswith("."):
        raise ValueError(
            f"{CALLER}() expected prefix to end with a dot, as {prefix + '.'!r}, found "
            f"{prefix!r}."
        )
    saved = {}
    for mask_name, scores in _scores_in(state_dict):
        if mask_name.startswith(prefix):
            name = tensor_name(mask_name.removeprefix(prefix))
            saved[name] = _Saved(scores, _saved_state(state_dict, mask_name))
    if not saved:
        raise ValueError(
            f"{CALLER}() found no mask in the state dict under the prefix {prefix!r}. "
            f"{_prefixes_found(state_dict)}"
        )
    return saved


def _scores_in(state_dict: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The name of each mask in a state dict, with its scores."""
    for key, value in state_dict.items():
        match = _MASK_OF_SCORES.fullmatch(key) if isinstance(key, str) else None
        if match and isinstance(value, Tensor):
            yield match[1], value


def _saved_state(state_dict: Mapping[str, Any], mask_name: str) -> MaskState:
    extra_state = state_dict.get(f"{mask_name}._extra_state")
    name = tensor_name(mask_name)
    if extra_state is None:
        raise ValueError(
            f"{CALLER}() found scores of {name!r} in the state dict, but no "
            f"'{mask_name}._extra_state', which has the estimator and the phase. Give "
            "a whole state dict, or call masktorch.wrap and the functions that set the "
            "phase yourself."
        )
    state = unpacked(extra_state)
    if state is None:
        raise ValueError(
            f"{CALLER}() can't read what the state dict knows of the mask of {name!r}: "
            f"'{mask_name}._extra_state' is damaged, or an average of several. Give "
            "the state dict as it was saved."
        )
    return state


def _prefixes_found(state_dict: Mapping[str, Any]) -> str:
    names = [tensor_name(mask_name) for mask_name, _ in _scores_in(state_dict)]
    prefixes = {""} if names else set()
    for name in names:
        parts = name.split(".")[:-1]
        prefixes |= {".".join(parts[:n]) + "." for n in range(1, len(parts) + 1)}
    if not prefixes:
        some = ", ".join(map(repr, list(state_dict)[:3])) or "nothing"
        return f"It has no masks at all, but {some}."
    return f"Prefixes of masks in it: {', '.join(map(repr, sorted(prefixes)))}."


def _classes_by_name(estimators: Iterable[type]) -> dict[str, type]:
    classes: dict[str, type] = {}
    expected = (
        f"{CALLER}() expected estimators to be the classes of your own estimators, "
        "such as estimators=(MyEstimator,)"
    )
    if isinstance(estimators, type | str) or not isinstance(estimators, Iterable):
        raise TypeError(f"{expected}, found {estimators!r}.")
    for kind in estimators:
        if not isinstance(kind, type) or not issubclass(kind, Estimator):
            raise TypeError(f"{expected}, found {kind!r}.")
        if classes.setdefault(class_name(kind), kind) is not kind:
            raise ValueError(f"{expected}, found two with the name {kind.__name__!r}.")
    return classes


# -- finding the tensors ---------------------------------------------------------------


def _by_first_names(model: nn.Module, saved: dict[str, _Saved]) -> dict[str, _Saved]:
    """Drop the other names of a module that the model holds in several places.

    A state dict lists its tensors under each of them, the model under the first.
    """
    first_names: dict[nn.Module, str] = {}
    owners: dict[str, str] = {}
    for module_name, module in model.named_modules(remove_duplicate=False):
        name = plain_name(module_name)
        owners[name] = first_names.setdefault(module, name)
    renamed: dict[str, _Saved] = {}
    for name, mask in saved.items():
        owner, _, attribute = name.rpartition(".")
        first_name = join(owners.get(owner, owner), attribute)
        if not _are_equal(renamed.setdefault(first_name, mask), mask):
            raise ValueError(
                f"{CALLER}() found two masks of {first_name!r}, which this model also "
                f"calls {name!r}, in the state dict. Build the model as it was saved."
            )
    return renamed


def _check_names(model: nn.Module, saved: Iterable[str], prefix: str) -> None:
    """Raise if a tensor that is masked in the checkpoint is not in the model."""
    names = {place.name for place in places_of(model)}
    for name in saved:
        if name not in names:
            raise ValueError(
                f"{CALLER}() found a mask of {prefix + name!r} in the state dict, but "
                f"no parameter {name!r} in {type(model).__name__}."
                f"{_hint(name, names, prefix)}"
            )


def _hint(name: str, names: set[str], prefix: str) -> str:
    parts = name.split(".")
    for first in range(1, len(parts)):
        if ".".join(parts[first:]) in names:
            return f" Did you mean prefix={prefix + '.'.join(parts[:first]) + '.'!r}?"
    near = difflib.get_close_matches(name, names, n=3)
    return f" It has {' and '.join(map(repr, near))}." if near else ""


def _tensors(
    model: nn.Module, names: Iterable[str]
) -> list[tuple[Mask | None, list[Place]]]:
    """The masks of a model, and the plain tensors of these names, with their places."""
    masked: list[tuple[Mask | None, list[Place]]] = [*find_masks(model, CALLER)]
    known = {place.name for _, places in masked for place in places}
    plain = [name for name in names if name not in known]
    if plain:
        planned = plan(model, plain, patterns=False, caller=CALLER)
        masked += [(None, places) for _, places in planned]
    return masked


def _agreed(
    places: list[Place],
    saved: Mapping[str, _Saved],
    state_dict: Mapping[str, Any],
    prefix: str,
) -> _Saved | None:
    """What a checkpoint has of the mask of one tensor, which may live in many places.

    A file may hold a tied tensor under one of its names only, and its scores under
    another one. But a tensor that it holds plain, or under another mask, was not tied
    or had a fixed mask for each module.
    """
    masked = [place.name for place in places if place.name in saved]
    if not masked:
        return None
    own = saved[masked[0]]
    for place in places:
        other = saved.get(place.name)
        if other is None and (
            f"{prefix}{place.name}" not in state_dict
            or _extra_state_key(f"{prefix}{place.name}") in state_dict
        ):
            continue
        if other is None or not _are_equal(own, other):
            found = "no" if other is None else "another"
            raise ValueError(
                f"{CALLER}() found one mask of {masked[0]!r} in the state dict and "
                f"{found} mask of {place.name!r}, but here the two are tied. Match "
                "each module on its own, with its prefix."
            )
    return own


def _extra_state_key(name: str) -> str:
    """The key under which a state dict has what it knows of the mask of a tensor."""
    module_name, _, attribute = name.rpartition(".")
    return f"{join(module_name, 'parametrizations')}.{attribute}._extra_state"


def _are_equal(one: _Saved, other: _Saved) -> bool:
    if one.state != other.state or one.scores.shape != other.scores.shape:
        return False
    if one.scores.is_meta or other.scores.is_meta:
        return True
    if one.scores.data_ptr() == other.scores.data_ptr():
        return True
    return torch.equal(one.scores, other.scores)


# -- changing the model ----------------------------------------------------------------


class _Match(NamedTuple):
    """A tensor, the mask that it has, and the one to have, with its state."""

    places: list[Place]
    present: Mask | None
    mask: Mask  # the present one, or another
    estimator: Estimator
    state: MaskState


def _matched(
    places: list[Place],
    present: Mask | None,
    saved: _Saved,
    classes: Mapping[str, type],
) -> _Match:
    """Plan the mask of a tensor: the present one if its scores fit, or another."""
    name, weight = places[0].name, places[0].parameter
    like = _scores_like(saved.scores, weight)
    if like.dtype is torch.bool:
        estimator: Estimator = Fixed()
    else:
        estimator = _estimator(name, present, saved.state.estimator, classes)
    mask = present
    if mask is None or not _are_alike(mask.scores, like):
        was_trainable = (
            weight.requires_grad if present is None else present.was_trainable
        )
        mask = Mask(
            estimator,
            like,
            shape=weight.shape,
            rescale=saved.state.rescale,
            was_trainable=was_trainable,
        )
    try:
        deterministic(estimator, mask.scores, weight.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{CALLER}() can't mask {name!r} of shape {tuple(weight.shape)} with the "
            f"scores of the state dict, of shape {tuple(saved.scores.shape)}: {error}"
        ) from error
    return _Match(places, present, mask, estimator, saved.state)


@torch.inference_mode(False)  # tensors made in inference mode never learn
def _scores_like(saved: Tensor, weight: Tensor) -> Tensor:
    """Scores or a fixed mask to load into: of the shape that was saved."""
    shape, device = saved.shape, weight.device
    if saved.dtype is torch.bool:
        return torch.ones(shape, dtype=torch.bool, device=device)
    dtype = torch.promote_types(scores_dtype(weight), saved.dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def _are_alike(one: Tensor, other: Tensor) -> bool:
    """Whether both are scores, or both fixed masks, of one shape: loading widens."""
    both_fixed = (one.dtype is torch.bool) == (other.dtype is torch.bool)
    return one.shape == other.shape and both_fixed


def _estimator(
    name: str, present: Mask | None, saved: Any, classes: Mapping[str, type]
) -> Estimator:
    """The estimator that was saved.

    If the checkpoint has only its repr, the present one stays if it has the same repr,
    and if that repr leaves nothing out.
    """
    if present is not None and described(present.estimator) == saved:
        if has_complete_repr(present.estimator):
            return present.estimator
        raise ValueError(
            f"{CALLER}() can't compare the estimator of {name!r} with the one that was "
            f"saved, because its repr leaves values out: {saved}. Make its class a "
            "frozen dataclass of plain values, or call load_state_dict alone."
        )
    try:
        return restored(saved, classes)
    except ValueError as error:
        raise ValueError(
            f"{CALLER}() can't restore the estimator of {name!r}: {error}."
        ) from error


def _put_masks(model: nn.Module, matches: Iterable[_Match]) -> None:
    """Put the planned masks on their places, and take all other masks off."""
    wanted = {
        (place.module, place.attribute): match.mask
        for match in matches
        for place in match.places
    }
    changed: dict[nn.Module, dict[str, Mask]] = {}
    for module in model.modules():
        masks = {
            attribute: wanted[module, attribute]
            for attribute in module._parameters
            if (module, attribute) in wanted
        }
        if masks != attached(module):
            changed[module] = masks
    for module, masks in changed.items():
        if masks:  # a class that can't be subclassed raises before anything changes
            masked_class(original_class(module), frozenset(masks))
    for module, masks in changed.items():
        if attached(module):
            detach(module)
        if masks:
            attach(module, masks)


def _set_state(match: _Match) -> None:
    """Give a mask its estimator, rescale and phase."""
    mask, state = match.mask, match.state
    mask.use_estimator(match.estimator)
    mask.rescale = state.rescale
    if mask.has_scores:
        mask.frozen = state.mask_frozen
        set_trains(mask.scores, state.scores_train)
    for place in match.places:
        set_trains(place.parameter, not state.weights_frozen)
