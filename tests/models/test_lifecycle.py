"""The life of a mask as the blog lives it, one test per invariant of the contract."""

import functools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
)

ESTIMATORS = [
    Threshold(),
    Bernoulli(),
    IntermediateSampling(),
    Piggyback(),
    HardConcrete(),
    Concrete(),
]
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
NAMES = ["features.0.weight", "head.weight"]


def optimiser(model):
    """Over everything, once, for all phases: AdamW, whose decay moves what has a gradient."""
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model, batch, optimiser, steps=5):
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimiser.step()


def half(model):
    """Random masks, about half of each tensor kept."""
    return {
        name: torch.rand(m.shape) < 0.5 for name, m in masktorch.masks(model).items()
    }


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def under(model, name):
    return dict(model.named_parameters())[name]


@each_estimator
def test_wrap_works_in_place_and_trains_scores_not_weights(small, estimator):
    before = {name: (p, p.detach().clone()) for name, p in small.named_parameters()}
    assert masktorch.wrap(small, estimator) is small
    for name, (parameter, value) in before.items():
        assert under(small, name) is parameter
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == (name not in NAMES)
    assert [p.requires_grad for p in masktorch.mask_parameters(small)] == [True, True]
    assert list(masktorch.masks(small)) == NAMES


def test_wrap_draws_nothing_from_the_global_stream(small):
    state = torch.get_rng_state()
    for estimator in ESTIMATORS:
        masktorch.unwrap(masktorch.wrap(small, estimator, bias=True))
    assert torch.equal(torch.get_rng_state(), state)


@each_estimator
def test_a_learned_mask_leaves_the_weights_alone(small, batch, estimator):
    masktorch.wrap(small, estimator)
    before = copies(small)
    train(small, batch, optimiser(small))
    for name, value in copies(small).items():
        assert torch.equal(value, before[name]) == (name in NAMES), name


@each_estimator
def test_evaluation_and_frozen_masks_are_deterministic(small, estimator):
    masktorch.wrap(small, estimator)
    learned = half(small)
    masktorch.set_masks(small, learned)
    for frozen, training in [(False, False), (True, False), (True, True)]:
        masktorch.freeze_mask(small, frozen).train(training)
        for name, module in zip(NAMES, [small.features[0], small.head], strict=True):
            assert torch.equal(module.weight, under(small, name) * learned[name])


@each_estimator
def test_the_whole_life_with_one_optimiser(small, batch, estimator):
    parameters = list(copies(small))
    masktorch.wrap(small, estimator)
    opt = optimiser(small)
    train(small, batch, opt)
    masktorch.set_masks(small, half(small))
    learned = masktorch.masks(small)
    scores = [s.detach().clone() for s in masktorch.mask_parameters(small)]

    masktorch.freeze_weights(masktorch.freeze_mask(small), False)
    started = copies(small)
    train(small, batch, opt)

    for name, mask in masktorch.masks(small).items():
        assert torch.equal(
            mask, learned[name]
        )  # masks bit-identical through weight training
        weight = under(small, name)
        assert torch.count_nonzero(weight.grad[~mask]) == 0
        assert torch.count_nonzero(weight.grad[mask]) > 0
        assert not torch.equal(weight, started[name])
    small.train()
    assert torch.count_nonzero(small.head.weight[~learned["head.weight"]]) == 0
    assert torch.count_nonzero(small.features[0].weight[~learned[NAMES[0]]]) == 0

    for now, then in zip(masktorch.mask_parameters(small), scores, strict=True):
        assert torch.equal(now, then)

    small.eval()
    expected = small(batch[0])
    masktorch.unwrap(small)
    assert torch.equal(small(batch[0]), expected)
    assert type(small.head) is nn.Linear
    assert type(small.features[0]) is nn.Conv2d
    for name, mask in learned.items():
        assert torch.equal(under(small, name)[~mask], torch.zeros(int((~mask).sum())))
        assert under(small, name).requires_grad
    assert list(copies(small)) == parameters


@each_estimator
def test_a_masked_entry_contributes_zero_whatever_stands_under_it(
    small, batch, estimator
):
    masktorch.wrap(small, estimator)
    masktorch.set_masks(small, half(small))
    masktorch.freeze_mask(small).eval()
    before = small(batch[0])
    mask = masktorch.masks(small)["head.weight"]
    with torch.no_grad():
        under(small, "head.weight")[~mask] = float("nan")
    assert torch.equal(small(batch[0]), before)
    assert torch.equal(
        masktorch.unwrap(small).head.weight[~mask], torch.zeros(int((~mask).sum()))
    )


@each_estimator
def test_learning_goes_on_where_it_was_after_unfreezing(small, batch, estimator):
    masktorch.wrap(small, estimator)
    opt = optimiser(small)
    train(small, batch, opt)  # the last step leaves gradients and momentum behind
    scores = [s.detach().clone() for s in masktorch.mask_parameters(small)]
    masktorch.freeze_mask(small)
    opt.step()  # must not move what is frozen
    masktorch.freeze_mask(small, False)
    for now, then in zip(masktorch.mask_parameters(small), scores, strict=True):
        assert torch.equal(now, then)
        assert now.requires_grad
    train(small, batch, opt)
    assert any(
        not torch.equal(now, then)
        for now, then in zip(masktorch.mask_parameters(small), scores, strict=True)
    )


def test_a_weight_with_a_stale_gradient_does_not_move_after_wrap(small, batch):
    opt = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(small, batch, opt)
    masktorch.wrap(small)
    before = under(small, "head.weight").detach().clone()
    opt.step()
    assert torch.equal(under(small, "head.weight"), before)


def test_unwrap_without_baking_gives_the_original_back_bit_for_bit(small, batch):
    before = copies(small)
    buffers = {name: b.clone() for name, b in small.named_buffers()}
    small.head.weight.requires_grad_(False)
    parameters = dict(small.named_parameters())
    masktorch.wrap(small, bias=True)
    masktorch.set_masks(small, half(small))
    masktorch.unwrap(small, bake=False)
    assert str(small) == str(type(small)())
    for name, parameter in small.named_parameters():
        assert parameter is parameters[name]
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad == (name != "head.weight")
    assert buffers.keys() == dict(small.named_buffers()).keys()


def test_hooks_and_optimiser_state_survive(small, batch):
    seen = []
    small.head.weight.register_hook(lambda grad: seen.append(grad))
    opt = optimiser(small)
    train(small, batch, opt, steps=1)
    momentum = opt.state[small.head.weight]["exp_avg"]
    masktorch.unwrap(masktorch.wrap(small))
    assert opt.state[small.head.weight]["exp_avg"] is momentum
    train(small, batch, opt, steps=1)
    assert len(seen) == 2


@each_estimator
def test_rescale_bakes_what_the_layer_used(small, batch, estimator):
    masktorch.wrap(small, estimator, rescale=True)
    masktorch.set_masks(small, half(small))
    small.eval()
    weight, mask = small.head.weight.clone(), masktorch.masks(small)["head.weight"]
    expected = under(small, "head.weight") * mask * (mask.numel() / mask.sum())
    torch.testing.assert_close(weight, expected)
    masktorch.unwrap(small)
    assert torch.equal(small.head.weight, weight)


def test_set_masks_gives_exactly_the_mask_and_moves_only_what_it_must():
    for estimator in [
        *ESTIMATORS,
        Threshold(0.9),
        Bernoulli(0.01),
        IntermediateSampling(1.0, 0.3),
    ]:
        for dtype in [torch.float32, torch.bfloat16, torch.float16, torch.float64]:
            layer = masktorch.wrap(
                nn.Linear(50, 40, dtype=dtype), estimator, init=torch.randn_like
            )
            scores = layer.parametrizations.weight.scores
            before, wanted = scores.detach().clone(), torch.rand(40, 50) < 0.5
            apart = (before - estimator.at).abs() > 1e-2
            agreed = (masktorch.masks(layer)["weight"] == wanted) & apart
            masktorch.set_masks(layer, {"weight": wanted})
            assert torch.equal(masktorch.masks(layer)["weight"], wanted)
            assert torch.equal(scores[agreed], before[agreed])


def test_set_masks_decides_scores_that_stand_on_the_threshold():
    layer = masktorch.wrap(nn.Linear(2, 1), Bernoulli(), init=0.0)
    masktorch.set_masks(layer, {"weight": torch.tensor([[True, False]])})
    assert layer.parametrizations.weight.scores.tolist() == [[1.0, -1.0]]


def test_a_stochastic_mask_is_drawn_once_per_forward_and_anew_per_call():
    class Twice(nn.Linear):
        def forward(self, x):
            self.reads = self.weight, self.weight
            return F.linear(x, self.reads[0] - self.reads[1])

    layer = masktorch.wrap(Twice(30, 30), Bernoulli())
    assert torch.count_nonzero(layer(torch.randn(2, 30))) == 0
    first = layer.reads[0]
    layer(torch.randn(2, 30))
    assert not torch.equal(layer.reads[0], first)


def test_one_draw_can_be_held_over_several_calls():
    layer = masktorch.wrap(nn.Linear(30, 30), Bernoulli())
    x = torch.randn(2, 30)
    with torch.nn.utils.parametrize.cached():
        assert torch.equal(layer(x), layer(x))
    assert not torch.equal(layer(x), layer(x))


def test_tied_weights_share_one_mask_everywhere_they_live():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(
        model
    )  # the Linear is the target, the embedding holds the same tensor
    assert list(masktorch.masks(model)) == ["0.weight"]
    wanted = torch.rand(5, 4) < 0.5
    masktorch.set_masks(model, {"0.weight": wanted}).eval()
    assert torch.equal(model[0].weight, model[1].weight)
    out = model(torch.arange(5))
    masktorch.unwrap(model)
    assert model[0].weight is model[1].weight
    assert torch.equal(model(torch.arange(5)), out)


def test_freezing_warns_of_a_mask_that_keeps_nothing(small):
    masktorch.wrap(small)
    masktorch.set_masks(
        small, {n: torch.ones_like(m) for n, m in masktorch.masks(small).items()}
    )
    nothing = {
        n: torch.full_like(m, n == "head.weight")
        for n, m in masktorch.masks(small).items()
    }
    with pytest.warns(UserWarning, match=r"'features.0.weight' keeps nothing"):
        masktorch.set_masks(small, nothing)
    with pytest.warns(
        UserWarning, match=r"'features.0.weight' keeps nothing"
    ) as caught:
        masktorch.freeze_mask(small)
    assert caught[0].filename == __file__


def test_freezing_under_warnings_as_errors_freezes_all_or_none(small):
    masktorch.wrap(small, init=-1.0)
    with pytest.raises(UserWarning, match="keeps nothing"):
        masktorch.freeze_mask(small)
    assert not any(s.requires_grad for s in masktorch.mask_parameters(small))
    assert str(small).count("frozen") == 2


def test_init_can_not_write_into_the_weight():
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    masktorch.wrap(layer, init=nn.init.zeros_)
    assert torch.equal(under(layer, "weight"), before)
    assert torch.count_nonzero(layer.parametrizations.weight.scores) == 0


@each_estimator
@pytest.mark.parametrize("init", [None, torch.clone])
def test_what_is_wrapped_in_inference_mode_learns(small, batch, estimator, init):
    with torch.inference_mode():
        masktorch.wrap(small, estimator, init=init)
        small.eval()(batch[0])
    before = [s.detach().clone() for s in masktorch.mask_parameters(small)]
    train(small, batch, optimiser(small))
    for now, then in zip(masktorch.mask_parameters(small), before, strict=True):
        assert not torch.equal(now, then)


def test_masks_given_in_inference_mode_can_be_changed_outside(small, batch):
    with torch.inference_mode():
        keep = {name: torch.rand(p.shape) < 0.5 for name, p in small.named_parameters()
                if name in NAMES}  # fmt: skip
        masktorch.set_masks(small, keep)
    masktorch.set_masks(small, {name: ~mask for name, mask in keep.items()})
    small.load_state_dict(small.state_dict())
    train(small, batch, optimiser(small))
    assert torch.equal(masktorch.masks(small)["head.weight"], ~keep["head.weight"])


def test_assigning_a_tensor_writes_under_the_mask():
    layer = masktorch.wrap(nn.Linear(2, 1))
    masktorch.set_masks(layer, {"weight": torch.tensor([[True, False]])})
    parameter = under(layer, "weight")
    layer.weight = torch.tensor([[3.0, 4.0]])
    assert under(layer, "weight") is parameter
    assert parameter.tolist() == [[3.0, 4.0]]
    assert layer.eval().weight.tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("value", [None, torch.ones(()), nn.Parameter(torch.ones(2))])
def test_a_masked_tensor_keeps_its_shape(value):
    layer = masktorch.wrap(nn.Linear(2, 3), bias=True)
    with pytest.raises(
        ValueError, match=r"'bias' has a mask: expected a tensor of shape \(3,\)"
    ):
        layer.bias = value
    assert layer(torch.ones(1, 2)).shape == (1, 3)


@each_estimator
def test_the_mode_is_the_layers_own(estimator):
    """Tied layers, one in training mode and one not."""
    model = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 50, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model, estimator, init=0.0)
    model[0].eval()
    assert not model[0].weight.requires_grad
    assert model[1].weight.requires_grad
    assert (
        torch.count_nonzero(model[0].weight) == 0
    )  # a score of 0 is masked, when not drawn


@each_estimator
def test_a_first_read_without_gradient_leaves_the_next_its_own(estimator):
    class Normed(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.size = self.weight.norm()
            return super().forward(x)

    layer = masktorch.freeze_weights(masktorch.wrap(Normed(4, 3), estimator), False)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.parametrizations.weight.scores.grad is not None
    assert under(layer, "weight").grad is not None


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("estimator", "frozen"),
    [(Threshold(), False), (Threshold(), True), (Bernoulli(), True)],
)
def test_checkpoints_inside_a_forward_that_reads_a_mask_without_draws(
    estimator, frozen, reentrant
):
    def gradients(checkpointed):
        class Two(nn.Linear):
            def segment(self, x):
                return F.linear(x, self.weight).tanh()

            def forward(self, x):
                for _ in range(2):
                    call = functools.partial(
                        checkpoint, self.segment, use_reentrant=reentrant
                    )
                    x = call(x) if checkpointed else self.segment(x)
                return x

        torch.manual_seed(0)
        layer = masktorch.wrap(Two(4, 4, bias=False), estimator, init=torch.clone)
        masktorch.freeze_weights(masktorch.freeze_mask(layer, frozen), False)
        layer(torch.randn(3, 4, requires_grad=True)).sum().backward()
        return [p.grad for p in layer.parameters()]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        assert found is expected is None or torch.equal(found, expected)


@pytest.mark.parametrize("tau", [0.2, 0.6, 0.7, 0.9])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_training_and_evaluation_agree_next_to_the_threshold(dtype, tau):
    at = torch.tensor(math.log(tau / (1 - tau)), dtype=dtype)
    near = torch.stack([at * (1 + k * torch.finfo(dtype).eps) for k in range(-4, 5)])
    estimator = Threshold(tau)
    assert torch.equal(estimator(near).bool(), estimator.mode(near))


def test_rescale_in_half_precision_and_of_nothing():
    layer = nn.Linear(400, 400, dtype=torch.float16)
    masktorch.wrap(layer, rescale=True, init=-1.0)
    assert torch.count_nonzero(layer.weight) == 0
    one = torch.zeros(400, 400, dtype=torch.bool)
    one[0, 0] = True
    with torch.no_grad():
        under(layer, "weight").fill_(0.25)
    masktorch.set_masks(layer, {"weight": one})
    for training in (True, False):
        weight = layer.train(training).weight
        assert weight[0, 0] == 0.25 * 400 * 400
        assert torch.count_nonzero(weight) == 1


@pytest.mark.parametrize(("masked", "chosen"), [(0, "1.weight"), (1, "0.weight")])
def test_a_tensor_masked_at_another_place_is_not_masked_again(masked, chosen):
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    masktorch.wrap(model[masked], Bernoulli(), targets=["weight"])
    with pytest.raises(ValueError, match=rf"'{masked}.weight': it has a mask already"):
        masktorch.wrap(model, targets=[chosen])
    assert model[masked].parametrizations.weight.estimator == Bernoulli()


def test_masks_are_copies():
    layer = masktorch.wrap(nn.Linear(2, 3))
    masktorch.masks(layer)["weight"][:] = False
    assert masktorch.report(layer).masked == 0
