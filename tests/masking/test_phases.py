"""The phases of a model: learn masks, freeze them, train weights, unwrap."""

import pytest
import torch
from torch import nn

import masktorch
from tools.estimators import ELEMENTWISE, each_elementwise
from tools.models import SMALL_NAMES, adamw, half, parameter_under, train


def copies(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@each_elementwise
def test_wrap_works_in_place_and_trains_scores_not_weights(small, estimator):
    before = {name: (p, p.detach().clone()) for name, p in small.named_parameters()}
    assert masktorch.wrap(small, estimator) is small
    for name, (parameter, value) in before.items():
        assert parameter_under(small, name) is parameter
        assert torch.equal(parameter, value)
        assert parameter.requires_grad == (name not in SMALL_NAMES)
    assert [p.requires_grad for p in masktorch.mask_parameters(small)] == [True, True]
    assert list(masktorch.masks(small)) == SMALL_NAMES


def test_wrap_draws_nothing_from_the_global_stream(small):
    state = torch.get_rng_state()
    for estimator in ELEMENTWISE:
        masktorch.unwrap(masktorch.wrap(small, estimator, bias=True))
    assert torch.equal(torch.get_rng_state(), state)


@each_elementwise
def test_a_learned_mask_leaves_the_weights_alone(small, batch, estimator):
    masktorch.wrap(small, estimator)
    before = copies(small)
    train(small, batch, adamw(small))
    for name, value in copies(small).items():
        assert torch.equal(value, before[name]) == (name in SMALL_NAMES), name


@each_elementwise
def test_evaluation_and_frozen_masks_are_deterministic(small, estimator):
    masktorch.wrap(small, estimator)
    learned = half(small)
    masktorch.set_masks(small, learned)
    for frozen, training in [(False, False), (True, False), (True, True)]:
        masktorch.freeze_mask(small, frozen).train(training)
        for name, module in zip(
            SMALL_NAMES, [small.features[0], small.head], strict=True
        ):
            assert torch.equal(
                module.weight, parameter_under(small, name) * learned[name]
            )


@each_elementwise
def test_one_optimiser_continues_across_all_phases(small, batch, estimator):
    parameters = list(copies(small))
    masktorch.wrap(small, estimator)
    opt = adamw(small)
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
        weight = parameter_under(small, name)
        assert torch.count_nonzero(weight.grad[~mask]) == 0
        assert torch.count_nonzero(weight.grad[mask]) > 0
        assert not torch.equal(weight, started[name])
    small.train()
    assert torch.count_nonzero(small.head.weight[~learned["head.weight"]]) == 0
    assert torch.count_nonzero(small.features[0].weight[~learned[SMALL_NAMES[0]]]) == 0

    for now, then in zip(masktorch.mask_parameters(small), scores, strict=True):
        assert torch.equal(now, then)

    small.eval()
    expected = small(batch[0])
    masktorch.unwrap(small)
    assert torch.equal(small(batch[0]), expected)
    assert type(small.head) is nn.Linear
    assert type(small.features[0]) is nn.Conv2d
    for name, mask in learned.items():
        assert torch.equal(
            parameter_under(small, name)[~mask], torch.zeros(int((~mask).sum()))
        )
        assert parameter_under(small, name).requires_grad
    assert list(copies(small)) == parameters


@each_elementwise
def test_a_masked_entry_contributes_zero_even_over_nan(small, batch, estimator):
    masktorch.wrap(small, estimator)
    masktorch.set_masks(small, half(small))
    masktorch.freeze_mask(small).eval()
    before = small(batch[0])
    mask = masktorch.masks(small)["head.weight"]
    with torch.no_grad():
        parameter_under(small, "head.weight")[~mask] = float("nan")
    assert torch.equal(small(batch[0]), before)
    assert torch.equal(
        masktorch.unwrap(small).head.weight[~mask], torch.zeros(int((~mask).sum()))
    )


@each_elementwise
def test_learning_continues_after_unfreezing(small, batch, estimator):
    masktorch.wrap(small, estimator)
    opt = adamw(small)
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
    before = parameter_under(small, "head.weight").detach().clone()
    opt.step()
    assert torch.equal(parameter_under(small, "head.weight"), before)


def test_unwrap_without_baking_restores_the_original_bits(small, batch):
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


def test_freezing_under_warnings_as_errors_changes_nothing(small):
    masktorch.wrap(small, init=-1.0)
    with pytest.raises(UserWarning, match="keeps nothing"):
        masktorch.freeze_mask(small)
    assert all(s.requires_grad for s in masktorch.mask_parameters(small))
    assert str(small).count("learning") == 2


@each_elementwise
def test_a_read_under_no_grad_does_not_hide_later_gradients(estimator):
    class Normed(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.size = self.weight.norm()
            return super().forward(x)

    layer = masktorch.freeze_weights(masktorch.wrap(Normed(4, 3), estimator), False)
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.parametrizations.weight.scores.grad is not None
    assert parameter_under(layer, "weight").grad is not None
