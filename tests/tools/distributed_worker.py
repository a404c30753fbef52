"""The checks that need two processes; test_distributed.py runs them.

    torchrun --standalone --nproc-per-node 2 distributed_worker.py FOLDER CHECK...

Each rank leaves FOLDER/CHECK.RANK: empty if the check passed, else a traceback.
A failed check ends the run, because the other rank may be waiting for this one.
"""

import copy
import datetime
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import (
    Bernoulli,
    Blocks,
    Concrete,
    ConcreteNOfM,
    HardConcrete,
    IntermediateSampling,
    NOfM,
    Piggyback,
    Threshold,
    TopK,
)

CHECKS = {}
LAYERS = (0, 2, 5)
STOCHASTIC = (Bernoulli(), IntermediateSampling(), HardConcrete(), Concrete())


def check(function):
    CHECKS[function.__name__] = function
    return function


def network(estimator=Threshold(), **options):
    """Odd sizes, which two ranks cannot halve; float64 against rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 9),
        nn.ReLU(),
        nn.Linear(9, 7),
        nn.LayerNorm(7),
        nn.ReLU(),
        nn.Linear(7, 3),
    )
    return masktorch.wrap(model.double(), estimator, **options)


def sharded(model, layers=True):
    if layers:
        for index in LAYERS:
            fully_shard(model[index])
    return fully_shard(model)


def optimiser(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


def batches(start=0, stop=15):
    """Global batches of eight, the same everywhere."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(40, 8, 6, generator=generator, dtype=torch.float64)
    return [(x, x[:, :3].argmax(1)) for x in data[start:stop]]


def train(model, opt, data, part=slice(None)):
    model.train()
    for x, y in data:
        opt.zero_grad()
        F.cross_entropy(model(x[part]), y[part]).backward()
        opt.step()


def mine():
    return slice(dist.get_rank(), None, 2)


def mix(model):
    return masktorch.freeze_weights(masktorch.freeze_mask(model), False)


def full(tensor):
    return (
        tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()
    )


def state(model):
    return {name: full(value) for name, value in model.state_dict().items()}


def masks(model):
    return {name: full(mask) for name, mask in masktorch.masks(model).items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=1e-8, atol=1e-8, msg=name
        )


def on_both(tensor):
    """The tensor of rank 0 and that of rank 1."""
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor), torch.empty_like(tensor)]
    dist.all_gather(parts, tensor)
    return parts


def assert_ranks_agree(tensors):
    for name, tensor in tensors.items():
        zero, one = on_both(tensor.to(torch.float64))
        assert torch.equal(zero, one), name


def drawn(layer):
    """A mask drawn now, from the weight that the layer computes."""
    return (layer.weight != 0).to(torch.float64)


def raises(kind, *parts):
    """`with raises(...)`: as pytest's, without pytest."""
    return _Raises(kind, parts)


class _Raises:
    def __init__(self, kind, parts):
        self.kind, self.parts = kind, parts

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        assert kind is not None, f"{self.kind.__name__} expected"
        if not issubclass(kind, self.kind):
            return False
        for part in self.parts:
            assert part in str(error), f"{part!r} expected in {error}"
        return True


def both_phases_of_one_process():
    """The expected states: after learning masks, and after training weights."""
    model = network()
    opt = optimiser(model)
    train(model, opt, batches())
    learned = state(model), masks(model)
    train(mix(model), opt, batches(15, 25))
    return *learned, state(model)


@check
def ddp_learns_the_masks_of_one_process(folder):
    learned, expected, _ = both_phases_of_one_process()
    model = network()
    start = masks(model)
    opt = optimiser(model)
    train(DistributedDataParallel(model), opt, batches(), mine())
    assert_equal(masks(model), expected)
    assert all(not torch.equal(start[name], mask) for name, mask in expected.items())
    assert_close(state(model), learned)
    assert_ranks_agree(state(model))


@check
def ddp_continues_when_built_again_for_the_next_phase(folder):
    learned, expected, mixed = both_phases_of_one_process()
    model = network()
    opt = optimiser(model)
    ddp = DistributedDataParallel(model)
    train(ddp, opt, batches(), mine())
    mix(model)
    scores = [scores.detach().clone() for scores in masktorch.mask_parameters(model)]
    ddp = DistributedDataParallel(model)
    train(ddp, opt, batches(15, 25), mine())
    assert_close(state(model), mixed)
    assert not torch.equal(mixed["0.weight"], learned["0.weight"])
    assert_ranks_agree(state(model))
    assert_equal(masks(model), expected)
    for now, then in zip(masktorch.mask_parameters(model), scores, strict=True):
        assert torch.equal(now, then)
    for index in LAYERS:
        mask, layer = expected[f"{index}.weight"], model[index]
        assert torch.count_nonzero(layer.weight[~mask]) == 0
        gradient = layer.parametrizations.weight.original.grad
        assert torch.count_nonzero(gradient[~mask]) == 0
        assert torch.count_nonzero(gradient[mask]) > 0
        assert_ranks_agree({"gradient": gradient})


@check
def ddp_kept_across_phases_fails_or_drifts_as_documented(folder):
    for find_unused in (False, True):
        model = network()
        opt = optimiser(model)
        ddp = DistributedDataParallel(model, find_unused_parameters=find_unused)
        train(ddp, opt, batches(0, 3), mine())
        mix(model)
        if find_unused:
            train(ddp, opt, batches(3, 6), mine())
            zero, one = on_both(state(model)["0.weight"])
            assert not torch.equal(zero, one)
        else:
            with raises(RuntimeError, "Expected to have finished reduction"):
                train(ddp, opt, batches(3, 6), mine())


@check
def ddp_ranks_draw_apart_and_agree_on_the_frozen_mask(folder):
    for estimator in STOCHASTIC:
        model = network(estimator, init=0.1)
        opt = optimiser(model)
        ddp = DistributedDataParallel(model)
        torch.manual_seed(5)
        zero, one = on_both(drawn(model[0]))
        assert torch.equal(zero, one)  # equal seeds, equal draws
        torch.manual_seed(5 + dist.get_rank())
        zero, one = on_both(drawn(model[0]))
        assert not torch.equal(zero, one)
        train(ddp, opt, batches(), mine())
        zero, one = on_both(drawn(model[0]))
        assert not torch.equal(zero, one)
        assert_ranks_agree(state(model))
        masktorch.freeze_mask(model)
        assert 0 < masktorch.report(model).masked < masktorch.report(model).size
        assert_ranks_agree(masks(model))
        ddp.eval()
        assert_ranks_agree({"output": ddp(batches()[0][0])})


@check
def ddp_with_activation_checkpointing(folder):
    class Checkpointed(nn.Module):
        def __init__(self, layers, reentrant):
            super().__init__()
            self.layers, self.reentrant = layers, reentrant

        def forward(self, x):
            if self.reentrant is None:
                return self.layers(x)
            return checkpoint(self.layers, x, use_reentrant=self.reentrant)

    for estimator in (Threshold(), TopK(0.5), *STOCHASTIC):
        gradients = []
        for reentrant in (None, False, True):
            model = network(estimator, init=0.1)
            ddp = DistributedDataParallel(Checkpointed(model, reentrant))
            torch.manual_seed(5 + dist.get_rank())
            for x, y in batches(0, 2):
                ddp.zero_grad()
                x = x[mine()].requires_grad_()  # reentrant checkpointing asks for one
                F.cross_entropy(ddp(x), y[mine()]).backward()
            gradients.append(
                {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            )
            assert all(
                torch.count_nonzero(s.grad) for s in masktorch.mask_parameters(model)
            )
            assert_ranks_agree(gradients[-1])
        assert_equal(gradients[0], gradients[1])
        assert_equal(gradients[0], gradients[2])


@check
def ddp_refuses_what_it_could_not_follow(folder):
    plain = nn.Sequential(nn.Linear(6, 9))
    with raises(ValueError, "wrap()", "DistributedDataParallel", "First wrap"):
        masktorch.wrap(DistributedDataParallel(plain))
    assert type(plain[0]) is nn.Linear
    model = network()
    with raises(ValueError, "unwrap()", "DistributedDataParallel"):
        masktorch.unwrap(DistributedDataParallel(model))
    masktorch.masks(model)  # still there
    masktorch.unwrap(model)


def fsdp_equals_one_process(layers):
    learned, expected, mixed = both_phases_of_one_process()
    reference = network()
    model = sharded(network(), layers)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    opt = optimiser(model)
    train(model, opt, batches(), mine())
    assert_close(state(model), learned)
    assert all(isinstance(mask, DTensor) for mask in masktorch.masks(model).values())
    assert_equal(masks(model), expected)
    assert_ranks_agree(state(model))

    reference.load_state_dict(learned)
    x = batches()[0][0]
    torch.testing.assert_close(
        model.eval()(x), reference.eval()(x), rtol=1e-8, atol=1e-8
    )
    assert masktorch.report(model) == masktorch.report(reference)

    mix(model)  # right after an evaluation, which leaves the root gathered
    train(model, opt, batches(15, 25), mine())
    assert_close(state(model), mixed)
    assert_equal(masks(model), expected)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert not [name for name in gradients if name.endswith("scores")]
    model.unshard()
    for index in LAYERS:
        if layers:
            model[index].unshard()
        mask, weight = expected[f"{index}.weight"], model[index].weight
        assert type(weight) is torch.Tensor
        assert torch.count_nonzero(weight[~mask]) == 0
        assert torch.count_nonzero(weight[mask]) > 0
        gradient = full(gradients[f"{index}.weight"])
        assert torch.count_nonzero(gradient[~mask]) == 0
        assert torch.count_nonzero(gradient[mask]) > 0
    for module in reversed(list(model.modules())):
        if isinstance(module, FSDPModule):
            module.reshard()

    # A masked entry contributes nothing, even if an optimiser changed it.
    before = model.eval()(x)
    model.reshard()
    for name, mask in expected.items():
        parameter = dict(model.named_parameters())[name]
        start = parameter.device_mesh.get_local_rank() * -(-mask.shape[0] // 2)
        local = parameter.to_local()
        local.detach()[~mask[start : start + len(local)]] = float("nan")
    assert torch.equal(model(x), before)


@check
def fsdp_by_layers_equals_one_process(folder):
    fsdp_equals_one_process(layers=True)


@check
def fsdp_of_the_root_equals_one_process(folder):
    fsdp_equals_one_process(layers=False)


@check
def fsdp_ranks_draw_apart_and_agree_on_the_frozen_mask(folder):
    for estimator in STOCHASTIC:
        model = sharded(network(estimator, init=0.1))
        opt = optimiser(model)
        torch.manual_seed(5 + dist.get_rank())
        train(model, opt, batches(), mine())
        x = batches()[0][0]
        zero, one = on_both(model(x))
        assert not torch.equal(zero, one)
        masktorch.freeze_mask(model)
        report = masktorch.report(model)
        assert 0 < report.masked < report.size
        assert_ranks_agree(masks(model))
        model.train()
        assert_ranks_agree({"output": model(x)})


@check
def fsdp_rescales_by_the_whole_tensor(folder):
    plain, model = network(rescale=True), sharded(network(rescale=True))
    train(plain, optimiser(plain), batches())
    train(model, optimiser(model), batches(), mine())
    assert_close(state(model), state(plain))
    x = batches()[0][0]
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=1e-8, atol=1e-8)


@check
def fsdp_with_activation_checkpointing(folder):
    from torch.distributed._composable import checkpoint as composable

    for estimator in (Threshold(), TopK(0.5), *STOCHASTIC):
        states = []
        for checkpointed in (False, True):
            model = network(estimator, init=0.1)
            if checkpointed:
                for index in LAYERS:
                    composable(model[index])
            sharded(model)
            torch.manual_seed(5 + dist.get_rank())
            train(model, optimiser(model), batches(0, 3), mine())
            states.append(state(model))
        assert_equal(*states)


class LowRank:
    """Scores of another shape than the weight: m = 1[(U V^T) > 0], straight through."""

    def __init__(self, rows):
        self.rows = rows

    def init(self, weight):
        generator = torch.Generator().manual_seed(2)
        return torch.randn(sum(weight.shape), 2, generator=generator)

    def __call__(self, scores):
        logits = scores[: self.rows] @ scores[self.rows :].T
        return (logits > 0).to(logits.dtype) + logits - logits.detach()

    def mode(self, scores):
        return scores[: self.rows] @ scores[self.rows :].T > 0


def masks_of_groups():
    """A mask of tiles, a low-rank one and one of rows: scores of other shapes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6), nn.Linear(6, 4))
    return masktorch.wrap(
        model.double(),
        {
            "0.weight": Blocks(Threshold(), (3, 2)),
            "2.weight": LowRank(6),
            "3.weight": Blocks(TopK(0.5), (1, None)),
        },
    )


@check
def ddp_learns_scores_of_any_shape(folder):
    plain, model = masks_of_groups(), masks_of_groups()
    model.load_state_dict(plain.state_dict())
    before = [s.detach().clone() for s in masktorch.mask_parameters(model)]
    reference, opt = optimiser(plain), optimiser(model)
    train(plain, reference, batches(0, 8))
    train(DistributedDataParallel(model), opt, batches(0, 8), mine())
    for old, new in zip(before, masktorch.mask_parameters(model), strict=True):
        assert not torch.equal(old, new)
    assert_equal(masks(model), masks(plain))
    assert_close(state(model), state(plain))
    assert_ranks_agree(state(model))


@check
def ddp_keeps_patterns_alike_on_all_ranks(folder):
    torch.manual_seed(0)
    model = masktorch.wrap(nn.Linear(8, 4).double(), ConcreteNOfM(2, 4))
    with torch.no_grad():
        for scores in masktorch.mask_parameters(model):
            dist.broadcast(scores, 0)
    opt = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.5)
    ddp = DistributedDataParallel(model)
    for step in range(5):
        torch.manual_seed(step + dist.get_rank())
        opt.zero_grad()
        ddp(torch.randn(4, 8, dtype=torch.float64)).square().mean().backward()
        opt.step()
    assert_ranks_agree(masks(masktorch.freeze_mask(model)))
    assert masktorch.report(model).kept == 16


def half_precision_network(estimators, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 33), nn.ReLU(), nn.Linear(33, 9)).to(dtype)
    return masktorch.wrap(
        model, dict(zip(("0.weight", "2.weight"), estimators, strict=True))
    )


def sharded_with_masks_apart(model, policy):
    """The documented way: each mask is a group of its own, without mixed precision."""
    for layer in (model[0], model[2]):
        fully_shard(layer.parametrizations.weight)
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def kept_in_a_forward(model, index, x):
    """Which weights of a layer are not zero while its forward runs."""
    seen = []
    hook = model[index].register_forward_pre_hook(
        lambda layer, _: seen.append((layer.weight != 0).clone())
    )
    model(x)
    hook.remove()
    return seen[0]


@check
def fsdp_never_rounds_float32_scores(folder):
    """In bfloat16, and with mixed precision, forwards use the masks reported."""
    half = torch.bfloat16
    for dtype, policy in (
        (half, MixedPrecisionPolicy()),
        (torch.float32, MixedPrecisionPolicy(param_dtype=half)),
    ):
        for estimators in (
            (Threshold(), Threshold()),
            (TopK(0.3), TopK(0.3)),
            (NOfM(2, 4), NOfM(1, 3)),
            (Bernoulli(), HardConcrete()),
            (LowRank(33), LowRank(9)),
            (Blocks(Threshold(), (3, 2)), Blocks(TopK(0.5), (1, None))),
            (ConcreteNOfM(2, 4), ConcreteNOfM(1, 3)),
        ):
            plain = half_precision_network(estimators, dtype)
            model = half_precision_network(estimators, dtype)
            model.load_state_dict(plain.state_dict())
            sharded_with_masks_apart(model, policy)
            assert_equal(masks(model), masks(plain))
            opt = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.02)
            x = torch.randn(16, 16, generator=torch.Generator().manual_seed(3))
            x = x[mine()].to(dtype)
            before = state(model)
            for _ in range(10):
                opt.zero_grad()
                model(x).float().square().mean().backward()
                opt.step()
            for scores in masktorch.mask_parameters(model):
                assert scores.dtype is scores.grad.dtype is torch.float32
            after = state(model)
            for name in ("0.weight", "2.weight"):
                key = name.replace("weight", "parametrizations.weight.scores")
                assert (before[key] != after[key]).any(), (estimators, name)
            frozen = masks(masktorch.freeze_mask(model))
            assert_ranks_agree(frozen)
            for index in (0, 2):
                kept = kept_in_a_forward(model, index, x)
                assert torch.equal(kept, frozen[f"{index}.weight"]), estimators
            report = masktorch.report(model)
            assert report.kept == sum(int(mask.sum()) for mask in frozen.values())
            masktorch.freeze_mask(plain).load_state_dict(state(model))
            assert_equal(masks(plain), frozen)


@check
def fsdp_keeps_exactly_as_many_as_one_process(folder):
    """Each rank has a part of the scores only; the count over all is exact."""
    for estimator in (
        TopK(0.3),
        Blocks(TopK(0.3), (1, None)),
        Blocks(TopK(0.4), (3, 1)),
        NOfM(1, 3),
    ):
        every = [f"{index}.weight" for index in LAYERS]
        targets = every if estimator == TopK(0.3) else ["0.weight"]

        def fresh(estimator=estimator, targets=targets):
            return network(estimator, targets=targets)

        plain, model = fresh(), sharded(fresh())
        assert_equal(masks(model), masks(plain))
        opt, reference = optimiser(model), optimiser(plain)
        train(model, opt, batches(0, 4), mine())
        train(plain, reference, batches(0, 4))
        assert_close(state(model), state(plain))
        assert_equal(masks(model), masks(plain))
        x = batches()[0][0]
        torch.testing.assert_close(
            model.eval()(x), plain.eval()(x), rtol=1e-8, atol=1e-8
        )
        wanted = masks(fresh())  # the same count at other places
        masktorch.set_masks(model, wanted)
        assert_equal(masks(model), wanted)
        scores = {n: mask.scores.detach() for n, mask in named_masks(model)}
        kept = masktorch.keep_largest(scores, 0.2)
        assert all(isinstance(mask, DTensor) for mask in kept.values())
        expected = masktorch.keep_largest({n: full(s) for n, s in scores.items()}, 0.2)
        assert_equal({n: full(mask) for n, mask in kept.items()}, expected)
        if estimator == TopK(0.3):
            whole = fresh()
            whole.load_state_dict(state(model))
            densities = masktorch.budget.overall(model, 0.2)
            assert densities == masktorch.budget.overall(whole, 0.2)
            masktorch.set_density(model, densities)
            assert sum(int(m.sum()) for m in masks(model).values()) == 28  # of 138
        assert float(masktorch.expected_density(model)) > 0


@check
def fsdp_uses_other_masks_for_a_while(folder):
    x = batches()[0][0]
    plain, model = network(), sharded(network())
    wanted = {name: torch.rand(m.shape) < 0.5 for name, m in masks(plain).items()}
    for given in (wanted, None):
        with masktorch.using(plain, given):
            expected = plain(x)
        with masktorch.using(model, given):
            torch.testing.assert_close(model(x), expected)


PENALISED = (Blocks(Bernoulli(), (1, None)), Piggyback(), ConcreteNOfM(1, 4))


@check
def fsdp_learns_by_a_penalty(folder):
    """Two processes have unequal parts of 13 rows, and one seed, so one draw."""
    x = torch.ones(2, 8)

    def learned(estimator, shard):
        torch.manual_seed(3)
        layer = masktorch.wrap(nn.Linear(8, 13), estimator)
        (scores,) = masktorch.mask_parameters(layer)
        nn.init.normal_(scores)
        if shard:
            fully_shard(layer.parametrizations.weight)
            fully_shard(layer)
        torch.manual_seed(4)
        (layer(x).sum() + 10 * masktorch.expected_density(layer)).backward()
        (scores,) = masktorch.mask_parameters(layer)
        return {"gradient": full(scores.grad)}

    for estimator in PENALISED:
        assert_close(learned(estimator, shard=True), learned(estimator, shard=False))


@check
def fsdp_samples_one_mask(folder):
    for estimator in (Bernoulli(), Blocks(Bernoulli(), (1, None)), ConcreteNOfM(1, 4)):
        torch.manual_seed(3)
        layer = masktorch.wrap(nn.Linear(8, 12, bias=False), estimator)
        fully_shard(layer.parametrizations.weight)
        fully_shard(layer)
        generator = torch.Generator().manual_seed(5)
        (drawn,) = masktorch.sample_masks(layer, generator).values()
        assert isinstance(drawn, DTensor)
        whole = drawn.full_tensor()
        assert whole.shape == (12, 8)
        if estimator == Bernoulli():
            assert not torch.equal(whole[:6], whole[6:])
        assert_ranks_agree({"drawn": whole})


def named_masks(model):
    for name, _ in masktorch.named_mask_parameters(model):
        module = model.get_submodule(name.rpartition(".")[0])
        yield name, module.parametrizations.weight


@check
def fsdp_sets_masks_sharded_or_whole(folder):
    x = batches()[0][0]
    for layers in (True, False):
        plain, model = network(), sharded(network(), layers)
        torch.manual_seed(7)
        wanted = {
            name: torch.rand(m.shape) < 0.5
            for name, m in masktorch.masks(plain).items()
        }
        masktorch.set_masks(plain, wanted)
        model.eval()(x)  # leaves the root gathered
        masktorch.set_masks(model, wanted)
        assert_equal(state(model), state(plain))
        assert masktorch.report(model) == masktorch.report(plain)
        torch.testing.assert_close(model(x), plain.eval()(x))
        other = sharded(network(), layers)
        masktorch.set_masks(other, masktorch.masks(model))
        assert_equal(state(other), state(plain))
        with raises(ValueError, "'0.weight'", "shape"):
            masktorch.set_masks(
                model, {**wanted, "0.weight": torch.ones(3, dtype=torch.bool)}
            )
        assert_equal(state(model), state(plain))


@check
def fsdp_may_be_read_between_forward_and_backward(folder):
    for layers in (True, False):
        gradients = []
        for read in (False, True):
            model = sharded(network(), layers)
            x, y = batches()[0]
            loss = F.cross_entropy(model(x), y)
            if read:
                before = masktorch.report(model)
                assert all(
                    isinstance(mask, DTensor)
                    for mask in masktorch.masks(model).values()
                )
                assert masktorch.freeze_mask(model, False) is model
            loss.backward()
            gradients.append(
                {
                    n: full(p.grad)
                    for n, p in model.named_parameters()
                    if p.requires_grad
                }
            )
        assert before.size == 54 + 63 + 21
        assert_equal(*gradients)
        assert all(torch.count_nonzero(gradient) for gradient in gradients[0].values())


@check
def fsdp_trains_weights_under_loaded_masks(folder):
    path = folder / f"given-{dist.get_rank()}.npz"
    learned = network()
    train(learned, optimiser(learned), batches())
    masktorch.save_masks(learned, path)
    expected = masks(learned)
    plain, model = masktorch.unwrap(network()), masktorch.unwrap(network())
    masktorch.load_masks(plain, path)
    sharded(masktorch.load_masks(model, path))
    train(plain, optimiser(plain), batches())
    train(model, optimiser(model), batches(), mine())
    assert_equal(masks(model), expected)
    assert_close(state(model), state(plain))


@check
def fsdp_refuses_what_it_could_not_follow(folder):
    plain = sharded(masktorch.unwrap(network()))
    kinds = [type(module) for module in plain.modules()]
    with raises(ValueError, "wrap()", "FSDP", "First wrap"):
        masktorch.wrap(plain)
    assert [type(module) for module in plain.modules()] == kinds
    for layers in (True, False):
        model = sharded(network(), layers)
        before = state(model)
        with raises(ValueError, "unwrap()", "FSDP"):
            masktorch.unwrap(model)
        with raises(ValueError, "save_masks()", "'0.weight'"):
            masktorch.save_masks(model, folder / "never.npz")
        assert not list(folder.glob("*never.npz*"))
        saved = folder / f"whole-{dist.get_rank()}.npz"
        masktorch.save_masks(network(), saved)
        with raises(ValueError, "'0.weight'"):
            masktorch.load_masks(model, saved)
        assert_equal(state(model), before)
        train(model, optimiser(model), batches(0, 2), mine())  # and it still works
    with raises(AssertionError, "deepcopy"):
        copy.deepcopy(model)


def save(model, opt, path):
    model_state, opt_state = get_state_dict(model, opt)
    dcp.save({"model": model_state, "optimiser": opt_state}, checkpoint_id=path)


def load(model, opt, path):
    model_state, opt_state = get_state_dict(model, opt)
    loaded = {"model": model_state, "optimiser": opt_state}
    dcp.load(loaded, checkpoint_id=path)
    set_state_dict(
        model,
        opt,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimiser"],
    )


def resumes(distribute, folder):
    """Interrupted in either phase and resumed in a fresh model: the same bits."""
    for phase in (None, mix):
        model = network()
        thirds = {
            n: torch.arange(m.numel()).view(m.shape) % 3 > 0
            for n, m in masks(model).items()
        }
        masktorch.set_masks(model, thirds)
        through = distribute(model)
        opt = optimiser(model)
        train(through, opt, batches(0, 3), mine())
        if phase:
            phase(model)
            through = DistributedDataParallel(model) if through is not model else model
        train(through, opt, batches(3, 5), mine())
        path = folder / f"phase-{phase is mix}"
        save(through, opt, path)
        train(through, opt, batches(5, 10), mine())

        resumed = phase(network()) if phase else network()
        again = distribute(resumed)
        opt = optimiser(resumed)
        load(again, opt, path)
        at_five = state(resumed)
        train(again, opt, batches(5, 10), mine())
        assert_equal(state(resumed), state(model))
        assert any(
            not torch.equal(at_five[name], v) for name, v in state(model).items()
        )


def says_what_differs(distribute, folder):
    """A checkpoint knows its phase and estimator; loading warns on every rank."""
    model = mix(network())
    through = distribute(model)
    dcp.save({"model": get_model_state_dict(through)}, checkpoint_id=folder)
    for make, said in [
        (lambda: mix(network()), ()),
        (
            network,
            (
                "had mask_frozen=True (here False), weights_frozen=False (here True)",
                f"and {len(LAYERS) - 1} more tensor",
            ),
        ),
        (
            lambda: mix(network(Bernoulli(0.25))),
            ("had estimator=Threshold(tau=0.5) (here Bernoulli(tau=0.25))",),
        ),
    ]:
        other = make()
        through = distribute(other)
        loaded = {"model": get_model_state_dict(through)}
        dcp.load(loaded, checkpoint_id=folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            set_model_state_dict(through, loaded["model"])
        texts = [
            str(w.message) for w in caught if "saved in another state" in str(w.message)
        ]
        assert len(texts) == (1 if said else 0), texts
        assert all(part in text for part in said for text in texts), texts
        assert_equal(
            *[
                {n: v for n, v in state(m).items() if "_extra_state" not in n}
                for m in (model, other)
            ]
        )


@check
def ddp_checkpoints_know_what_they_are(folder):
    says_what_differs(DistributedDataParallel, folder / "ddp-knows")


@check
def fsdp_checkpoints_know_what_they_are(folder):
    says_what_differs(sharded, folder / "fsdp-knows")


def is_matched_before_it_is_distributed(distribute):
    """Checkpoints of distributed models, whole or sharded, restore a plain model."""
    model = mix(network(Bernoulli(0.25)))
    through = distribute(model)
    state = get_model_state_dict(through)
    whole = get_model_state_dict(
        through, options=StateDictOptions(full_state_dict=True)
    )
    with raises(
        ValueError, "match_checkpoint()", "Match first, then DDP or fully_shard"
    ):
        masktorch.match_checkpoint(through, state)
    for source in (state, whole):
        plain = network(targets=["0.bias"])
        plain = masktorch.match_checkpoint(plain, source)
        assert repr(plain) == repr(mix(network(Bernoulli(0.25))))
        again = distribute(plain)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            set_model_state_dict(again, get_model_state_dict(through))


@check
def ddp_is_matched_before(folder):
    is_matched_before_it_is_distributed(DistributedDataParallel)


@check
def fsdp_is_matched_before(folder):
    is_matched_before_it_is_distributed(sharded)


@check
def ddp_resumes_from_a_checkpoint(folder):
    resumes(DistributedDataParallel, folder / "ddp")


@check
def fsdp_resumes_from_a_checkpoint(folder):
    resumes(sharded, folder / "fsdp")


@check
def fsdp_leaves_a_checkpoint_for_one_process(folder):
    """The other half is in test_distributed.py."""
    model = sharded(network())
    opt = optimiser(model)
    train(model, opt, batches(), mine())
    save(model, opt, folder / "one")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    gathered = get_model_state_dict(model, options=options)
    learned = masks(model)
    output = model.eval()(batches()[0][0])
    if dist.get_rank() == 0:
        torch.save(
            {"state": gathered, "masks": learned, "output": output.detach()},
            folder / "one.pt",
        )


def main(folder, names):
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=40))
    for name in names:
        result = Path(folder) / f"{name}.{dist.get_rank()}"
        try:
            CHECKS[name](Path(folder))
            dist.barrier()
        except BaseException:
            result.write_text(traceback.format_exc())
            raise
        result.write_text("")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(0)  # test_distributed.py says why
