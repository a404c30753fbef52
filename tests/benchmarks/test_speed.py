"""The speed measurements: what rivals compute, what trains, the output. No times."""

import json
import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import masktorch
from benchmarks.experiment.networks import kernels
from benchmarks.pages import speed as speed_page
from benchmarks.pages.render import DOCS
from benchmarks.speed import (
    calls,
    contestants,
    costs,
    large,
    memory,
    rivals,
    steps,
    timing,
)
from benchmarks.speed.timing import alone, ratios, side_by_side

CPU = torch.device("cpu")
LENET = steps.Case("LeNet-300-100", 2)

# torch.compile makes an instance of an autograd function while it traces one
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


def sigma(x):
    return 1 / (1 + np.exp(-x))


def float64(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _brief(monkeypatch):
    """One round each, on whatever is smallest."""
    torch.manual_seed(0)
    for part in (steps, costs, calls):
        monkeypatch.setattr(part, "SECONDS", 0.0)
        monkeypatch.setattr(part, "AT_LEAST", 1)


class TestRivals:
    def loss(self, mask_of):
        """The mask, and the gradient of the scores, for random upstream gradients."""
        scores, weight, upstream = float64(3, 50)
        scores.requires_grad_()
        product = rivals.Product(mask_of, scores)
        out = product(weight)
        out.backward(upstream)
        mask = (out / weight).detach().numpy()
        arrays = [t.detach().numpy() for t in (scores, weight, upstream)]
        return mask, product.scores.grad.numpy(), arrays

    def test_threshold(self):
        mask, gradient, (s, w, upstream) = self.loss(rivals.threshold)
        np.testing.assert_allclose(mask, s > 0)
        np.testing.assert_allclose(gradient, upstream * w * sigma(s) * (1 - sigma(s)))

    def test_bernoulli(self):
        mask, gradient, (s, w, upstream) = self.loss(rivals.bernoulli)
        assert set(mask.round(12)) == {0.0, 1.0}
        np.testing.assert_allclose(gradient, upstream * w * sigma(s) * (1 - sigma(s)))
        draws = torch.stack(
            [rivals.bernoulli(torch.tensor([-2.0, 0.0, 1.0])) for _ in range(4000)]
        )
        np.testing.assert_allclose(
            draws.mean(0), sigma(np.array([-2.0, 0.0, 1.0])), atol=0.04
        )

    def test_edge_popup(self):
        mask, gradient, (s, w, upstream) = self.loss(rivals.edge_popup)
        np.testing.assert_allclose(mask, np.abs(s) > np.median(np.abs(s)))
        np.testing.assert_allclose(gradient, upstream * w * np.sign(s))

    def test_prune(self):
        layer = nn.Linear(20, 10)
        before = layer.weight.detach().clone()
        rivals.pruned(layer)
        masked = layer.weight == 0
        assert 60 < masked.sum() < 140
        assert torch.equal(layer.weight[~masked], before[~masked])

    def test_the_same_weights_as_wrap(self):
        model = contestants.NETWORKS["Transformer 6x256"].make()
        sizes = [weight.shape for weight in kernels(model)]
        assert sizes == [
            scores.shape for scores in masktorch.mask_parameters(masktorch.wrap(model))
        ]


@pytest.mark.parametrize("name", contestants.CONTESTANTS)
def test_what_trains(name):
    model = contestants.CONTESTANTS[name](
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    cross_entropy(model(torch.randn(4, 8)), torch.tensor([0, 1, 2, 0])).backward()
    trained = {
        n.rpartition(".")[2] for n, p in model.named_parameters() if p.grad is not None
    }
    weights = {"prune": "weight_orig"}
    weights |= dict.fromkeys(
        ("plain", "unwrapped", "frozen mask", "frozen top-k"), "weight"
    )
    assert trained == {"bias", weights.get(name, "scores")}
    assert trained == {
        n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    "name", [name for name in contestants.CONTESTANTS if name != "plain"]
)
def test_about_half_is_masked(name):
    layer = contestants.CONTESTANTS[name](nn.Linear(100, 100)).eval()
    assert 0.4 < (layer.weight == 0).float().mean() < 0.6


@pytest.mark.parametrize(
    "name", [name for name in contestants.CONTESTANTS if name != "plain"]
)
def test_a_step_trains(name, monkeypatch):
    """Trained parameters change by about Adam's learning rate, others don't."""
    models = []
    keep = contestants.CONTESTANTS[name]
    monkeypatch.setitem(
        contestants.CONTESTANTS, name, lambda model: models.append(keep(model)) or model
    )
    step = steps.training_step(LENET, name, CPU)
    before = {n: p.detach().clone() for n, p in models[0].named_parameters()}
    step()
    for n, parameter in models[0].named_parameters():
        moved = (parameter - before[n]).abs().max()
        assert moved < 1.1e-3
        assert (moved > 0) == parameter.requires_grad


def test_contestants_start_from_one_network_and_batch(monkeypatch):
    seen = []
    for name in ("plain", "threshold", "textbook"):
        monkeypatch.setitem(
            contestants.CONTESTANTS, name, lambda m: seen.append(m) or m
        )
        steps.training_step(LENET, name, CPU)
    first, *others = [model.state_dict() for model in seen]
    for other in others:
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name])


@pytest.fixture
def compilations(monkeypatch):
    """What torch.compile was asked for; it compiles with the quick backend."""
    asked, compile_ = [], torch.compile

    def quick(function):
        asked.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", quick)
    return asked


@pytest.mark.parametrize("mode", steps.CONTESTANTS_BY_MODE)
def test_a_case_is_measured(mode, compilations):
    case = replace(LENET, mode=mode)
    row = steps.measure(case, CPU)
    assert len(compilations) == (
        len(steps.CONTESTANTS_BY_MODE[mode]) if mode == "compiled" else 0
    )
    contestants = set(steps.CONTESTANTS_BY_MODE[mode])
    assert set(row["ratio"]) == set(row["seconds"]) == set(row["rounds"]) == contestants
    assert row["ratio"]["plain"] == [1, 1, 1]
    assert {"network": "LeNet-300-100", "batch": 2, "mode": mode}.items() <= row.items()


def test_a_case_whose_malloc_keeps_memory_has_a_process_of_its_own(monkeypatch):
    calls = []
    monkeypatch.setattr(
        steps, "alone", lambda *args, variables: calls.append((args, variables)) or {}
    )
    row = steps.measure(replace(LENET, keeps_memory=True), CPU)
    assert row["keeps_memory"]
    (((function, *arguments), variables),) = calls
    assert function(*arguments)["ratio"]["plain"] == [1, 1, 1]
    assert set(variables) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision(precision, monkeypatch):
    dtypes = []

    def watched(model):
        model.classifier.register_forward_hook(
            lambda _, __, out: dtypes.append(out.dtype)
        )
        return model

    monkeypatch.setitem(contestants.CONTESTANTS, "plain", watched)
    steps.training_step(replace(LENET, precision=precision), "plain", CPU)()
    assert dtypes == [getattr(torch, precision)]


def test_inference_is_a_forward(monkeypatch):
    """In eval mode, nothing trains; unwrapped, a frozen mask computes the same."""
    models, make = {}, dict(contestants.CONTESTANTS)
    for name in steps.CONTESTANTS_BY_MODE["inference"]:
        monkeypatch.setitem(
            contestants.CONTESTANTS,
            name,
            lambda m, n=name: models.setdefault(n, make[n](m)),
        )
    case = replace(LENET, mode="inference")
    found = {
        name: steps.training_step(case, name, CPU)()
        for name in steps.CONTESTANTS_BY_MODE["inference"]
    }
    for model in models.values():
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert not any(logits.requires_grad for logits in found.values())
    torch.testing.assert_close(found["frozen mask"], found["unwrapped"])
    assert not torch.allclose(found["plain"], found["unwrapped"])


def test_prune_alone_can_not_train_an_attention():
    case = steps.Case("Transformer 6x256", 1)
    assert set(steps.CONTESTANTS_BY_MODE["eager"]) - set(case.contestants) == {"prune"}
    for name in ("threshold", "textbook"):
        step = steps.training_step(case, name, CPU)
        step()
        step()
    step = steps.training_step(case, "prune", CPU)
    step()
    with pytest.raises(RuntimeError, match="a second time"):
        step()


def test_cases_name_networks():
    for device in (CPU, torch.device("cuda")):
        for case in (*steps.CASES[device.type], *memory.CASES):
            assert case.network in contestants.NETWORKS


class TestTiming:
    def test_ratios_are_of_one_round(self):
        times = pd.DataFrame({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]})
        assert ratios(times, "b")["a"].tolist() == [2.5, 3, 3.5]

    def test_a_round_that_one_sits_out_does_not_count(self):
        times = pd.DataFrame([{"a": 6.0, "b": 2.0}, {"b": 1.0}])
        assert ratios(times, "b")["a"].tolist() == [3, 3, 3]

    def test_rounds(self, monkeypatch):
        turns = []

        def turn(call, device, repeats=1):
            turns.append((call(), repeats))
            return call()

        monkeypatch.setattr(timing, "turn", turn)
        took = {"quick": 0.001, "same": 0.0041, "slow": 0.009, "slowest": 1.0}
        calls = {
            name: lambda seconds=seconds: seconds for name, seconds in took.items()
        }
        times = side_by_side(calls, seconds=0, at_least=11, device=CPU)
        rounds = {name: times.index[times[name].notna()].tolist() for name in calls}
        assert rounds == {
            "quick": list(range(11)),
            "same": [0, 2, 4, 6, 8, 10],
            "slow": [0, 3, 6, 9],
            "slowest": [0, 5, 10],
        }
        measured = turns[2 * len(calls) :]
        assert dict(measured) == {
            0.001: 20,
            0.0041: 5,
            0.009: 3,
            1.0: 1,
        }  # repeats: 20 ms a turn
        assert [seconds for seconds, _ in measured[:4]] != list(
            took.values()
        )  # random order

    def test_seconds_are_filled(self):
        times = side_by_side({"a": lambda: None}, seconds=0.2, at_least=1, device=CPU)
        assert len(times) > 1


class TestFloor:
    @pytest.mark.parametrize("mode", ["eager", "compiled"])
    def test_a_size_is_measured(self, mode, compilations):
        row = costs.measure_floor((mode, 100), CPU)
        sort = {"sort alone"} if mode == "eager" else set()
        assert set(row["multiple"]) == {"add", *costs.PRODUCTS} | sort
        assert len(compilations) == (len(costs.PRODUCTS) if mode == "compiled" else 0)
        assert row["multiple"]["add"] == [pytest.approx(12 / 28)] * 3
        rate = 12 / row["nanoseconds"]["add"]  # bytes a nanosecond: GB/s
        assert rate == pytest.approx(row["gigabytes_per_second"])

    @pytest.mark.parametrize("name", costs.PRODUCTS)
    def test_products_mask_the_weight(self, name):
        scores, weight = float64(2, 50)
        scores = (
            40
            * (scores + scores.sign())
            * (torch.arange(50) % 2 * 2 - 1)
            * scores.sign()
        )
        product = costs.PRODUCTS[name](scores.requires_grad_(), weight).detach()
        larger = scores.abs() >= scores.abs().sort().values[25]
        kept = larger if name == "topk" else scores > 0
        np.testing.assert_allclose(product, (weight * kept).detach(), atol=1e-12)

    def test_sizes_fit_the_memory(self, monkeypatch):
        pages = {"SC_PAGE_SIZE": 2 * 10**4, "SC_PHYS_PAGES": 10**5}  # half: 10^9 bytes
        monkeypatch.setattr(os, "sysconf", pages.get)
        assert costs.sizes(4, 8, bytes_=40) == [10**n for n in range(4, 8)]
        assert costs.sizes(6, 9, bytes_=10) == [10**n for n in range(6, 9)]


class TestMemory:
    def test_a_process_of_its_own_measures_the_peak(self, monkeypatch):
        monkeypatch.setattr(memory, "CONTESTANTS", ("plain",))
        row = memory.measure(LENET, CPU)
        assert row["masked"] == 784 * 300 + 300 * 100 + 100 * 10
        assert row["largest_layer"] == 784 * 300
        assert row["bytes_per_entry"]["plain"] > 12  # weights and moments at the least


def test_alone():
    """In another process, with these variables; an error is the caller's."""
    assert alone(os.getenv, "HERE", variables={"HERE": "there"}) == "there"
    assert "HERE" not in os.environ
    assert alone(os.getpid, variables={}) != os.getpid()
    with pytest.raises(TypeError):
        alone(costs.measure_functions, "x", CPU, variables={})


class TestCalls:
    @pytest.mark.parametrize("references", [calls.THRESHOLD, calls.BERNOULLI])
    def test_hand_written_masks_of_probabilities(self, references):
        scores, upstream = float64(2, 50)
        scores.requires_grad_()
        mask = references.by_hand(scores)
        mask.backward(upstream)
        s = scores.detach().numpy()
        expected = upstream.numpy() * sigma(s) * (1 - sigma(s))
        np.testing.assert_allclose(scores.grad.numpy(), expected)
        assert set(mask.tolist()) == {0.0, 1.0}
        assert references is calls.BERNOULLI or mask.tolist() == (s > 0).tolist()

    def test_hand_written_edge_popup(self):
        scores, upstream = float64(2, 50)
        scores.requires_grad_()
        mask = calls.EDGE_POPUP.by_hand(scores)
        mask.backward(upstream)
        s = scores.detach().numpy()
        assert mask.tolist() == (np.abs(s) > np.median(np.abs(s))).tolist()
        np.testing.assert_allclose(scores.grad.numpy(), upstream.numpy() * np.sign(s))

    @pytest.mark.parametrize("contestant", calls.CASES)
    def test_a_contestant_is_measured(self, contestant, monkeypatch):
        monkeypatch.setattr(calls, "LAYERS", 2)
        threads = torch.get_num_threads()
        row = calls.measure(contestant, CPU)
        assert torch.get_num_threads() == threads
        assert row["method"] == contestant
        targets = speed_page.TARGETS["calls"].get(contestant, {})
        assert row["numbers"]["kernels"] <= targets.get("kernels", 99)

    def test_kernels_are_counted(self):
        """sigma, draw, 2 for the gradient by the textbook, product; backward 2."""

        def masked(model):
            return rivals.parametrized(model, rivals.bernoulli)

        assert calls.kernels(masked) == 7


class TestLarge:
    @pytest.mark.parametrize("method", large.ESTIMATORS)
    def test_a_model_lives_in_a_process_of_its_own(self, method):
        row = large.measure(large.Case(method, 10**6), CPU)
        assert row["method"] == method
        assert row["size"] == large.LAYERS * 128**2
        bytes_ = row["numbers"]["file, MB"] * 1e6
        assert (bytes_ > row["size"] / 8) == (method == "topk")
        assert {"peak, GiB", "3 steps, s", "unwrap, s"} <= set(row["numbers"])

    def test_only_scores_learn(self):
        model = masktorch.wrap(large.network(10**6, CPU), masktorch.TopK(0.5))
        weights = [layer._parameters["weight"] for layer in model]
        before = [weight.clone() for weight in weights]
        scores = [s.detach().clone() for s in masktorch.mask_parameters(model)]
        large.learn(model, CPU)
        assert not any(w.requires_grad for w in weights)
        assert all(map(torch.equal, before, weights))
        assert not any(map(torch.equal, scores, masktorch.mask_parameters(model)))


class TestFiles:
    def test_a_density_is_measured(self, monkeypatch):
        monkeypatch.setattr(costs, "SIDE", 300)
        row = costs.measure_file(0.25, CPU)
        assert (row["size"], row["density"]) == (90_000, 0.25)
        assert 1 <= row["bytes / entropy"] < 1.25
        assert row["save, ns"] > 0 < row["load, ns"]


class TestCosts:
    def test_a_size_is_measured(self):
        row = costs.measure_functions(1000, CPU)
        names = [
            "pass",
            "wrap",
            "masks",
            "report",
            "budget.overall",
            "set_masks, learning",
            "using",
            "freeze_mask",
            "save_masks",
            "load_masks",
            "unwrap",
            "set_masks on a plain model",
            "set_masks, given",
        ]
        assert list(row["seconds"]) == list(row["multiple"]) == names
        assert row["repetitions"] == costs.REPETITIONS
        assert row["multiple"]["pass"] == 1

    def test_sizes(self):
        for size in (10**3, 10**6):
            entries = sum(p.numel() for p in costs.network(size, CPU).parameters())
            assert entries == pytest.approx(size, rel=0.05)


@pytest.fixture
def small_parts(monkeypatch):
    rows = {
        "steps": (LENET,),
        "floor": (("eager", 100),),
        "memory": (),
        "costs": (1000,),
        "files": (0.5,),
        "calls": ("threshold",),
    }
    for name, of_part in rows.items():
        part = costs.PARTS[name]._replace(cases=lambda device, rows=of_part: rows)
        monkeypatch.setitem(costs.PARTS, name, part)


class TestCommand:
    def test_all_parts(self, small_parts, tmp_path, call):
        code, text = call("speed", "--output", str(tmp_path))
        assert code == 0
        for title in ("steps", "floor", "costs"):
            assert f"{title} | " in text
        assert "| LeNet-300-100 at 2, float32, eager |" in text
        content = json.loads((tmp_path / "speed.json").read_text())
        assert set(content) == {
            "command",
            "environment",
            "steps",
            "floor",
            "costs",
            "files",
            "calls",
        }
        assert {"torch", "masktorch", "commit", "processor", "threads"} <= set(
            content["environment"]
        )

    def test_only(self, small_parts, tmp_path, call):
        assert call("speed", "--only", "costs", "--output", str(tmp_path))[0] == 0
        content = json.loads((tmp_path / "speed.json").read_text())
        assert set(content) == {"command", "environment", "costs"}

    def test_an_unknown_part(self, call):
        code, _ = call("speed", "--only", "steps,flor")
        assert re.search(r"error: .*floor, memory, costs, .* found 'flor'", code)


@pytest.fixture
def content():
    def step(threshold, **changes):
        case = dict(
            network="MLP 4x2048",
            batch=128,
            precision="float32",
            mode="eager",
            keeps_memory=False,
        )
        return {
            **case,
            **changes,
            "seconds": {"plain": 0.1, "threshold": threshold / 10},
            "ratio": {
                "plain": [1, 1, 1],
                "threshold": [0.9 * threshold, threshold, 9.0],
            },
        }

    def alone(mode, size):
        return {
            "mode": mode,
            "size": size,
            "gigabytes_per_second": 9.5,
            "multiple": {
                "add": [0.5, 1.0, 1.5],
                "threshold": [1.0, 1.5, 1.6],
                "bernoulli": [3.0, 4.0, 5.0],
                "intermediate": [0.7, 0.8, 0.9],
                "textbook": [2.0, 3.0, 4.0],
            },
        }

    return {
        "command": "python -m benchmarks speed",
        "environment": dict(
            masktorch="0.1.0",
            torch="2.13.0",
            commit="abc",
            dirty=False,
            device="cpu",
            processor="Some CPU",
            threads=2,
        ),
        "steps": [
            step(1.25),
            step(1.35, keeps_memory=True),
            step(1.5, precision="bfloat16"),
            step(1.2, mode="compiled"),
        ],
        "floor": [
            alone("eager", 10**4),
            alone("eager", 10**6),
            alone("compiled", 10**6),
        ],
        "memory": [
            {
                "network": "MLP 4x2048",
                "batch": 128,
                "masked": 400,
                "largest_layer": 100,
                "bytes_per_entry": {
                    "plain": 16.5,
                    "threshold": 26.4,
                    "bernoulli": 26.6,
                    "intermediate": 20.0,
                    "textbook": 30.0,
                },
            }
        ],
        "costs": [
            {
                "size": 10**6,
                "repetitions": 1,
                "seconds": {"pass": 0.001, "wrap": 0.002},
                "multiple": {"pass": 1.0, "wrap": 3.5},
            }
        ],
        "files": [
            {
                "size": 4 * 10**6,
                "density": 0.08,
                "bytes / entropy": 1.02,
                "save, ns": 6.0,
                "load, ns": 5.0,
            }
        ],
        "calls": [
            {"method": "topk", "numbers": {"of hand-written": 0.9, "kernels": 15}}
        ],
        "large": [{"method": "topk", "size": 10**9, "numbers": {"peak, GiB": 17.5}}],
    }


def tables(content):
    """By part, as the terminal has them."""
    parts = speed_page.measured(content).split("\n\n")
    return dict(zip(parts[::2], parts[1::2], strict=True))


def cells(text):
    return [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines()]


class TestPage:
    def test_a_target_is_beside_a_number_above_it(self, content):
        found = tables(content)
        steps = cells(found["steps"])[2:]
        assert steps == [
            ["MLP 4x2048 at 128, float32, eager", "100 ms", "1.25"],
            [
                "MLP 4x2048 at 128, float32, eager, malloc keeps memory",
                "100 ms",
                "1.35",
            ],
            ["MLP 4x2048 at 128, bfloat16, eager", "100 ms", "1.50"],
            ["MLP 4x2048 at 128, float32, compiled", "100 ms", "1.20 (> 1.18)"],
        ]
        assert cells(found["floor"])[2:] == [
            ["eager", "10,000", "9.5 GB/s", "1.50", "4.00", "0.80", "3.00"],
            ["eager", "1,000,000", "9.5 GB/s", "1.50", "4.00 (> 2)", "0.80", "3.00"],
            [
                "compiled",
                "1,000,000",
                "9.5 GB/s",
                "1.50 (> 1.1)",
                "4.00 (> 1.1)",
                "0.80",
                "3.00",
            ],
        ]
        # plain's and 8 and two temporaries of a quarter: 16.5 + 8 + 2
        assert cells(found["memory"])[2][2:] == [
            "16.50",
            "26.40",
            "26.60 (> 26.5)",
            "20.00",
            "30.00",
        ]
        assert cells(found["costs"])[2] == ["1,000,000", "1 ms", "3.50 (> 3)"]
        assert cells(found["files"])[2] == ["4,000,000", "8 %", "1.02", "6.00", "5.00"]
        assert cells(found["calls"])[2] == ["topk", "0.90 (> 0.8)", "15"]
        assert cells(found["large"])[2] == ["topk", "1,000,000,000", "17.50"]

    def test_targets_are_of_the_cpu(self, content):
        content["environment"]["device"] = "cuda"
        assert not any("(>" in text for text in tables(content).values())

    def test_a_contestant_that_sat_out(self, content):
        del content["steps"][0]["ratio"]["threshold"]
        assert cells(tables(content)["steps"])[2][2:] == ["-"]

    def test_page(self, content):
        text = speed_page.page({"speed": content, "speed-h100": content})
        assert text.count("All measurements on Some CPU, 2 threads: steps, ") == 2
        assert "figures/speed.png" in text
        assert "figures/speed-h100.png" in text
        assert "backward (a threshold's step of the MLP: 120 ms, 125 without)." in text
        assert "Targets that are not met" in text
        case = "steps, MLP 4x2048 at 128, float32, compiled, 100 ms"
        assert f"\n- {case}: threshold 1.20 (1.18)\n" in text
        assert "threshold 1.25 (" not in text

    def test_the_first_paragraph_and_table(self, content, monkeypatch):
        case = speed_page.Case("MLP 4x2048", 128)
        monkeypatch.setattr(speed_page, "OVERVIEW", {"here": ("cpu", case)})
        content["steps"][0]["ratio"]["bernoulli"] = [1.0, 2.0, 3.0]
        content["steps"][0]["ratio"]["textbook"] = [1.0, 9.0, 9.0]  # no method of ours
        without_steps = {"environment": content["environment"]}
        contents = [without_steps, content]
        found = speed_page.cost(contents, "cpu", case)
        assert found == "1.25 (threshold) to 2.00 (bernoulli)"
        assert speed_page.cost(contents, "cuda", case) == ""
        assert cells(speed_page.overview(contents))[2:] == [
            ["threshold", "1.25"],
            ["bernoulli", "2.00"],
            ["textbook", "9.00"],
        ]

    def test_page_without_results(self):
        text = speed_page.page({})
        assert "## To be fast" in text
        assert "not met" not in text
        assert "step of the MLP" not in text

    def test_write(self, content, tmp_path):
        for folder in (tmp_path / "results", tmp_path / "results" / "h100"):
            folder.mkdir()
            (folder / "speed.json").write_text(json.dumps(content))
        path = speed_page.write(tmp_path / "results", tmp_path / "docs")
        assert path.read_text() == speed_page.page(
            {"speed": content, "speed-h100": content}
        )
        names = {path.name for path in (tmp_path / "docs" / "figures").iterdir()}
        assert names == {"speed.png", "speed-h100.png"}

    def test_the_figure(self, content):
        (axes,) = speed_page.steps_figure(content).axes
        assert [t.get_text() for t in axes.get_yticklabels()][1].endswith(
            "malloc keeps memory"
        )
        assert not any("^" in t.get_text() for t in axes.get_xticklabels())

    def test_the_committed_page_is_up_to_date(self, committed_results):
        contents = speed_page.read(committed_results / "speed")
        assert (DOCS / "speed.md").read_text() == speed_page.page(contents), (
            "expected docs/speed.md to be made from benchmarks/results/speed: "
            "run python -m benchmarks speed-page"
        )
