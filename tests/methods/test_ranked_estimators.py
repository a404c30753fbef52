"""TopK and NOfM on models: init, set_masks, copies, compiled schedules."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import Blocks, NOfM, TopK, functional
from masktorch._kernels import top_k
from tools.by_hand import n_of_m_by_hand, topk_by_hand
from tools.estimators import (
    RANKED,
    RANKED_BLOCKS,
    each_ranked,
    each_ranked_or_blocks,
)

pytestmark = [
    # torch.compile makes an instance of an autograd function while it traces one
    pytest.mark.filterwarnings("ignore:.*should not be instantiated"),
    # what inductor imports
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated"),
]


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


SCORES = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))


def network(estimator, **options):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8))
    return masktorch.wrap(model, estimator, **options)


def test_shapes_that_do_not_divide_are_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 6))
    for estimator, name in (
        (Blocks(TopK(), (4, 1)), "1.weight"),
        (NOfM(2, 4), "0.weight"),
    ):
        with pytest.raises(ValueError, match=f"wrap.. can't mask '{name}': .*6"):
            masktorch.wrap(model, estimator)
        assert not any("parametrizations" in n for n, _ in model.named_modules())
    with pytest.raises(ValueError, match=r"wrap.. can't mask '0.bias': "):
        masktorch.wrap(model, Blocks(TopK(), (1, None)), bias=True)


@pytest.mark.parametrize(
    ("shape", "fan_in"), [((300, 50), 50), ((80, 10, 5, 5), 250), ((900,), 900)]
)
def test_scores_start_kaiming_uniform_from_the_random_stream(shape, fan_in):
    weight = torch.empty(shape, dtype=torch.float64)
    for estimator in (TopK(), *([NOfM(1, 2)] if len(shape) > 1 else [])):
        torch.manual_seed(3)
        scores = estimator.init(weight)
        torch.manual_seed(3)
        assert torch.equal(scores, estimator.init(weight))
        assert scores.shape == shape
        assert scores.dtype is torch.float64
        bound = math.sqrt(
            6 / ((1 + 5) * fan_in)
        )  # of Kaiming's uniform with slope sqrt(5)
        assert 0.99 * bound < scores.abs().max() < bound
        np.testing.assert_allclose(scores.std(), bound / math.sqrt(3), rtol=0.05)


@each_ranked
def test_a_wrapped_model_computes_with_the_mask_by_hand(estimator):
    model = network(estimator)
    masks = masktorch.masks(model)
    s = model[0].parametrizations.weight.scores.detach().double().numpy()
    if isinstance(estimator, NOfM):
        by_hand = n_of_m_by_hand(s, estimator.n, estimator.m, estimator.absolute)
    else:
        by_hand = topk_by_hand(s, estimator.density, estimator.absolute)
    np.testing.assert_array_equal(masks["0.weight"], by_hand)
    weight = model[0]._parameters["weight"].detach()
    for mode in (True, False):
        assert torch.equal(model.train(mode)[0].weight, weight * torch.tensor(by_hand))
    masktorch.freeze_mask(model)
    assert torch.equal(model.train()[0].weight, weight * torch.tensor(by_hand))


@each_ranked
def test_the_expected_density_is_the_share_kept(estimator):
    scores = SCORES[:, :4].requires_grad_()
    expected = estimator.expected(scores)
    assert expected.shape == scores.shape
    assert not expected.requires_grad
    torch.testing.assert_close(expected.mean(), estimator.mode(scores).float().mean())


@each_ranked_or_blocks
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", ["random", "ties", "zeros", "ones", "below zero"])
def test_set_masks_to_any_mask_of_the_count(estimator, dtype, start):
    model = network(estimator).to(dtype)
    values = {"random": 1.0, "ties": 1.0, "zeros": 0.0, "ones": 1.0, "below zero": -1.0}
    for trial in range(5):
        torch.manual_seed(trial)
        wanted = masktorch.masks(network(estimator).to(dtype))
        for _, scores in masktorch.named_mask_parameters(model):
            if start == "random":
                scores.data.normal_()
            elif start == "ties":
                scores.data.copy_(torch.randint(-2, 3, scores.shape))
            else:
                scores.data.fill_(values[start])
        before = [
            scores.detach().clone() for scores in masktorch.mask_parameters(model)
        ]
        masks = masktorch.masks(model)
        masktorch.set_masks(model, wanted)
        now = masktorch.masks(model)
        assert all(torch.equal(now[name], mask) for name, mask in wanted.items())
        if start == "random" and dtype in (torch.float32, torch.float64):
            after = masktorch.mask_parameters(
                model
            )  # what was on its side stays, bit for bit
            for name, old, scores in zip(wanted, before, after, strict=True):
                stays = masks[name] == wanted[name]
                if isinstance(estimator, Blocks):
                    stays = estimator.block_means(stays.float()) == 1
                assert torch.equal(scores[stays], old[stays])


def test_a_mask_of_the_wrong_count_is_refused_with_both_counts():
    model = network(TopK(0.5))
    masks = masktorch.masks(model)
    scores = [s.detach().clone() for s in masktorch.mask_parameters(model)]
    masks["2.weight"][0, 0] ^= True
    found = int(masks["2.weight"].sum())
    with pytest.raises(
        ValueError,
        match=rf"'2.weight' this mask: TopK.* keeps 16 of 32 entries, the mask {found}",
    ):
        masktorch.set_masks(model, masks)
    for before, now in zip(scores, masktorch.mask_parameters(model), strict=True):
        assert torch.equal(before, now)
    with pytest.raises(
        ValueError, match=r"'0.weight'.*NOfM\(n=2, m=4.* keeps 2 of 4 .*, the mask 4"
    ):
        masktorch.set_masks(model := network(NOfM()), {
            name: torch.ones_like(mask) for name, mask in masktorch.masks(model).items()
        })  # fmt: skip


@pytest.mark.parametrize("block", [(1, None), (None, 1), (2, None), (1, 1)])
def test_block_masks_can_be_written_entry_by_entry(block):
    layer = masktorch.wrap(nn.Linear(4, 4), Blocks(TopK(0.5), block))
    masks = masktorch.masks(layer)
    masks["weight"][0, 0] ^= True
    now = masktorch.masks(layer)["weight"]
    assert int((masks["weight"] != now).sum()) == 1


@each_ranked_or_blocks
def test_set_masks_under_deterministic_algorithms(estimator):
    masks = masktorch.masks(network(estimator))
    model = network(estimator)
    torch.use_deterministic_algorithms(True)
    try:
        masktorch.set_masks(model, masks)
    finally:
        torch.use_deterministic_algorithms(False)
    found = masktorch.masks(model)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_set_masks_on_tensors_without_entries():
    model = nn.Module()
    model.none = nn.Parameter(torch.empty(0, 3))
    masktorch.wrap(model, TopK(0.5), targets=["none"])
    masktorch.set_masks(model, masktorch.masks(model))
    assert masktorch.report(model).kept == 0


@each_ranked_or_blocks
def test_mask_files_copies_and_state_dicts(estimator, tmp_path):
    model = network(estimator)
    masks = masktorch.masks(model)
    masktorch.save_masks(model, tmp_path / "masks.npz")
    other = network(estimator)
    for parameter, same in zip(other.parameters(), model.parameters(), strict=True):
        if not any(parameter is scores for scores in masktorch.mask_parameters(other)):
            parameter.data.copy_(same)
    masktorch.load_masks(other, tmp_path / "masks.npz")
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = network(estimator)
    loaded.load_state_dict(model.state_dict())
    for twin in (
        other,
        copy.deepcopy(model),
        torch.load(buffer, weights_only=False),
        loaded,
    ):
        assert all(
            torch.equal(masks[name], mask)
            for name, mask in masktorch.masks(twin).items()
        )


@each_ranked_or_blocks
def test_checkpointing_recomputes_the_same(estimator):
    model = network(estimator)
    model(SCORES).square().sum().backward()
    expected = [scores.grad.clone() for scores in masktorch.mask_parameters(model)]
    model.zero_grad()
    checkpoint(model, SCORES, use_reentrant=False).square().sum().backward()
    for scores, grad in zip(masktorch.mask_parameters(model), expected, strict=True):
        assert torch.equal(scores.grad, grad)


def test_frozen_masks_follow_scores_written_through_data():
    model = masktorch.freeze_mask(network(TopK(0.3)))
    scores = model[0].parametrizations.weight.scores
    for _ in range(20):
        scores.data.numpy()[:] = np.round(
            np.random.default_rng().normal(size=scores.shape), 1
        )
        by_hand = torch.tensor(topk_by_hand(scores.detach().double().numpy(), 0.3))
        assert torch.equal(model[0].weight != 0, by_hand)


def learned(model, x=SCORES):
    model.zero_grad()
    out = model(x)
    out.square().sum().backward()
    return out.detach(), *(scores.grad for scores in masktorch.mask_parameters(model))


@pytest.mark.parametrize(
    ("estimator", "backend"),
    [
        *(
            (estimator, backend)
            for estimator in [*RANKED, *RANKED_BLOCKS]
            for backend in ("eager", "aot_eager")
        ),
        pytest.param(TopK(0.4), "inductor", marks=pytest.mark.slow),
        pytest.param(NOfM(), "inductor", marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_compiled_models_have_the_same_masks_and_gradients(dynamo, estimator, backend):
    model = network(estimator)
    for scores in masktorch.mask_parameters(model):
        scores.data.copy_(
            torch.randint(-2, 3, scores.shape).float() * 0.5
        )  # ties and zeros
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for found, expected in zip(learned(compiled), learned(model), strict=True):
        torch.testing.assert_close(found, expected)
    weight = torch.compile(lambda: model[0].weight, fullgraph=True, backend=backend)
    assert torch.equal(weight(), model[0].weight)
    masktorch.freeze_weights(masktorch.freeze_mask(model), False)
    torch.testing.assert_close(compiled(SCORES), model(SCORES))
    torch.testing.assert_close(compiled.eval()(SCORES), model(SCORES))


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="it compiles a graph a density"
)
@pytest.mark.parametrize(
    ("estimator", "backend", "dynamic"),
    [
        (TopK(), "aot_eager", None),
        (TopK(), "aot_eager", False),
        (Blocks(TopK(), (2, None)), "aot_eager", None),
        (TopK(absolute=False), "eager", False),
    ],
    ids=str,
)
def test_a_schedule_of_densities_compiles_at_most_four_graphs(
    dynamo, estimator, backend, dynamic
):
    from torch._dynamo.testing import CompileCounterWithBackend

    model = network(estimator)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
    for density in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
        masktorch.set_density(model, density)
        for found, expected in zip(learned(compiled), learned(model), strict=True):
            torch.testing.assert_close(found, expected)
    assert counter.frame_count <= 4


def test_densities_in_user_code_compile_at_most_four_graphs(dynamo):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(functional.topk, fullgraph=True, backend=counter)
    scores = torch.randn(20)
    for density in (1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05):
        assert torch.equal(compiled(scores, density), functional.topk(scores, density))
    assert counter.frame_count <= 4


def test_training_moves_the_mask_and_keeps_its_count():
    model = network(TopK(0.25))
    before = masktorch.masks(model)
    opt = torch.optim.SGD(masktorch.mask_parameters(model), lr=0.1, momentum=0.9)
    first = learned(model)[0].square().sum()
    for _ in range(30):
        loss = learned(model)[0].square().sum()
        opt.step()
    after = masktorch.masks(model)
    assert loss < first
    assert all(after[name].sum() == before[name].sum() for name in before)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_no_stale_cut_is_used_at_a_reused_address(monkeypatch):
    """A guess belongs to an address, which another tensor may reuse."""
    monkeypatch.setattr(top_k, "FEW", 0)
    for trial in range(50):
        torch.manual_seed(trial)
        scores = torch.round(torch.randn(40), decimals=1)
        expected = topk_by_hand(scores.double().numpy(), 0.3)
        assert TopK(0.3).mode(scores).numpy().tolist() == expected.tolist()
        del scores
    assert len(top_k._previous_cuts) <= top_k.REMEMBERED
