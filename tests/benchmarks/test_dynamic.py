"""Dynamic sparse training: counts stay exact, and each way moves its mask its way."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import masktorch
from benchmarks.experiment import dynamic
from benchmarks.experiment import runner as experiment
from benchmarks.experiment.networks import build
from benchmarks.experiment.training import Epoch, best_epoch

SHAPE = (1, 8, 8)


@pytest.fixture
def sparse(tiny, tmp_path):
    """A network of an arm at its start, its configuration and an optimiser."""

    def make(arm, **changes):
        configuration = tiny(density=0.1, budget="erk", **changes).for_arm(arm)
        model = build(configuration, SHAPE)
        experiment.prepare_model(model, configuration, tmp_path)
        return model, configuration, torch.optim.Adam(model.parameters())

    return make


def loss_of(model):
    torch.manual_seed(0)
    images, labels = torch.randn(16, *SHAPE), torch.randint(10, (16,))
    return lambda: cross_entropy(model(images), labels)


@pytest.mark.parametrize("arm", ["static", "set", "rigl", "gradual"])
def test_the_network_ends_at_its_density(arm, tiny, go, files_of):
    """Over all kernels; every layer has its part of Erdős and Rényi's."""
    configuration = tiny(
        density=0.1, budget="erk", epochs=3, train_images=1000, batch_size=4
    ).for_arm(arm)
    (result,) = go(configuration, [arm])
    kernels = {"hidden1": 64 * 300, "hidden2": 300 * 100, "classifier": 100 * 10}
    kept = sum(
        round(kernels[layer.layer] - layer.masked * layer.parameters)
        for layer in result.utilisation
    )
    assert kept == round(0.1 * sum(kernels.values()))
    masked = [layer.masked for layer in result.utilisation]
    assert masked[1] > masked[0] > masked[2]  # the larger a layer, the sparser


@pytest.mark.parametrize(("arm", "moves"), [("set", True), ("static", False)])
def test_masks_move_while_moves_are_due(arm, moves, sparse):
    _, configuration, _ = sparse(arm)
    due = [
        step
        for step in range(1, 401)
        if dynamic.move_is_due(configuration, step, progress=step / 400)
    ]
    assert due == ([50, 100, 150, 200, 250] if moves else [])


def test_rigl_grows_where_the_dense_gradient_is_largest(sparse):
    model, configuration, optimiser = sparse("rigl")
    before, loss = masktorch.masks(model), loss_of(model)
    plain = masktorch.unwrap(sparse("rigl")[0])
    loss_of(plain)().backward()
    dynamic.move(model, optimiser, configuration, 0.0, loss)
    after = masktorch.masks(model)
    for name, weight in plain.named_parameters():
        if name not in after:
            continue
        grown, dropped = after[name] & ~before[name], before[name] & ~after[name]
        assert grown.sum() == dropped.sum() > 0
        gradient = weight.grad.abs()
        still_masked = ~after[name] & ~before[name]
        assert gradient[grown].min() >= gradient[still_masked].max() * (1 - 1e-5)
        sizes = weight.abs().detach()
        replaced = math.floor(dynamic.FIRST_REPLACED * int(before[name].sum()) + 0.5)
        smallest_to_stay = sizes[before[name]].sort().values[replaced]
        assert after[name][before[name] & (sizes >= smallest_to_stay)].all()


def test_set_grows_at_random(sparse):
    moved = []
    for seed in range(2):
        model, configuration, optimiser = sparse("set")
        torch.manual_seed(seed)
        dynamic.move(model, optimiser, configuration, 0.0, loss=None)
        moved.append(masktorch.masks(model))
    assert any(not torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_grown_weights_and_their_moments_start_at_zero(sparse):
    model, configuration, optimiser = sparse("set")
    loss_of(model)().backward()
    optimiser.step()
    for state in optimiser.state.values():
        state["exp_avg"].fill_(1.0)  # as if every weight had been kept before
    before = masktorch.masks(model)
    dynamic.move(model, optimiser, configuration, 0.0, loss=None)
    after = masktorch.masks(model)
    for name, parameter in model.named_parameters():
        if name in after:
            grown = after[name] & ~before[name]
            stayed = after[name] & before[name]
            assert grown.any()
            assert not parameter[grown].any()
            moments = optimiser.state[parameter]["exp_avg"]
            assert not moments[grown].any()
            assert moments[stayed].any()


def test_gradual_pruning_follows_the_cubic_schedule(sparse):
    model, configuration, optimiser = sparse("gradual")
    assert masktorch.report(model).kept == masktorch.report(model).size
    for progress, density in ((0.35, 0.2125), (0.7, 0.1), (0.74, 0.1)):
        dynamic.move(model, optimiser, configuration, progress, loss=None)
        report = masktorch.report(model)
        assert report.kept == round(density * report.size)


@pytest.mark.parametrize(("arm", "best"), [("gradual", 4), ("rigl", 1)])
def test_the_best_epoch_has_the_final_density(arm, best, tiny):
    configuration = tiny(density=0.1, budget="erk", epochs=4).for_arm(arm)
    history = [
        Epoch(number, 0.1, 0, 0, 0, accuracy, 0)
        for number, accuracy in enumerate((0.9, 0.8, 0.7, 0.6), start=1)
    ]
    assert best_epoch(history, configuration).epoch == best


def test_a_ticket_with_a_budget_of_erk(sparse, tiny):
    """It has the densities of the other arms."""
    model, _, _ = sparse("static")
    random = masktorch.masks(model)
    ticket = tiny(density=0.1, budget="erk").for_arm("ticket")
    plain = build(replace(ticket), SHAPE)
    largest = experiment.masks.masks_of_largest_weights(plain, ticket)
    assert {n: m.sum() for n, m in largest.items()} == {
        n: m.sum() for n, m in random.items()
    }
