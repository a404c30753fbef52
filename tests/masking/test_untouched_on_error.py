"""Everything is checked first: a call that raises leaves the model unchanged."""

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Threshold, TopK

MASK = torch.eye(4, dtype=torch.bool)


class FailsOnDemand:
    """An estimator whose methods raise from the n-th call on."""

    def __init__(self):
        self.calls_left = None

    def _count(self):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise self.error

    error = RuntimeError("on demand")

    def __call__(self, scores):
        return (scores > 0) + (scores - scores.detach())

    def mode(self, scores):
        self._count()
        return scores > 0


def layers(count=3):
    return nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(count)))


def snapshot(model):
    return (
        str(model),
        [type(module) for module in model.modules()],
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        [p.detach().clone() for p in model.parameters()],
    )


def assert_unchanged(model, before):
    *same, values = before
    *now, present = snapshot(model)
    assert now == same
    for one, other in zip(values, present, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("calls", range(6))
@pytest.mark.parametrize("error", [RuntimeError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("rescale", [False, True])
def test_unwrap_with_an_estimator_that_fails(calls, error, rescale):
    """Whichever layer it is, and however often it is asked, no layer has been baked."""
    model, estimator = layers(), FailsOnDemand()
    masktorch.wrap(model, estimator, init=torch.clone, rescale=rescale)
    before = snapshot(model)
    estimator.error, estimator.calls_left = error("on demand"), calls
    try:
        masktorch.unwrap(model)
    except (error, RuntimeError):
        estimator.calls_left = None
        assert_unchanged(model, before)
        masktorch.unwrap(model)
    else:
        assert calls >= 3
    assert [type(layer) for layer in model] == [nn.Linear] * 3


def test_unwrap_of_the_last_tensor_that_may_not_be_baked():
    shared = nn.Linear(4, 4, bias=False)
    model = layers()
    model[2].weight = shared.weight
    names = [f"{i}.weight" for i in range(3)]
    masktorch.set_masks(model, dict.fromkeys(names, MASK))
    masktorch.set_masks(shared, {"weight": ~MASK})
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"can't bake '2.weight': another mask lies on it"
    ):
        masktorch.unwrap(model)
    assert_unchanged(model, before)


class NeedsWord(nn.Linear):
    def __init_subclass__(cls, *, word):
        super().__init_subclass__()


class Reluctant(Threshold):
    def init(self, weight):
        if weight.shape[0] == 5:
            raise ValueError("five rows")
        return torch.ones_like(weight)


def fails_for_the_last(weight):
    if weight.shape[0] == 5:
        raise RuntimeError("five rows")
    return weight


WRAPS = {
    "class": dict(),
    "init": dict(init=fails_for_the_last, targets=["0.weight", "1.weight"]),
    "own init": dict(estimator=Reluctant(), targets=["0.weight", "1.weight"]),
    "estimators": dict(estimator={"0.weight": TopK(), "1.weight": TopK}),
    "missing": dict(estimator={"0.weight": TopK()}, targets=["0.weight", "1.weight"]),
    "pattern": dict(targets=["0.weight", "*.gone"]),
    "bias": dict(targets=["0.weight"], bias=1),
}


@pytest.mark.parametrize("case", WRAPS)
def test_wrap(case):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 5), NeedsWord(5, 4))
    before = snapshot(model)
    state = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        masktorch.wrap(model, **WRAPS[case])
    assert_unchanged(model, before)
    assert case == "missing" or torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: masktorch.freeze_mask(m, False),
        lambda m: masktorch.freeze_mask(m, 1),
        lambda m: masktorch.freeze_weights(m, "no"),
        lambda m: masktorch.set_estimator(m, {"0.weight": TopK(), "1.weight": TopK()}),
        lambda m: masktorch.set_masks(m, {"0.weight": MASK, "1.weight": MASK[:2]}),
        lambda m: masktorch.wrap(m, targets=["2.weight", "1.weight"]),
        lambda m: masktorch.unwrap(m, bake=1),
    ],
)
def test_a_model_of_learnable_and_fixed_masks(call):
    model = layers()
    masktorch.set_masks(model, {"1.weight": MASK})
    masktorch.wrap(model, targets=["0.weight"])
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError)):
        call(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "call",
    [
        masktorch.wrap,
        lambda m: masktorch.wrap(m, targets=["1.weight"]),
        lambda m: masktorch.set_masks(m, {"0.weight": MASK}),
    ],
)
def test_parameters_over_one_memory_that_do_not_train_alike(call):
    """`unwrap` could not give both back what they had."""
    model = layers(2)
    model[1].weight = nn.Parameter(model[0].weight, requires_grad=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"can't mask '0.weight': .* with '1.weight'"):
        call(model)
    assert_unchanged(model, before)
    model[0].weight.requires_grad_(False)
    masktorch.unwrap(call(model))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "call",
    [
        masktorch.unwrap,
        lambda m: masktorch.unwrap(m, bake=False),
        lambda m: masktorch.freeze_weights(m, False),
    ],
)
def test_a_weight_that_was_created_in_inference_mode(call):
    model = layers(1)
    with torch.inference_mode():
        model.append(nn.Linear(4, 4, bias=False))
    masktorch.wrap(model)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"can't change '1.weight', which was created in"
    ):
        call(model)
    assert_unchanged(model, before)
    with torch.inference_mode():
        call(model)


NOTHING = {"weight": torch.zeros(1, 2, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: nn.Linear(2, 1), lambda m: masktorch.set_masks(m, NOTHING)),
        (
            lambda: masktorch.wrap(nn.Linear(2, 1)),
            lambda m: masktorch.set_masks(m, NOTHING),
        ),
        (
            lambda: masktorch.wrap(nn.Linear(2, 1), init=-1.0),
            lambda m: masktorch.freeze_mask(m),
        ),
    ],
    ids=["fixed", "learnable", "frozen"],
)
@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_comes_before_any_change(make, change):
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserWarning, match="keeps nothing"):
        change(model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
