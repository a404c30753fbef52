"""Bad input: what is raised, in which words, and that nothing has changed."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

import masktorch
from masktorch import (
    Bernoulli,
    IntermediateSampling,
    Threshold,
)
from tools.estimators import HalfKept
from tools.models import ROWS


class Broken:
    def __call__(self, scores):
        return scores.no_such_attribute

    def mode(self, scores):
        return scores > 0


def test_errors_inside_an_estimator_are_passed_on():
    layer = masktorch.wrap(nn.Linear(4, 4), Broken())
    with pytest.raises(
        (AttributeError, RuntimeError, TypeError), match="no_such_attribute"
    ):
        layer(ROWS)


class Everything(nn.Module):
    """One of each kind of tensor that cannot be masked, and one that can."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Linear(2, 2)
        self.whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        self.complex = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.expanded = nn.Parameter(torch.ones(1).expand(3))
        self.narrow = nn.Parameter(torch.ones(4, 100)[:, :1].expand(4, 8))
        self.keys = nn.Parameter(torch.ones(2))
        self.eighth = nn.Parameter(
            torch.ones(2).to(torch.float8_e4m3fn), requires_grad=False
        )
        self.register_buffer("running", torch.ones(2))
        self.normed = weight_norm(nn.Linear(2, 2))
        self.lazy = nn.LazyLinear(2)
        self.plain = nn.Linear(2, 2, bias=False)
        self.shadowed = Shadowed()


class Shadowed(nn.Module):
    """Reading its weight means something of its own."""

    def __init__(self):
        super().__init__()
        self._parameters["weight"] = nn.Parameter(torch.ones(2))

    @property
    def weight(self):
        return 2 * self._parameters["weight"]


class NoMode:
    def __call__(self, scores):
        return scores


class FloatMode(NoMode):
    def mode(self, scores):
        return (scores > 0).float()

    def __repr__(self):
        return "FloatMode()"


def wrong_shape(weight):
    return weight[:1]


# (arguments of wrap, exception, message)
WRAP = [
    (
        dict(targets=["fine.wieght"]),
        ValueError,
        "found no parameter 'fine.wieght' in the model. Did you mean 'fine.weight'",
    ),
    (dict(targets=["qqq"]), ValueError, "found no parameter 'qqq' in the model."),
    (
        dict(targets=["running"]),
        ValueError,
        "found no parameter 'running' in the model",
    ),
    (
        dict(targets=["plain.bias"]),
        ValueError,
        "found no parameter 'plain.bias' in the model",
    ),
    (
        dict(targets=["whole"]),
        TypeError,
        "expected floating-point tensors of 16 bits or more, "
        "found 'whole' of torch.int64",
    ),
    (dict(targets=["complex"]), TypeError, "found 'complex' of torch.complex64"),
    (dict(targets=["eighth"]), TypeError, "found 'eighth' of torch.float8_e4m3fn"),
    (
        dict(targets=["narrow"]),
        ValueError,
        "can't mask 'narrow': several of its entries share",
    ),
    (
        dict(targets=["expanded"]),
        ValueError,
        "can't mask 'expanded': several of its entries share",
    ),
    (
        dict(targets=["keys"]),
        ValueError,
        "can't mask 'keys': Everything, or the ModuleDict of masks"
        ", has a 'keys' of its own. Rename it.",
    ),
    (
        dict(targets=["lazy.weight"]),
        ValueError,
        "can't mask 'lazy.weight': it has no shape yet",
    ),
    (
        dict(targets=["normed.weight"]),
        ValueError,
        "can't mask normed.weight: not a parameter, "
        "computed by weight_norm, torch.nn.utils.prune or the like. Name what it is "
        "computed from",
    ),
    (
        dict(targets="fine.weight"),
        TypeError,
        "expected a list of full tensor names, or "
        "targets(module_name, module) to return a list such as ['weight'], found "
        "'fine.weight'",
    ),
    (dict(targets=[3]), TypeError, "expected a list of full tensor names, or"),
    (dict(targets=lambda name, module: "weight"), TypeError, "found 'weight'"),
    (dict(targets=lambda name, module: True), TypeError, "found True"),
    (dict(targets=lambda name, module: [module]), TypeError, "found [Everything("),
    (dict(targets=lambda name, module: None), TypeError, "found None"),
    (dict(targets=3), TypeError, "found 3"),
    (dict(targets=nn.Linear), TypeError, "found <class 'torch"),
    (
        dict(targets=[]),
        ValueError,
        "found nothing to mask in Everything(Linear, "
        "ParametrizedLinear, LazyLinear, Linear, Shadowed): targets is empty",
    ),
    (dict(targets=lambda name, module: []), ValueError, "found nothing to mask"),
    (
        dict(estimator=Threshold, targets=["fine.weight"]),
        TypeError,
        "expected an estimator such as "
        "masktorch.Threshold(), with __call__(scores) and mode(scores)",
    ),
    (
        dict(estimator="threshold", targets=["fine.weight"]),
        TypeError,
        "Found 'threshold'",
    ),
    (
        dict(estimator=NoMode(), targets=["fine.weight"]),
        TypeError,
        "expected an estimator",
    ),
    (
        dict(estimator=FloatMode(), targets=["fine.weight"]),
        TypeError,
        "FloatMode().mode() expected "
        "to return a bool tensor that broadcasts to shape (2, 2), found torch.float32 "
        "of shape (2, 2)",
    ),
    (
        dict(init="ones", targets=["fine.weight"]),
        TypeError,
        "expected init to be a number, or a "
        "function that returns scores for 'fine.weight', found 'ones'",
    ),
    (
        dict(init=torch.ones(2, 1), targets=["fine.weight"]),
        ValueError,
        "expected init "
        "to return scores of shape (2, 2) for 'fine.weight', found shape (2, 1)",
    ),
    (
        dict(rescale="yes", targets=["fine.weight"]),
        TypeError,
        "expected rescale to be True or False, found 'yes'.",
    ),
    (
        dict(bias="no", targets=["fine.weight"]),
        TypeError,
        "expected bias to be True or False, found 'no'.",
    ),
    (
        dict(targets=["shadowed.weight"]),
        ValueError,
        "can't mask 'shadowed.weight': Shadowed, or "
        "the ModuleDict of masks, has a 'weight' of its own",
    ),
    (
        dict(init=wrong_shape, targets=["fine.weight"]),
        ValueError,
        "expected init to "
        "return scores of shape (2, 2) for 'fine.weight', found shape (1, 2)",
    ),
    (dict(init=lambda w: None, targets=["fine.weight"]), TypeError, "found None"),
    (
        dict(targets=lambda name, module: ["weight"] * (name == "lazy")),
        ValueError,
        "can't mask 'lazy.weight'",
    ),
]


def snapshot(model):
    return (
        str(model),
        [type(m) for m in model.modules()],
        {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
    )


@pytest.mark.parametrize(
    ("arguments", "exception", "message"), WRAP, ids=range(len(WRAP))
)
def test_wrap_refuses_bad_arguments_before_anything_changes(
    arguments, exception, message
):
    model = Everything()
    before = snapshot(model)
    if isinstance(targets := arguments.get("targets"), list) and targets:
        arguments = {
            **arguments,
            "targets": ["fine.bias", *targets],
        }  # one that is fine comes first
    with pytest.raises(exception, match=re.escape(message)) as raised:
        masktorch.wrap(model, **arguments)
    assert snapshot(model) == before
    assert str(raised.value).startswith(("wrap() ", "FloatMode()"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: masktorch.freeze_mask(m, "no"),
            "freeze_mask() expected frozen to be True or",
        ),
        (
            lambda m: masktorch.freeze_mask(m, None),
            "expected frozen to be True or False, found No",
        ),
        (
            lambda m: masktorch.freeze_weights(m, "no"),
            "freeze_weights() expected frozen to be",
        ),
        (
            lambda m: masktorch.unwrap(m, bake="yes"),
            "unwrap() expected bake to be True or False",
        ),
        (
            lambda m: Threshold(tau="0.5"),
            "Threshold expected tau in (0, 1), found '0.5'",
        ),
        (lambda m: Bernoulli(tau=None), "Bernoulli expected tau in (0, 1), found None"),
        (
            lambda m: IntermediateSampling("0.1"),
            "expected step_size in (0, inf), found '0.1'",
        ),
    ],
)
def test_arguments_of_the_wrong_type(small, call, message):
    masktorch.wrap(small)
    before = snapshot(small)
    with pytest.raises(TypeError, match=re.escape(message)):
        call(small)
    assert snapshot(small) == before


@pytest.mark.parametrize("value", [1, np.bool_(True)], ids=repr)
@pytest.mark.parametrize(
    ("function", "flag"),
    [
        (masktorch.wrap, "bias"),
        (masktorch.wrap, "rescale"),
        (masktorch.unwrap, "bake"),
        (masktorch.freeze_mask, "frozen"),
        (masktorch.freeze_weights, "frozen"),
    ],
)
def test_a_flag_is_a_bool(small, function, flag, value):
    if function is not masktorch.wrap:
        masktorch.wrap(small)
    before = snapshot(small)
    message = (
        f"{function.__name__}() expected {flag} to be True or False, found {value!r}"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        function(small, **{flag: value})
    assert snapshot(small) == before


def test_a_model_without_targets_is_refused():
    message = (
        "wrap() found nothing to mask in Sequential(ReLU, Flatten): it has no Linear "
        "or Conv layer."
        " Name tensors with targets=[...]."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_a_tensor_pruned_by_torch_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    prune.identity(model[0], "weight")
    message = (
        "wrap() can't mask 0.weight: not a parameter, computed by weight_norm, "
        "torch.nn.utils.prune"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(model, targets=["0.weight"])
    with (
        pytest.warns(UserWarning, match="leaves out 0.weight: .*torch.nn.utils.prune"),
        pytest.raises(ValueError, match="found nothing to mask"),
    ):
        masktorch.wrap(model)
    prune.remove(model[0], "weight")
    assert masktorch.report(masktorch.wrap(model)).kept == 4


def test_a_tensor_with_a_mask_is_refused(small):
    masktorch.wrap(small, targets=["head.weight"])
    before = snapshot(small)
    message = (
        "wrap() can't mask 'head.weight': it has a mask already. "
        "Call masktorch.unwrap(model)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(small)
    assert snapshot(small) == before
    masktorch.wrap(
        small, Bernoulli(), targets=["features.0.weight"]
    )  # another tensor may follow
    assert list(masktorch.masks(small)) == ["features.0.weight", "head.weight"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
def test_scripted_modules_are_refused():
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(
        ValueError, match=r"'weight': a TopLevelTracedModule can't hold masks"
    ):
        masktorch.wrap(scripted, targets=["weight"])


@pytest.mark.parametrize(
    "function",
    [
        masktorch.unwrap,
        masktorch.freeze_mask,
        masktorch.freeze_weights,
        masktorch.mask_parameters,
        masktorch.masks,
        lambda model: masktorch.set_masks(model, {}),
        masktorch.report,
    ],
)
def test_functions_for_wrapped_models_refuse_plain_ones(function):
    message = (
        r"\(\) expected a wrapped model: nothing is masked in Linear. "
        r"Call masktorch.wrap"
    )
    with pytest.raises(ValueError, match=message):
        function(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"\(\) expected a torch.nn.Module, found int."):
        function(3)


def test_wrap_refuses_a_list_of_modules():
    with pytest.raises(
        TypeError, match=r"wrap\(\) expected a torch.nn.Module, found list."
    ):
        masktorch.wrap([nn.Linear(2, 2)])


class BoolMask(HalfKept):
    def __call__(self, scores):
        return self.mode(scores)


def test_an_estimator_that_returns_a_bool_mask_in_training_is_refused():
    layer = masktorch.wrap(nn.Linear(2, 2), BoolMask())
    with pytest.raises(
        TypeError, match=r"HalfKept\(\) expected to return a floating-point mask"
    ):
        layer(torch.ones(1, 2))


def test_an_estimator_whose_mask_does_not_depend_on_the_scores_is_refused():
    layer = masktorch.wrap(nn.Linear(2, 2), HalfKept())
    with pytest.raises(TypeError, match="depends on the scores differentiably"):
        layer(torch.ones(1, 2))
    assert layer.eval()(torch.ones(1, 2)).shape == (1, 2)
