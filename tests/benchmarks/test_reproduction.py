"""The page of the blog's question: what it says follows from the results, and it is up to date."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Layer, Result
from benchmarks.experiment.training import Epoch
from benchmarks.pages import facts, reproduction
from benchmarks.pages.kinds import mean_of_seeds, shares, small_and_large
from benchmarks.pages.paired import Paired
from benchmarks.pages.reference import blog
from benchmarks.pages.settings import settings
from benchmarks.pages.toy import read

MACHINE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|mnt|data)/")
REDUCED = dict(depth=16, width=1, train_images=5_000, epochs=2)
BLOG = dict(width=1, precision="bfloat16", epochs=2)


def result(dataset, arm, seed, last, best=None, estimator="threshold", **changes):
    options = Configuration(dataset, seed=seed, estimator=estimator, **changes)
    published = blog(dataset).utilisation
    test = [last if best is None else best, last]
    configuration = options.for_arm(arm)
    return Result(
        configuration=configuration,
        estimator=configuration.estimator,
        epochs=[Epoch(n, 1e-2, 1.0, a, 1.0, a, 900.0) for n, a in enumerate(test, start=1)],
        utilisation=[replace(layer, masked=layer.masked / 2) for layer in published]
        if configuration.estimator
        else [],
        environment={
            "processor": "Abacus", "torch": "2", "masktorch": "0", "commit": "c0ffee" + 34 * "0",
            "dirty": False,
        },
        command=f"python -m benchmarks run --dataset {dataset} --seed {seed}",
    )  # fmt: skip


def save(folder, *results):
    for r in results:
        r.write(folder / f"{r.configuration.name}.json")


def three(dataset, arm, accuracies, **changes):
    return [
        result(dataset, arm, seed, accuracy, **{**REDUCED, **changes})
        for seed, accuracy in enumerate(accuracies)
    ]


# mix gains over weights and over the control; bernoulli can't be told from threshold.
CIFAR = [
    *three("cifar10", "mask", (0.50, 0.51, 0.52)),
    *three("cifar10", "mask", (0.53, 0.50, 0.51), estimator="bernoulli", score_lr=0.3),
    *three("cifar10", "mask", (0.55, 0.57, 0.56), estimator="intermediate", score_lr=0.1),
    *three("cifar10", "weights", (0.60, 0.61, 0.63)),
    *three("cifar10", "mix", (0.70, 0.72, 0.73)),
    *three("cifar10", "weights-then-weights", (0.64, 0.65, 0.68)),
]
MNIST = [
    result("mnist", "mask", 0, 0.985, 0.990, **BLOG),
    result("mnist", "weights", 0, 0.990, 0.992, **BLOG),
    result("mnist", "mix", 0, 0.980, 0.991, **BLOG),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Results of every kind, the page of them, and its facts."""
    folder = tmp_path_factory.mktemp("full")
    save(folder / "results" / "reduced", *CIFAR)
    save(
        folder / "results" / "reduced-1e-3",
        *three("cifar10", "mix", (0.71, 0.73, 0.73), mix_lr=1e-3),
        *three("cifar10", "weights-then-weights", (0.70, 0.75, 0.72), mix_lr=1e-3),
    )
    save(folder / "results" / "wrn-28-1", *MNIST)
    supermask = Configuration("mnist", network="lenet-300-100", epochs=2).for_arm("mask")
    save(folder / "results" / "literature", replace(MNIST[0], configuration=supermask))
    for name in ("categorical", "sweep"):
        shutil.copytree(reproduction.RESULTS / name, folder / "results" / name)
    found = facts.facts(folder / "results", folder / "docs" / "figures")
    return folder, reproduction.fill(reproduction.PAGE, found), found


def test_the_committed_page_is_up_to_date(tmp_path):
    """Mend it with `python -m benchmarks reproduction`."""
    text = reproduction.write(reproduction.RESULTS, tmp_path).read_text()
    assert (reproduction.DOCS / "reproduction.md").read_text() == text
    assert not MACHINE_PATH.search(text)
    for figure in (tmp_path / "figures").iterdir():
        assert (reproduction.DOCS / "figures" / figure.name).exists()


def test_no_field_is_left(full):
    text = full[1]
    assert not reproduction.FIELD.search(text)
    assert "## Learned supermasks in the literature\n\n| # | network |" in text
    for name in ("deviations", "kinds", "claims", "misses", "winners", "readings", "table"):
        assert f"{{{name}}}" in reproduction.PAGE


def test_every_figure_is_there(full):
    folder, text, _ = full
    links = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(links) == sorted(
        f"figures/{path.name}" for path in (folder / "docs" / "figures").iterdir()
    )
    assert len(links) == 2 * 3 + 2 + 1
    assert re.search(r"!\[[^]]*\]\(figures/curves-cifar10-wrn-16-1-threshold.png\)", text)
    assert re.search(r" \[[^]]*\]\(figures/curves-cifar10-wrn-16-1-bernoulli.png\)", text)


def test_what_was_run(full):
    assert (
        "| CIFAR-10, `reduced` | wrn-16-1 | 5000 | 2 | 0, 1, 2 | float32 | Abacus "
        "| masktorch 0 at c0ffee0 with torch 2 | 18 | 9.0 |\n"
    ) in full[1]
    assert "| MNIST, `wrn-28-1` | wrn-28-1 | all | 2 | 0 | bfloat16 |" in full[1]
    assert "\n| 1 | mnist | all | wrn-28-1 | mask | threshold | 1 |" in full[1]
    assert "\n| 4 | cifar10 | 5000 | wrn-16-1 | mask | bernoulli | 3 |" in full[1]


def test_software():
    origin = {"masktorch": "1", "torch": "2", "commit": "0123456789", "dirty": True}
    assert facts._software(origin) == "masktorch 1 at 0123456 with changes with torch 2"
    assert facts._software({**origin, "commit": None, "dirty": None}) == "masktorch 1 with torch 2"


def test_the_blogs_order(full):
    text = full[1]
    assert (
        "- CIFAR-10, `reduced`: wrn-16-1, 2 epochs: best epoch `mask` 0.5100, `weights` 0.6133, "
        "`mix` 0.7167, in the blog (WRN-28-8, 30 epochs) 0.828, 0.870, 0.907; the order is the "
        "blog's."
    ) in text
    assert "0.991, 0.991, 0.994; the blog's lie too close together to be in an order.\n" in text
    (turned,) = settings("s", [result("cifar10", arm, 0, accuracy) for arm, accuracy in
                               (("mask", 0.5), ("weights", 0.7), ("mix", 0.6))])  # fmt: skip
    assert next(facts._order(turned)).endswith(
        "; `weights` is below `mix` in the blog and not here"
    )


def test_arms_whose_starts_are_in_another_folder(full):
    """They are compared with those starts, which are not shown twice."""
    found, text = full[2], full[1]
    difference = Paired((0.11, 0.12, 0.10))
    assert (
        f"| CIFAR-10, `reduced-1e-3` | `mix` - `weights` | {difference} | {difference} |"
    ) in text
    assert "- CIFAR-10, `reduced-1e-3`: wrn-16-1, 2 epochs: best epoch `mask` 0.5100, " in text
    assert text.count("cifar10 | 5000 | wrn-16-1 | weights | ") == 1
    assert "`reduced-1e-3`" not in found["kinds"] + found["estimators"] + found["winners"]
    assert "- CIFAR-10, `reduced-1e-3`: `depth` 16 (28), " in found["deviations"]
    assert "`mix_lr` 0.001 (1e-05)" in found["deviations"]


def test_two_learning_rates_from_the_same_starts(full):
    assert full[2]["learning rates"].splitlines()[2:] == [
        "| CIFAR-10 | 0.6133 | `mix` | 1e-05 | 0.7167 | 0.001 | 0.7233 |",
        "| CIFAR-10 | 0.6133 | `weights-then-weights` | 1e-05 | 0.6567 | 0.001 | 0.7233 |",
    ]
    assert full[2]["reduced cifar10 mask, first"] == "0.5100"


def test_the_answer(full):
    assert "(last epoch, 95 % intervals): better in 1, not told apart in 1, worse in 0." in (
        " ".join(full[1].split())
    )
    assert facts._answer(settings("reduced", MNIST)) == ""


def t_interval(values):
    """Independent of ours: scipy's."""
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


@pytest.mark.parametrize("n", range(2, 11))
def test_interval(n):
    values = tuple(np.random.default_rng(n).normal(0.01, 0.02, n).tolist())
    low, high = t_interval(values)
    assert Paired(values).interval == pytest.approx((low, high), abs=2e-4 * (high - low))
    assert Paired(values).mean == pytest.approx(np.mean(values))


def test_signs():
    assert Paired((0.1, 0.11, 0.12)).sign == 1
    assert Paired((-0.1, -0.11, -0.12)).sign == -1
    assert Paired((0.1, 0.11, 0.3)).sign == 0  # all three above 0, and yet
    assert Paired((0.1,)).sign is None
    assert Paired((0.1,)).interval is None
    assert Paired((0.0,) * 30).interval == (0, 0)  # more seeds than the table has


def test_what_a_difference_says():
    low, high = (100 * x for x in t_interval((0.01, 0.02, 0.06)))
    assert str(Paired((0.01, 0.02, 0.06))) == (
        f"+3.00 points (+1.00 to +6.00 over 3 seeds; 95 % interval {low:+.2f} to {high:+.2f})"
    )
    assert str(Paired((-0.0123,))) == "-1.23 points (one seed)"


def test_pairs_are_of_one_seed():
    (setting,) = settings("s", [
        result("mnist", "mask", 0, 0.5, **REDUCED),
        result("mnist", "mask", 2, 0.8, 0.9, **REDUCED),
        result("mnist", "weights", 1, 0.1, **REDUCED),
        result("mnist", "weights", 2, 0.6, **REDUCED),
    ])  # fmt: skip
    assert setting.paired("mask", "weights", "last").differences == pytest.approx((0.2,))
    assert setting.paired("weights", "mask", "best").differences == pytest.approx((-0.3,))
    assert setting.paired("mask", "mix", "last") is None
    (apart,) = settings("s", [result("mnist", a, s, 0.5, **REDUCED) for a, s in
                              (("mask", 0), ("weights", 1))])  # fmt: skip
    assert apart.paired("mask", "weights", "last") is None


def test_arms_come_in_order_with_their_estimators():
    (setting,) = settings("reduced", CIFAR[::-1])
    assert list(setting.arms) == [
        "mask (intermediate)", "mask (bernoulli)", "mask", "weights", "mix", "weights-then-weights",
    ]  # fmt: skip
    assert setting.masks == ["mask (intermediate)", "mask (bernoulli)", "mask"]
    assert all(list(runs) == [2, 1, 0] for runs in setting.arms.values())


def test_differences_in_the_page(full):
    text = full[1]
    gain = Paired((0.10, 0.11, 0.10))
    assert f"| CIFAR-10, `reduced` | `mix` - `weights` | {gain} | {gain} |\n" in text
    assert (
        "| MNIST, `wrn-28-1` | `mix` - `weights` | -0.10 points (one seed) "
        "| -1.00 points (one seed) |\n"
    ) in text
    assert "MNIST, `wrn-28-1` | `mix` - `weights-then-weights`" not in text
    bernoulli = Paired((0.03, -0.01, -0.01))
    assert f"| `mask (bernoulli)` - `mask` | {bernoulli} | {bernoulli} |" in text


GAIN = {
    1: "The blog's gain of `mix` over `weights` is there, ",
    0: "The blog's gain of `mix` over `weights` does not show in these seeds, ",
    -1: "The blog's gain is turned round, `mix` is below `weights`, ",
}
REST = {
    1: "and the mask gives more than the same further training without one.",
    0: "and these seeds cannot tell the mask from the same further training without one.",
    -1: "and the same further training without a mask gives more.",
}
SIDE = {1: (0.10, 0.11, 0.12), 0: (-0.01, 0.00, 0.02), -1: (-0.10, -0.11, -0.12)}


@pytest.mark.parametrize("gain", GAIN)
@pytest.mark.parametrize("rest", REST)
def test_the_verdict_is_where_the_intervals_lie(gain, rest):
    mix = np.array((0.7, 0.71, 0.75))
    found = settings("reduced", [
        *three("cifar10", "mix", mix),
        *three("cifar10", "weights", mix - SIDE[gain]),
        *three("cifar10", "weights-then-weights", mix - SIDE[rest]),
    ])  # fmt: skip
    text = facts._of_runs(list(found))["readings"]
    assert text.count("\n") == 1  # best and last epoch
    for line in text.splitlines():
        assert line.endswith(f". {GAIN[gain]}{REST[rest]}")
    assert f"`mix` - `weights` is {100 * np.mean(SIDE[gain]):+.2f} points" in text
    assert f"`mix` - `weights-then-weights` is {100 * np.mean(SIDE[rest]):+.2f} points" in text


def test_no_verdict_from_one_seed():
    arms = ("mix", "weights", "weights-then-weights")
    found = settings("reduced", [result("mnist", arm, 0, 0.9, **REDUCED) for arm in arms])
    assert facts._of_runs(list(found))["readings"] == ""


def test_the_winning_estimator(full):
    assert (
        f"- CIFAR-10, `reduced`: last epoch, `mask (intermediate)` is ahead of "
        f"`mask (bernoulli)` by {Paired((0.02, 0.07, 0.05))} (not told apart) and of `mask` by "
        f"{Paired((0.05, 0.06, 0.04))}.\n"
    ) in full[1]


def test_noise(full):
    assert "last epoch, the seeds of one arm lie up to 4.00 points apart.\n" in full[1]


def test_masked_fractions(full):
    text = full[1]
    layers = blog("cifar10").utilisation
    total = sum(x.parameters * x.masked for x in layers) / sum(x.parameters for x in layers)
    assert f"| CIFAR-10 | the blog | {100 * total:.1f} % (2.6 to 16.4) | 14.6 % | " in text
    assert f"| CIFAR-10 | `reduced`, `mask` | {50 * total:.1f} % (1.3 to 8.2) | 7.3 % | " in text
    assert "| `reduced`, `mask (bernoulli)` |" in text
    assert "- MNIST, `wrn-28-1`: 0.9 to 5.8 % of a layer is masked, in the blog 1.8 to 11.6 %." in (
        text
    )


def test_kinds_of_layers():
    layers = [
        Layer("stem", 100, 0.5), Layer("group1.block1.conv1", 1000, 0.1),
        Layer("group1.block1.conv2", 3000, 0.2), Layer("group1.block1.shortcut", 10, 0.4),
        Layer("classifier", 30, 0.8),
    ]  # fmt: skip
    total = (50 + 100 + 600 + 4 + 24) / 4140
    assert list(shares(layers)) == [
        f"{100 * total:.1f} % (10.0 to 80.0)", "50.0 %", "17.5 % (10.0 to 20.0)", "40.0 %", "80.0 %"
    ]  # fmt: skip
    assert list(shares(layers[:3]))[3:] == ["-", "-"]
    assert small_and_large(layers) == pytest.approx((28 / 40, 700 / 4000))


def test_layers_are_the_mean_of_their_seeds():
    runs = three("mnist", "mask", (0.5, 0.6, 0.7))
    runs = [
        replace(r, utilisation=[replace(layer, masked=m) for layer in r.utilisation])
        for r, m in zip(runs, (0.1, 0.2, 0.6), strict=True)
    ]
    (setting,) = settings("reduced", runs)
    assert [layer.masked for layer in mean_of_seeds(setting, "mask")] == pytest.approx([0.3] * 29)


@pytest.mark.parametrize(
    ("small", "words"),
    [(0.04, "far less than"), (0.06, "less, though not half, than"), (0.2, "more than")],
)
def test_small_layers(small, words):
    (run,) = three("mnist", "mask", (0.5,))
    layers = [
        replace(x, masked=small if "shortcut" in x.layer or "class" in x.layer else 0.1)
        for x in run.utilisation
    ]
    text = facts._of_runs(list(settings("s", [replace(run, utilisation=layers)])))["claims"]
    shares = f"{100 * small:.1f} % against 10.0 %; in the blog 2."
    assert f"Small layers are masked {words} the 3x3 convolutions, {shares}" in text


def test_deviations(full):
    text = full[1]
    assert (
        "- CIFAR-10, `reduced`: `depth` 16 (28), `width` 1 (8), `epochs` 2 (30), `train_images` "
        "5000 (all); `score_lr` 0.3 (`lr`) in `mask (bernoulli)`; `score_lr` 0.1 (`lr`) in "
        "`mask (intermediate)`.\n"
    ) in text
    assert (
        "- MNIST, `wrn-28-1`: `width` 1 (8), `epochs` 2 (30), `precision` bfloat16 (float32)."
        in (text)
    )
    (only,) = settings("s", [result("mnist", "mix", 0, 0.9, mix_lr=1e-3)])
    assert list(facts._deviations(only)) == ["`mix_lr` 0.001 (1e-05)"]
    (none,) = settings("s", [result("mnist", "weights", 0, 0.9)])
    assert list(facts._deviations(none)) == []


def test_short_runs(full):
    text = full[1]
    assert (
        "- CIFAR-10, `reduced`: 40 steps an epoch, in the blog 391. After the first epoch batch "
        f"norm's averages still are {100 * 0.99**40:.0f} % what they started as, in the blog 2 %.\n"
    ) in text
    assert "which makes 0.0008 in the whole of `mix`, in the blog 0.12." in text
    assert "- MNIST, `wrn-28-1`: 469 steps an epoch, in the blog 469." in text


def test_misses(full):
    assert (
        "- CIFAR-10, `reduced`: the best epoch's distance from the blog's is, in points, `mask` "
        "-31.80, `weights` -25.67, `mix` -19.03.\n"
    ) in full[1]
    assert "MNIST, `wrn-28-1`: the best epoch's distance" not in full[1]  # as near as could be read


def test_facts_for_prose(full):
    found = full[2]
    assert found["reduced cifar10 mix, last"] == "0.7167"
    assert found["wrn-28-1 mnist mask, best"] == "0.9900"
    assert found["reduced cifar10 mix - weights, last"] == str(Paired((0.10, 0.11, 0.10)))
    assert found["wrn-28-1 mnist mix - mask, best"] == "+0.10 points (one seed)"
    assert all(found.values())


def test_nothing_is_said_of_what_is_not_there(tmp_path):
    text = reproduction.write(tmp_path / "results", tmp_path / "docs").read_text()
    assert text.startswith("# The blog's question\n")
    assert text.count("#") == 1
    assert text.count("\n\n") == 1
    assert not (tmp_path / "docs" / "figures").exists()

    save(tmp_path / "results" / "wrn-28-1", MNIST[0])
    text = reproduction.write(tmp_path / "results", tmp_path / "docs").read_text()
    assert "`mask` | " in text
    for absent in (
        "CIFAR-10,",
        "`reduced`",
        "mix` -",
        "## Is a mask",
        "## Which",
        "toy",
        "### Noise",
    ):
        assert absent not in text


FILL = """
# Title

Always.

## One

Static.

{a}

With {b} and {a}.

## Two

Static too.

{b}

## Three

{a}
"""


def test_fill():
    assert reproduction.fill(FILL, {}) == "# Title\n\nAlways.\n"
    assert reproduction.fill(FILL, {"a": "A"}) == (
        "# Title\n\nAlways.\n\n## One\n\nStatic.\n\nA\n\n## Three\n\nA\n"
    )
    everything = FILL.strip().replace("{a}", "A").replace("{b}", "{x}") + "\n"
    assert reproduction.fill(FILL, {"a": "A", "b": "{x}"}) == everything


def test_what_the_page_says_of_the_toy():
    """Its sentences stand in the template; they hold for the committed result."""
    toy = {
        (d.method, d.step_size): d
        for d in read(reproduction.RESULTS / "categorical" / "categorical.json")
    }
    last = {key: descent.mean()[-1] for key, descent in toy.items()}
    lowest = {key: min(descent.mean()) for key, descent in toy.items()}
    ours, hot, cold = "intermediate sampling", "Gumbel-softmax, T = 10", "Gumbel-softmax, T = 0.1"

    def after(key, step):
        return sum(toy[key].after(step)) / len(toy[key].divergence)

    for size in (0.1, 0.01, 0.001):
        assert last[ours, size] < 1.5 * lowest[ours, size]  # it stays
    assert last[ours, 0.01] < last[ours, 0.1] / 5  # a smaller step leaves less
    assert after((ours, 0.1), 100) > 5 * last[ours, 0.1]  # not at once
    assert after((ours, 0.1), 1000) < 1.2 * last[ours, 0.1]  # about a thousand steps
    assert (
        last[ours, 0.001] == lowest[ours, 0.001] < after((ours, 0.001), 10_000) / 2
    )  # still falls
    assert last[hot, 0.1] > 50 * lowest[hot, 0.1]  # drifts
    assert after((hot, 0.1), 100) > after((ours, 0.1), 100)  # slow
    assert after((cold, 0.01), 100) < after((ours, 0.01), 100) / 3  # not slow
    assert last[cold, 0.1] > 10 * last[ours, 0.1]  # too much
    for step in (10_000, 30_000):  # as well
        ratio = after((cold, 0.001), step) / after((ours, 0.01), step)
        assert 2 / 3 < ratio < 3 / 2
    assert last["Gumbel-softmax, T = 1", 0.001] > 5 * last[ours, 0.01]  # a bias


def test_the_command(tmp_path, monkeypatch, call):
    save(tmp_path / "results" / "wrn-28-1", *MNIST)
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduction, "DOCS", tmp_path / "docs")
    path = tmp_path / "docs" / "reproduction.md"
    assert call("reproduction") == (0, f"Written to {path} ")
    assert "## The blog's numbers beside ours" in path.read_text()
