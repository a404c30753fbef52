"""One memory, several places: what is tied, what overlaps, what is independent."""

import copy
import gc
import io
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import masktorch
from masktorch import Bernoulli, Threshold, TopK
from masktorch._masking.identity import (
    identity,
    overlaps_itself,
    sharing_memory,
)

X = torch.randn(3, 4)
STRIPES = torch.tensor([True, False, True, False]).repeat(4, 1)
CHECKS = torch.eye(4, dtype=torch.bool)


def parameter(layer, name="weight"):
    """The parameter itself, under a mask or not."""
    return layer._parameters[name]


def two_layers(size=4):
    return nn.Sequential(
        nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
    )


def same_object(model):
    model[1].weight = model[0].weight


def parameter_of_a_parameter(model):
    model[1].weight = nn.Parameter(model[0].weight)


def parameter_of_data(model):
    model[1].weight = nn.Parameter(model[0].weight.data)


def by_data(model):
    model[1].weight.data = model[0].weight.data


def equal_view(model):
    model[1].weight = nn.Parameter(model[0].weight.detach().view(16).view(4, 4))


def transposed_twice(model):
    model[1].weight = nn.Parameter(model[0].weight.detach().t().t())


def loaded_from_one_storage(model):
    """As torch.save keeps the memory that tied weights share."""
    tied = two_layers()
    tied[1].weight = tied[0].weight
    torch.save(tied.state_dict(), file := io.BytesIO())
    file.seek(0)
    model.load_state_dict(torch.load(file), assign=True)


TIES = [
    same_object,
    parameter_of_a_parameter,
    parameter_of_data,
    by_data,
    equal_view,
    transposed_twice,
    loaded_from_one_storage,
]
each_tie = pytest.mark.parametrize("tie", TIES)


@pytest.fixture
def tied(tie):
    model = two_layers()
    tie(model)
    return model


# -- what is tied ----------------------------------------------------------------------


@each_tie
@pytest.mark.parametrize("rescale", [False, True])
def test_equal_views_share_one_mask(tied, rescale):
    weight = parameter(tied[0]).detach().clone()
    masktorch.wrap(tied, rescale=rescale)
    assert list(masktorch.masks(tied)) == ["0.weight"]
    assert len(list(masktorch.mask_parameters(tied))) == 1
    masktorch.set_masks(tied, {"0.weight": STRIPES}).eval()
    factor = 2 if rescale else 1
    for layer in tied:
        assert torch.equal(layer.weight, weight * STRIPES * factor)
    out = tied(X)
    masktorch.unwrap(tied)
    assert torch.equal(tied(X), out)  # baked once, not once for each place


@each_tie
def test_one_memory_is_counted_once(tied):
    counted = masktorch.report(masktorch.wrap(tied))
    assert (counted.size, counted.parameters, counted.share) == (16, 16, 1.0)


@each_tie
def test_the_tensor_under_the_mask_is_one(tied):
    masktorch.wrap(tied)
    mask = tied[0].parametrizations.weight
    assert mask is tied[1].parametrizations.weight
    assert mask.original is parameter(tied[0])


@each_tie
def test_mask_files_know_both_names(tied, tmp_path):
    mask = torch.rand(4, 4) < 0.5
    masktorch.save_masks(
        masktorch.set_masks(tied, {"0.weight": mask}), tmp_path / "file"
    )
    for other_tie in (same_object, parameter_of_data):
        other = two_layers()
        other_tie(other)
        masktorch.load_masks(other, tmp_path / "file", any_weights=True)
        assert torch.equal(masktorch.masks(other)["0.weight"], mask)
        assert len(masktorch.masks(other)) == 1


@each_tie
def test_a_target_is_masked_wherever_its_memory_lives(tied):
    masktorch.wrap(tied, targets=["1.weight"])
    assert list(masktorch.masks(tied)) == ["0.weight"]
    layers = [type(layer).__name__ for layer in tied]
    assert layers == ["MaskedLinear", "MaskedLinear"]


@each_tie
def test_freezing_reaches_every_parameter_of_the_memory(tied):
    masktorch.freeze_mask(masktorch.wrap(tied))
    assert not any(p.requires_grad for p in map(parameter, tied))
    masktorch.freeze_weights(tied, False)
    assert all(p.requires_grad for p in map(parameter, tied))
    masktorch.freeze_weights(tied)
    assert not any(p.requires_grad for p in map(parameter, tied))
    masktorch.unwrap(tied)
    assert all(p.requires_grad for p in map(parameter, tied))


def test_freezing_reaches_a_parameter_that_joined_later():
    model = masktorch.wrap(nn.Sequential(nn.Linear(4, 4)))
    model.append(nn.Linear(4, 4))
    model[1].weight = nn.Parameter(parameter(model[0]).detach())
    masktorch.freeze_weights(model)
    assert not model[1].weight.requires_grad


@each_tie
def test_a_fixed_mask_is_one_for_equal_views(tied):
    masktorch.set_masks(tied, {"1.weight": STRIPES})
    assert all(torch.equal(layer.weight != 0, STRIPES) for layer in tied)
    other = two_layers()
    parameter_of_a_parameter(other)
    with pytest.raises(
        ValueError, match=r"found two for '0.weight', tied to '1.weight'"
    ):
        masktorch.set_masks(other, {"0.weight": STRIPES, "1.weight": CHECKS})
    assert type(other[0]) is nn.Linear


def test_two_parameters_in_one_module():
    module = nn.Module()
    module.one = nn.Parameter(torch.ones(3))
    module.other = nn.Parameter(module.one)
    masktorch.wrap(module, targets=["one"])
    masktorch.set_masks(module, {"one": torch.tensor([True, False, True])})
    assert module.one.tolist() == module.other.tolist() == [1, 0, 1]


@pytest.mark.parametrize("rescale", [False, True])
def test_a_load_that_unties_is_baked_right(rescale):
    """The case of a Linear tied to an embedding, loaded with `assign=True`."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    saved = masktorch.wrap(Tied(), rescale=rescale)
    masktorch.set_masks(saved, {"embed.weight": torch.rand(10, 8) < 0.5})
    tokens = torch.arange(10)
    expected = saved.eval()(tokens)
    torch.save(saved.state_dict(), file := io.BytesIO())
    file.seek(0)
    state = torch.load(file)
    untied = {name: tensor.clone() for name, tensor in state.items()}
    for loaded in (state, untied):
        model = masktorch.wrap(Tied(), rescale=rescale)
        model.load_state_dict(loaded, assign=True)
        assert torch.equal(model.eval()(tokens), expected)
        masktorch.unwrap(model)
        assert torch.equal(model(tokens), expected)


# -- what overlaps in another way ------------------------------------------------------


def transposed(model):
    model[1].weight = nn.Parameter(model[0].weight.t())


def transposed_by_data(model):
    model[1].weight.data = model[0].weight.data.t()


def shifted(model):
    memory = torch.randn(5, 4)
    model[0].weight, model[1].weight = (
        nn.Parameter(memory[:-1]),
        nn.Parameter(memory[1:]),
    )


def shifted_by_one(model):
    memory = torch.randn(32)
    model[0].weight = nn.Parameter(memory[:16].view(4, 4))
    model[1].weight = nn.Parameter(memory[15:31].view(4, 4))


def flat(model):
    model[1].register_parameter("flat", nn.Parameter(model[0].weight.view(16)))


def one_row(model):
    model[1].register_parameter("row", nn.Parameter(model[0].weight[2]))


def other_dtype(model):
    half = model[0].weight.detach().view(torch.bfloat16)
    model[1].register_parameter("narrow", nn.Parameter(half))


OVERLAPS = {
    transposed: "1.weight",
    transposed_by_data: "1.weight",
    shifted: "1.weight",
    shifted_by_one: "1.weight",
    flat: "1.flat",
    one_row: "1.row",
    other_dtype: "1.narrow",
}


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(
    "call",
    [
        masktorch.wrap,
        lambda m: masktorch.wrap(m, targets=["0.weight"]),
        lambda m: masktorch.set_masks(m, {"0.weight": STRIPES}),
    ],
)
def test_other_views_are_refused_by_both_names(overlap, call):
    model = two_layers()
    overlap(model)
    before = [(type(m), dict(m.named_parameters())) for m in model]
    with pytest.raises(ValueError, match=r"can't mask '0.weight'") as raised:
        call(model)
    assert f"it overlaps {OVERLAPS[overlap]!r} in memory" in str(raised.value)
    assert [(type(m), dict(m.named_parameters())) for m in model] == before


def test_disjoint_views_of_one_storage_are_independent():
    memory = torch.randn(4, 8)
    model = two_layers()
    model[0].weight = nn.Parameter(memory[:, ::2])  # interleaved columns
    model[1].weight = nn.Parameter(memory[:, 1::2])
    masktorch.wrap(model)
    masktorch.set_masks(model, {"0.weight": STRIPES, "1.weight": CHECKS})
    masktorch.unwrap(model)
    assert torch.equal(memory[:, ::2] != 0, STRIPES)
    assert torch.equal(memory[:, 1::2] != 0, CHECKS)


@pytest.mark.parametrize("size", [1, 2, 60])
def test_columns_of_one_matrix(size):
    memory = torch.randn(3, size)
    columns = nn.ParameterList(nn.Parameter(memory[:, i]) for i in range(size))
    names = [str(i) for i in range(size)]
    masktorch.wrap(columns, targets=names)
    assert list(masktorch.masks(columns)) == names


def test_overlaps_are_decided_exactly():
    """Against sets of addresses, over small views of all kinds."""
    memory = torch.zeros(64)
    rng = np.random.default_rng(0)
    views = []
    while len(views) < 60:
        dims = int(rng.integers(0, 4))
        shape = tuple(rng.integers(1, 4, dims))
        stride = tuple(rng.integers(0, 9, dims))
        offset = int(rng.integers(0, 20))
        views.append(torch.as_strided(memory, shape, stride, offset))

    def addresses(view):
        return [
            view.storage_offset() + sum(i * s for i, s in zip(index, view.stride()))  # noqa: B905
            for index in itertools.product(*map(range, view.shape))
        ]

    for view in views:
        offsets = addresses(view)
        assert overlaps_itself(view) == (len(set(offsets)) < len(offsets))
    expected = {
        (i, j)
        for i, one in enumerate(views)
        for j, other in enumerate(views)
        if set(addresses(one)) & set(addresses(other))
    }
    assert set(sharing_memory(views, views)) == expected


def test_equal_views_have_one_identity():
    matrix = torch.zeros(4, 6)
    assert identity(matrix) == identity(matrix.view(4, 6)) == identity(matrix.detach())
    row = matrix[:1]
    assert row.stride() != row.as_strided((1, 6), (99, 1)).stride()
    assert identity(row) == identity(row.as_strided((1, 6), (99, 1)))
    others = [
        matrix.t(),
        matrix[1:],
        matrix.flatten(),
        matrix.view(torch.int32),
        matrix.clone(),
    ]
    assert len({identity(tensor) for tensor in [matrix, *others]}) == 6


def without_memory():
    """Pairs of tensors that numbers alone could not tell apart."""
    with FakeTensorMode():
        fake = torch.ones(2), torch.ones(2)
    freed = torch.ones(2), torch.ones(2)
    for tensor in freed:
        tensor.untyped_storage().resize_(0)
    return {
        "meta": (torch.ones(2, device="meta"), torch.ones(2, device="meta")),
        "fake": fake,
        "freed": freed,
        "empty": (torch.ones(0, 2), torch.ones(0, 2)),
        "sparse": (torch.eye(2).to_sparse(), torch.eye(2).to_sparse()),
        "lazy": (nn.UninitializedParameter(), nn.UninitializedParameter()),
    }


@pytest.mark.parametrize("kind", without_memory())
def test_without_memory_the_object_is_the_identity(kind):
    one, other = without_memory()[kind]
    assert identity(one) == identity(one) != identity(other)
    assert list(sharing_memory([one, other], [other])) == [(1, 0)]


def test_within_a_transform_the_object_is_the_identity():
    def keys(x):
        return x * 0 + (identity(x) == identity(x.view_as(x)))

    assert torch.vmap(keys)(torch.ones(2, 3)).sum() == 0


def test_tied_meta_parameters_share_one_mask():
    with torch.device("meta"):
        model = two_layers()
    model[1].weight = model[0].weight
    masktorch.wrap(model)
    assert len(list(masktorch.mask_parameters(model))) == 1
    model.to_empty(device="cpu")


# -- masks elsewhere -------------------------------------------------------------------


def encoder_and_decoder(tie=same_object):
    model = two_layers()
    tie(model)
    return model, nn.ModuleDict({"enc": model[0], "dec": model[1]})


@pytest.mark.parametrize(
    ("tie", "frozen"),
    [(tie, False) for tie in (*TIES, transposed, shifted, flat)]
    + [(same_object, True)],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda layer: masktorch.wrap(layer, TopK(0.5), targets=list_of(layer)),
        lambda layer: masktorch.set_masks(
            layer,
            {
                n: torch.ones_like(p, dtype=torch.bool)
                for n, p in layer.named_parameters()
            },
        ),
    ],
    ids=["wrap", "set_masks"],
)
def test_memory_under_a_learnable_mask_elsewhere(tie, frozen, call):
    model, _ = encoder_and_decoder(tie)
    masktorch.freeze_mask(masktorch.wrap(model[0]), frozen)
    if tie is flat:
        del model[1].weight
    before = type(model[1]), dict(model[1].named_parameters())
    with pytest.raises(
        ValueError, match="a learnable mask lies on the same memory"
    ) as e:
        call(model[1])
    assert re.match(r"(wrap|set_masks)\(\) can't mask '\w+'", str(e.value))
    assert (type(model[1]), dict(model[1].named_parameters())) == before
    masktorch.unwrap(model[0])
    call(model[1])  # now it is free


def list_of(layer):
    return [name for name, _ in layer.named_parameters()]


def test_loading_masks_onto_memory_under_a_learnable_mask_elsewhere(tmp_path):
    model, _ = encoder_and_decoder()
    plain = copy.deepcopy(model[1])
    masktorch.save_masks(
        masktorch.set_masks(plain, {"weight": CHECKS}), tmp_path / "masks"
    )
    masktorch.wrap(model[0])
    with pytest.raises(ValueError, match="a learnable mask lies on the same memory"):
        masktorch.load_masks(model[1], tmp_path / "masks")
    assert type(model[1]) is nn.Linear


def test_both_in_one_call():
    _, model = encoder_and_decoder(parameter_of_data)
    assert list(masktorch.masks(masktorch.wrap(model))) == ["enc.weight"]


@pytest.mark.parametrize("tie", [*TIES, transposed])
def test_fixed_masks_may_differ_for_modules_that_share_a_weight(tie):
    model, both = encoder_and_decoder(tie)
    weight = parameter(model[0]).detach().clone()
    masktorch.set_masks(model[0], {"weight": STRIPES})
    masktorch.set_masks(model[1], {"weight": CHECKS})
    other = parameter(model[1]).detach().clone()
    assert torch.equal(model[0].weight, weight * STRIPES)
    assert torch.equal(model[1].weight, other * CHECKS)
    assert list(masktorch.masks(both)) == ["enc.weight", "dec.weight"]
    for part, name in [
        (model[0], "weight"),
        (model[1], "weight"),
        (both, "dec.weight"),
    ]:
        with pytest.raises(
            ValueError, match=f"can't bake '{name}': another mask lies on"
        ):
            masktorch.unwrap(part)
        assert torch.equal(parameter(model[0]), weight)
    masktorch.unwrap(model[0], bake=False)
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(model[1].weight, other * CHECKS)
    masktorch.unwrap(model[1])  # nobody else masks this memory now
    assert torch.equal(model[1].weight, other * CHECKS)


def test_a_shared_weight_under_equal_frozen_masks_is_baked():
    """Harmless, since W * m * m is W * m; loading by assignment does this."""
    model, _ = encoder_and_decoder()
    masktorch.set_masks(model[0], {"weight": STRIPES})
    masktorch.set_masks(model[1], {"weight": STRIPES})
    out = model(X)
    masktorch.unwrap(model[0])
    assert torch.equal(model(X), out)
    assert torch.equal(masktorch.unwrap(model[1])(X), model[0](X))


@pytest.mark.parametrize("change", ["rescale", "learning"])
def test_baking_under_equal_masks_that_rescale_or_learn_is_refused(change):
    one = masktorch.wrap(nn.Linear(4, 4), rescale=change == "rescale")
    masktorch.freeze_mask(masktorch.set_masks(one, {"weight": STRIPES}))
    other = masktorch.wrap(nn.Linear(4, 4), rescale=change == "rescale")
    masktorch.freeze_mask(other).load_state_dict(one.state_dict(), assign=True)
    masktorch.freeze_mask(other, change != "learning")
    with pytest.raises(ValueError, match="another mask lies on it in another model"):
        masktorch.unwrap(one)
    assert torch.equal(parameter(one), parameter(other))


def test_unwrapping_a_model_of_such_modules_unbaked():
    model, both = encoder_and_decoder()
    weight = model[0].weight.detach().clone()
    masktorch.set_masks(model[0], {"weight": STRIPES})
    masktorch.set_masks(model[1], {"weight": CHECKS})
    masktorch.unwrap(both, bake=False)
    assert torch.equal(both.enc.weight, weight)
    assert torch.equal(both.dec.weight, weight)


def test_a_learnable_mask_over_a_fixed_one_elsewhere_is_not_baked():
    model, _ = encoder_and_decoder()
    masktorch.set_masks(model[0], {"weight": STRIPES})
    masktorch.wrap(model[1])
    with pytest.raises(ValueError, match="another mask lies on it in another model"):
        masktorch.unwrap(model[1])
    masktorch.unwrap(model[1], bake=False)


def test_copies_have_memory_of_their_own():
    model = masktorch.wrap(two_layers())
    for twin in (copy.deepcopy(model), masktorch.unwrap(copy.deepcopy(model))):
        if twin[0].__class__ is nn.Linear:
            masktorch.wrap(twin)
        masktorch.unwrap(twin)
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    masktorch.unwrap(torch.load(file, weights_only=False))


def test_a_model_that_is_gone_masks_nothing():
    model, _ = encoder_and_decoder()
    weight = model[0].weight
    other = masktorch.wrap(model[0])
    del other, model, _
    layer = nn.Linear(4, 4)
    layer.weight = weight
    masktorch.wrap(layer)


def test_a_model_in_a_cycle_that_is_gone_masks_nothing():
    model, _ = encoder_and_decoder()
    masktorch.wrap(model[0])
    model[0].trainer = [model[0]]
    layer, weight = nn.Linear(4, 4), parameter(model[0])
    gc.disable()
    try:
        del model, _
        layer.weight = weight
        masktorch.wrap(layer, Bernoulli())
        twin = nn.Linear(4, 4)
        twin.weight = weight
        twin.trainer = [twin]
        masktorch.unwrap(layer)
        masktorch.set_masks(twin, {"weight": CHECKS})
        masktorch.wrap(layer, targets=["bias"])
        del twin
        layer = masktorch.unwrap(layer)
        masktorch.set_masks(layer, {"weight": STRIPES})
        masktorch.unwrap(layer)
    finally:
        gc.enable()


def test_references_to_removed_masks_mask_nothing():
    model, _ = encoder_and_decoder()
    masktorch.wrap(model[0])
    kept = model[0].parametrizations, model[0].parametrizations.weight
    masktorch.unwrap(model[0])
    masktorch.wrap(model[1])
    assert kept


def test_more_masks_on_one_module_are_not_elsewhere():
    layer = masktorch.wrap(nn.Linear(4, 4))
    kept = layer.parametrizations
    masktorch.wrap(layer, targets=["bias"])
    masktorch.unwrap(layer)
    assert kept is not None


def test_memory_that_moves_is_another_memory():
    """Nothing about addresses is remembered."""
    model, _ = encoder_and_decoder()
    masktorch.wrap(model[0])
    parameter(model[0]).data = torch.randn(4, 4)  # now only this place has it ...
    other = nn.Linear(4, 4)
    other.weight = nn.Parameter(torch.randn(4, 4))
    masktorch.wrap(other)  # ... and the former memory is free
    third = nn.Linear(4, 4)
    third.weight = nn.Parameter(parameter(model[0]).detach())
    with pytest.raises(ValueError, match="a learnable mask lies on the same memory"):
        masktorch.wrap(third)


def test_serving_modules_of_one_backbone():
    base = nn.Linear(4, 4)
    before = base.weight.detach().clone()
    tasks = []
    for seed in range(5):
        task = nn.Linear(4, 4)
        task.weight = base.weight
        mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(seed)) < 0.5
        tasks.append((masktorch.set_masks(task, {"weight": mask}), mask))
    for task, mask in tasks:
        assert torch.equal(task.weight, before * mask)
    for task, _ in tasks[:-1]:
        with pytest.raises(ValueError, match="another mask lies on it"):
            masktorch.unwrap(task)
        masktorch.unwrap(task, bake=False)
    assert torch.equal(base.weight, before)


@pytest.mark.parametrize("estimator", [Threshold(), Bernoulli()], ids=repr)
def test_gradients_of_two_parameters_over_one_memory(estimator):
    """They are two leaves under one mask: the scores get the sum."""
    model = two_layers()
    parameter_of_data(model)
    masktorch.wrap(model, estimator)
    (scores,) = masktorch.mask_parameters(model)
    model(X).sum().backward()
    together = scores.grad.clone()
    reference = two_layers()
    reference.load_state_dict(
        {f"{i}.weight": parameter(model[i]).detach() for i in (0, 1)}
    )
    masktorch.wrap(reference, estimator)
    reference(X).sum().backward()
    apart = sum(s.grad for s in masktorch.mask_parameters(reference))
    if isinstance(estimator, Threshold):
        torch.testing.assert_close(together, apart)
    assert together.isfinite().all()


def test_one_of_two_tied_modules_is_not_baked_while_their_mask_learns():
    """The other would lose weights that its mask may keep later."""
    model = two_layers()
    model[1].weight = model[0].weight
    masktorch.wrap(model)
    before = parameter(model[0]).detach().clone()
    with pytest.raises(ValueError, match="its mask is not frozen"):
        masktorch.unwrap(model[1])
    assert torch.equal(parameter(model[0]), before)
    masktorch.freeze_mask(model)
    masktorch.unwrap(model[1])


def test_tied_weights_that_came_untied_have_a_row_each():
    model = two_layers()
    model[1].weight = model[0].weight
    masktorch.wrap(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    report = masktorch.report(model)
    assert [row.name for row in report.rows] == ["0.weight", "1.weight"]
    assert report.size == 2 * parameter(model[0]).numel()
