"""What cannot be masked: the name, the reason, what to do, what is left out."""

import re

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

import masktorch
from masktorch import NOfM, Threshold, TopK
from masktorch._masking.mask import Masks

MASK = torch.eye(4, dtype=torch.bool)


def snapshot(model):
    return (
        str(model),
        [type(module) for module in model.modules()],
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
    )


# -- quantised weights -----------------------------------------------------------------


class Int8Tensor(torch.Tensor):
    """As torchao has it: it says bfloat16, holds int8, and can do little."""

    @staticmethod
    def __new__(cls, values, scale):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, dtype=torch.bfloat16, device=values.device
        )

    def __init__(self, values, scale):
        self.values, self.scale = values, scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        def again(tensor):
            return cls(tensor.values, tensor.scale)

        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return return_and_correct_aliasing(func, args, kwargs or {}, again(args[0]))
        raise NotImplementedError(f"{func} is not supported")


class Params4bit(nn.Parameter):
    """As bitsandbytes has it: packed bytes."""


class OnItsWay(nn.Parameter):
    """As bitsandbytes has it before it moves to an accelerator: still 16 bits."""


OnItsWay.__module__ = "bitsandbytes.nn.modules"


def of_class(kind, data):
    return torch.Tensor._make_subclass(kind, data)


QUANTISED = {
    "int8 tensor": lambda: nn.Parameter(
        Int8Tensor(torch.ones(4, 4, dtype=torch.int8), 0.1), requires_grad=False
    ),
    "int8": lambda: nn.Parameter(
        torch.ones(4, 4, dtype=torch.int8), requires_grad=False
    ),
    "packed 4 bits": lambda: of_class(Params4bit, torch.ones(8, 1, dtype=torch.uint8)),
    "on its way": lambda: of_class(OnItsWay, torch.ones(4, 4, dtype=torch.half)),
    "float8": lambda: nn.Parameter(
        torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False
    ),
    "sparse": lambda: nn.Parameter(torch.eye(4).to_sparse()),
}
FOUND = {
    "int8 tensor": "of Int8Tensor (a tensor subclass, torch.bfloat16)",
    "int8": "of torch.int8",
    "packed 4 bits": "of torch.uint8",
    "on its way": "of OnItsWay (a tensor subclass, torch.float16)",
    "float8": "of torch.float8_e4m3fn",
    "sparse": "of layout torch.sparse_coo",
}
each_kind = pytest.mark.parametrize("kind", QUANTISED)


def quantised(kind, layers=1):
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(layers)))
    for layer in model:
        del layer.weight
        layer.register_parameter("weight", QUANTISED[kind]())
    return model


def types_and_parameters(model):
    return (
        [type(module) for module in model.modules()],
        [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
    )


@each_kind
@pytest.mark.parametrize(
    "call",
    [
        lambda m: masktorch.wrap(m, targets=["1.weight", "0.weight"]),
        lambda m: masktorch.wrap(m, targets=["*.weight"]),
        lambda m: masktorch.wrap(m, {"*": TopK()}),
        lambda m: masktorch.wrap(
            m, targets=lambda n, _: ["weight"] if n in ("0", "1") else []
        ),
        lambda m: masktorch.set_masks(m, {"1.weight": MASK, "0.weight": MASK}),
    ],
    ids=["name", "pattern", "mapping", "function", "set_masks"],
)
def test_a_quantised_tensor_that_is_named(kind, call):
    model = nn.Sequential(*quantised(kind), nn.Linear(4, 4, bias=False))
    before = types_and_parameters(model)
    message = (
        "expected floating-point tensors of 16 bits or more, "
        f"found '0.weight' {FOUND[kind]}"
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        call(model)
    assert types_and_parameters(model) == before


@each_kind
def test_the_default_targets_leave_quantised_layers_out(kind):
    model = nn.Sequential(
        *quantised(kind, layers=7), nn.Linear(4, 4), nn.Conv1d(1, 1, 1)
    )
    with pytest.warns(UserWarning, match="leaves out") as caught:
        masktorch.wrap(model)
    assert list(masktorch.masks(model)) == ["7.weight", "8.weight"]
    (warning,) = caught
    assert warning.filename == __file__
    listed = "'0.weight', '1.weight', '2.weight', '3.weight', '4.weight' and 2 more"
    assert f"wrap() leaves out {listed}: " in str(warning.message)
    assert f"found '0.weight' {FOUND[kind]}" in str(warning.message)
    masktorch.unwrap(model)


@each_kind
def test_nothing_is_left_to_mask(kind):
    model = quantised(kind, layers=2)
    message = (
        "found nothing to mask in Sequential(Linear, Linear): "
        "it left out '0.weight', '1.weight'"
    )
    with (
        pytest.warns(UserWarning, match="leaves out '0.weight', '1.weight'"),
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        masktorch.wrap(model)


def test_a_complex_weight_is_left_out_as_well():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match="found '0.weight' of torch.complex64"):
        masktorch.wrap(model)
    assert list(masktorch.masks(model)) == ["1.weight"]


class Tagged(nn.Parameter):
    """A subclass that holds plain values."""


def test_a_subclass_that_holds_plain_values_is_masked():
    layer = nn.Linear(4, 4)
    layer.weight = of_class(Tagged, torch.ones(4, 4))
    masktorch.set_masks(masktorch.wrap(layer), {"weight": MASK})
    layer(torch.ones(1, 4)).sum().backward()
    assert torch.equal(layer.weight != 0, MASK)
    assert type(masktorch.unwrap(layer).weight) is Tagged


# -- names that collide ----------------------------------------------------------------


def attributes_of_containers():
    own = {name for name in dir(Masks({}, nn.Module())) if not name.startswith("__")}
    taken = {name for name in dir(nn.Module()) if not name.startswith("__")}
    return sorted(own - taken)


@pytest.mark.parametrize("name", attributes_of_containers())
@pytest.mark.parametrize(
    "call",
    [
        lambda m, name: masktorch.wrap(m, targets=["0.weight", f"1.{name}"]),
        lambda m, name: masktorch.set_masks(
            m, {"0.weight": MASK[:2, :2], f"1.{name}": MASK[0]}
        ),
    ],
    ids=["wrap", "set_masks"],
)
def test_the_name_of_an_attribute_of_the_masks(name, call):
    model = nn.Sequential(nn.Linear(2, 2), nn.Module())
    model[1].register_parameter(name, nn.Parameter(torch.ones(4)))
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"can't mask '1.{name}': .*Rename it"):
        call(model, name)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "name", ["_held", "reads", "masks", "scores", "estimator", "frozen", "original"]
)
def test_other_names_are_free(name):
    class Own(nn.Linear):
        pass

    layer = Own(2, 2)
    value = object()
    setattr(layer, name, value)
    masktorch.wrap(layer)
    layer(torch.ones(1, 2))
    assert getattr(layer, name) is value
    assert vars(masktorch.unwrap(layer))[name] is value
    module = nn.Module()
    module.register_parameter(name, nn.Parameter(torch.ones(3)))
    masktorch.wrap(module, targets=[name])
    masktorch.set_masks(module, {name: torch.tensor([True, False, True])})
    assert getattr(module, name).tolist() == [1, 0, 1]
    assert getattr(masktorch.unwrap(module), name).tolist() == [1, 0, 1]


# -- scripted and traced modules -------------------------------------------------------


def scripted():
    return torch.jit.script(nn.Linear(4, 4))


def scripted_blocks():
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


def traced():
    return torch.jit.trace(nn.Linear(4, 4), torch.ones(1, 4))


def frozen():
    return torch.jit.freeze(torch.jit.script(nn.Linear(4, 4).eval()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [scripted, scripted_blocks, traced, frozen])
def test_a_model_with_a_compiled_part_lives_as_any_other(compiled, tmp_path):
    model = nn.Sequential(compiled(), nn.Linear(4, 4))
    masktorch.wrap(model)
    assert list(masktorch.masks(model)) == ["1.weight"]
    model(torch.ones(1, 4)).sum().backward()
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    assert masktorch.report(model).rows[0].name == "1.weight"
    masktorch.set_masks(model, {"1.weight": MASK})
    masktorch.save_masks(model, tmp_path / "masks")
    model.load_state_dict(model.state_dict())
    out = model.eval()(torch.ones(1, 4))
    masktorch.unwrap(model)
    assert type(model[1]) is nn.Linear
    torch.testing.assert_close(model(torch.ones(1, 4)), out)
    masktorch.load_masks(model, tmp_path / "masks", any_weights=True)
    assert torch.equal(masktorch.masks(model)["1.weight"], MASK)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("compiled", "name"),
    [(scripted, "0.weight"), (scripted_blocks, "0.0.weight"), (traced, "0.weight")],
)
def test_a_tensor_in_a_compiled_part(compiled, name):
    model = nn.Sequential(compiled(), nn.Linear(4, 4))
    for call in (
        lambda: masktorch.wrap(model, targets=["1.weight", name]),
        lambda: masktorch.wrap(model, targets=["*.weight"]),
        lambda: masktorch.set_masks(model, {name: MASK}),
    ):
        with pytest.raises(
            ValueError, match=f"can't mask '{name}': a .*Module can't hold"
        ):
            call()
        assert type(model[1]) is nn.Linear


@pytest.mark.filterwarnings("ignore")
def test_a_weight_tied_to_a_compiled_part():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, torch.jit.script(layer))
    with pytest.raises(ValueError, match=r"can't mask '1.weight': a .*ScriptModule"):
        masktorch.wrap(model, targets=["0.weight"])
    assert type(model[0]) is nn.Linear


# -- functions with another signature, other values ------------------------------------


def one_layer():
    return nn.Sequential(nn.Linear(4, 4))


class Selector:
    def __call__(self, module):
        return ["weight"]


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (lambda module: ["weight"], "<lambda>(module): too many positional arguments"),
        (lambda: ["weight"], "<lambda>(): too many positional arguments"),
        (lambda a, b, c: [], "<lambda>(a, b, c): missing a required argument: 'c'"),
        (lambda *, name, module: [], "too many positional arguments"),
        (Selector(), "Selector object"),
    ],
)
def test_targets_with_another_signature(targets, found):
    model = one_layer()
    with pytest.raises(TypeError, match=re.escape(found)) as raised:
        masktorch.wrap(model, targets=targets)
    expected = "wrap() expected a function targets(module_name, module), found "
    assert str(raised.value).startswith(expected)
    assert type(model[0]) is nn.Linear


def test_targets_with_more_arguments_that_have_defaults():
    def targets(name, module, *, kind=nn.Linear):
        return ["weight"] if isinstance(module, kind) else []

    assert list(masktorch.masks(masktorch.wrap(one_layer(), targets=targets)))


def test_an_error_within_targets_is_its_own():
    def targets(name, module):
        return [1 + "weight"]

    with pytest.raises(TypeError, match="unsupported operand"):
        masktorch.wrap(one_layer(), targets=targets)


@pytest.mark.parametrize(
    ("init", "found"),
    [
        (lambda: torch.ones(4, 4), "<lambda>(): too many positional arguments"),
        (
            lambda weight, name: weight,
            "(weight, name): missing a required argument: 'name'",
        ),
        (nn.init.constant_, "missing a required argument: 'val'"),
        (nn.Linear, "missing a required argument: 'out_features'"),
    ],
)
def test_init_with_another_signature(init, found):
    model = one_layer()
    with pytest.raises(TypeError, match=re.escape(found)) as raised:
        masktorch.wrap(model, init=init)
    expected = (
        "wrap() expected init to be a function of one argument, the weight, found "
    )
    assert str(raised.value).startswith(expected)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("init", "error", "found"),
    [
        (lambda w: None, TypeError, "found None"),
        (lambda w: w.numpy(), TypeError, "found array("),
        (lambda w: 0.5, TypeError, "found 0.5"),
        (lambda w: w * 1j, TypeError, "found torch.complex64"),
        (lambda w: w[0], ValueError, "found shape (4,)"),
        (lambda w: w.sum(), ValueError, "found shape ()"),
        (float("nan"), TypeError, "found nan"),
        (True, TypeError, "found True"),
        ("ones", TypeError, "found 'ones'"),
        ([1.0], TypeError, "found [1.0]"),
    ],
)
def test_init_that_is_or_returns_something_else(init, error, found):
    model = one_layer()
    with pytest.raises(error, match=re.escape(found)) as raised:
        masktorch.wrap(model, init=init)
    assert str(raised.value).startswith("wrap() expected init to ")
    assert "'0.weight'" in str(raised.value)
    assert type(model[0]) is nn.Linear


def test_init_written_in_c():
    layer = masktorch.wrap(nn.Linear(4, 4), init=torch.zeros_like)
    assert not masktorch.report(layer).kept


class NeedsNumber:
    def __init__(self, number):
        self.number = number

    def __call__(self, scores):
        return scores

    def mode(self, scores):
        return scores > self.number


@pytest.mark.parametrize(
    ("estimator", "hint"),
    [
        (TopK, "Found the class TopK. Did you mean TopK()?"),
        (Threshold, "Found the class Threshold. Did you mean Threshold()?"),
        (NeedsNumber, "Found the class NeedsNumber. Did you mean NeedsNumber(...)?"),
        ({"0.weight": TopK}, "Found the class TopK. Did you mean TopK()?"),
        ({"*": TopK}, "Found the class TopK. Did you mean TopK()?"),
    ],
)
def test_a_class_in_place_of_an_estimator(estimator, hint):
    model = one_layer()
    with pytest.raises(TypeError, match=re.escape(hint)) as raised:
        masktorch.wrap(model, estimator)
    assert "wrap() expected an estimator such as masktorch.Threshold()" in str(
        raised.value
    )
    masktorch.wrap(model)
    if not isinstance(estimator, dict):
        with pytest.raises(TypeError, match=re.escape(hint)):
            masktorch.set_estimator(model, estimator)


@pytest.mark.parametrize(
    "name", ["scores_for", "product", "mode_product", "expected", "sample"]
)
def test_a_field_with_the_name_of_an_optional_method(name):
    estimator = NeedsNumber(0.5)
    setattr(estimator, name, 0.5)
    model = one_layer()
    with pytest.raises(TypeError, match=f"whose '{name}' is not a method. Rename"):
        masktorch.wrap(model, estimator)
    assert type(model[0]) is nn.Linear


# -- an estimator that does not fit one of the tensors ---------------------------------


def convolutions():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4))


def test_how_to_leave_a_tensor_out_of_two_in_four():
    model = convolutions()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"wrap\(\) can't mask '0.weight'") as raised:
        masktorch.wrap(model, NOfM(2, 4))
    advice = "It fits the others: targets=['1.weight', '2.weight']."
    assert str(raised.value).endswith(advice)
    assert snapshot(model) == before
    masktorch.wrap(model, NOfM(2, 4), targets=["1.weight", "2.weight"])
    assert len(masktorch.masks(model)) == 2


def test_how_to_leave_a_tensor_out_of_a_mapping():
    model = convolutions()
    with pytest.raises(ValueError, match=r"wrap\(\) can't mask '0.weight'") as raised:
        masktorch.wrap(model, {"*.weight": NOfM(2, 4)})
    assert str(raised.value).endswith("targets=['1.weight', '2.weight'].")


def test_no_advice_where_nothing_fits():
    with pytest.raises(ValueError, match=r"can't mask 'weight'") as raised:
        masktorch.wrap(nn.Conv2d(3, 8, 3), NOfM(2, 4))
    assert "It fits the others" not in str(raised.value)


# -- scores of a shape of their own ----------------------------------------------------


class PerRow:
    """One random score per row; can reduce the weight's shape, as blocks do."""

    def init(self, weight):
        return torch.rand(weight.shape[0], 1) + 0.5

    def block_means(self, tensor):
        return tensor.mean(1, keepdim=True)

    def __call__(self, scores):
        return (scores > 0) + (scores - scores.detach())

    def mode(self, scores):
        return scores > 0


def scores_of(layer):
    return layer.parametrizations.weight.scores


def test_a_number_fills_the_scores_of_the_estimator():
    torch.manual_seed(1)
    layer = nn.Linear(4, 3)
    expected = torch.rand(2)
    torch.manual_seed(1)
    layer = nn.Linear(4, 3)
    masktorch.wrap(layer, PerRow(), init=2)
    assert scores_of(layer).tolist() == [[2.0]] * 3
    assert torch.equal(torch.rand(2), expected)  # to learn the shape draws nothing


def test_a_function_returns_the_shape_of_the_estimator_or_that_of_the_weight():
    layer = nn.Linear(4, 3)
    own = torch.tensor([[1.0], [2.0], [3.0]])
    masktorch.wrap(layer, PerRow(), init=lambda weight: own)
    assert torch.equal(scores_of(layer), own)
    masktorch.unwrap(layer, bake=False)
    masktorch.wrap(layer, PerRow(), init=torch.abs)
    weight = layer._parameters["weight"].detach()
    assert torch.equal(scores_of(layer), weight.abs().mean(1, keepdim=True))
    masktorch.unwrap(layer)
    message = "scores of shape (3, 1) for 'weight', found shape (4,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        masktorch.wrap(layer, PerRow(), init=lambda weight: weight[0])


def test_without_block_means_the_shape_of_the_weight_is_another():
    class Plain(PerRow):
        block_means = None

    with pytest.raises(
        ValueError, match=r"shape \(3, 1\) for 'weight', found shape \(3, 4\)"
    ):
        masktorch.wrap(nn.Linear(4, 3), Plain(), init=torch.abs)


def test_an_estimator_whose_own_start_is_none():
    class Lost(PerRow):
        def init(self, weight):
            pass

    with pytest.raises(TypeError, match=r"expected init of .*for 'weight', found None"):
        masktorch.wrap(nn.Linear(4, 3), Lost())


@pytest.mark.parametrize(
    "dtype", [torch.half, torch.bfloat16, torch.float, torch.double]
)
@pytest.mark.parametrize("init", [None, 0.5, torch.abs, lambda w: w.half()])
@pytest.mark.parametrize("estimator", [Threshold(), TopK(), PerRow()], ids=type)
def test_scores_are_float32_at_least(dtype, init, estimator):
    layer = masktorch.wrap(nn.Linear(4, 3, dtype=dtype), estimator, init=init)
    wide = torch.float64 if dtype is torch.double else torch.float32
    assert scores_of(layer).dtype == wide


# -- asking fixed masks for scores -----------------------------------------------------


@pytest.mark.parametrize(
    "function", [masktorch.mask_parameters, masktorch.named_mask_parameters]
)
def test_fixed_masks_have_no_scores(function):
    model = masktorch.set_masks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
                                {"0.weight": MASK})  # fmt: skip
    with pytest.raises(ValueError, match="found only fixed ones, which have no scores"):
        function(model)
    masktorch.wrap(model, targets=["1.weight"])
    assert len(list(function(model))) == 1  # those that learn
