"""The page of the blog's question says what the results say, and is up to date."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Layer, Result, append_result
from benchmarks.experiment.training import Epoch
from benchmarks.pages import figures, reproduction
from benchmarks.pages.comparison import (
    Paired,
    Verdict,
    published_numbers,
    read_experiments,
)
from benchmarks.pages.render import DOCS
from benchmarks.pages.toy import read_toy

MACHINE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|mnt|data)/")
SMALL = dict(depth=16, width=1, image_size=14, epochs=2)


def result(arm, seed, last, best=None, dataset="mnist", **changes):
    configuration = Configuration(dataset, seed=seed, **{**SMALL, **changes}).for_arm(
        arm
    )
    masked = configuration.estimator or arm.endswith("ticket")
    return Result(
        configuration=configuration,
        estimator=configuration.estimator,
        epochs=[
            Epoch(1, 1e-2, 1, 0, 1, best or last, 900),
            Epoch(2, 1e-2, 1, 0, 1, last, 900),
        ],
        utilisation=[Layer("stem", 100, 0.5), Layer("classifier", 300, 0.1)]
        if masked
        else [],
        environment={
            "processor": "Abacus",
            "torch": "2",
            "masktorch": "0",
            "commit": "c0ffee00",
        },
        command=f"make {arm} --seed {seed}",
    )


def save(folder, results):
    for r in results:
        append_result(r, folder)


@pytest.fixture
def one(tmp_path):
    """The only experiment of these results."""

    def found(results):
        save(tmp_path / "s", results)
        (experiment,) = read_experiments(tmp_path / "s")
        return experiment

    return found


def seeds(arm, accuracies, **changes):
    return [
        result(arm, seed, accuracy, **changes)
        for seed, accuracy in enumerate(accuracies)
    ]


# mix gains over weights, and at the smaller learning rate over the control.
MNIST = [
    *seeds("mask", (0.50, 0.51, 0.52)),
    *seeds("weights", (0.60, 0.61, 0.63)),
    *seeds("mix", (0.70, 0.72, 0.73)),
    *seeds(CONTROL, (0.64, 0.65, 0.68)),
    *seeds("mix", (0.71, 0.73, 0.73), mix_lr=1e-3),
    *seeds(CONTROL, (0.70, 0.75, 0.72), mix_lr=1e-3),
]


@pytest.fixture
def write(tmp_path):
    def written(**studies):
        for name, results in studies.items():
            save(tmp_path / "results" / name.replace("_", "-"), results)
        return reproduction.write(tmp_path / "results", tmp_path / "docs").read_text()

    return written


def prose(text):
    """The words of a page on one line."""
    return " ".join(text.split())


def cells(text, *starts):
    """The rows of tables that begin so, without the spaces."""
    rows = [
        re.split(r" *\| *", line.strip("| "))
        for line in text.splitlines()
        if "|" in line
    ]
    return [row for row in rows if row[: len(starts)] == list(starts)]


def test_the_committed_page_is_up_to_date(tmp_path, committed_results):
    """Mend it with `python -m benchmarks reproduction`."""
    text = reproduction.write(committed_results, tmp_path).read_text()
    assert (DOCS / "reproduction.md").read_text() == text
    assert not MACHINE_PATH.search(text)
    for figure in (tmp_path / "figures").iterdir():
        assert (DOCS / "figures" / figure.name).exists()


def test_every_figure_is_there(write, tmp_path):
    text = write(blog_small=MNIST)
    links = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert sorted(links) == sorted(
        f"figures/{p.name}" for p in (tmp_path / "docs/figures").iterdir()
    )
    assert len(links) == 2


def test_the_answer(write):
    text = write(blog_small=MNIST)
    assert "On MNIST, it depends on the setting." in prose(text)
    shared = ["51.0 (50.0 to 52.0)", "61.3 (60.0 to 63.0)"]
    small, large = (
        cells(text, "MNIST, `blog-small`", lr, shared[0])[0]
        for lr in ("1e-05", "0.001")
    )
    difference = Paired((0.06, 0.07, 0.05)).in_words
    assert small[3:] == [
        shared[1],
        "71.7 (70.0 to 73.0)",
        "65.7 (64.0 to 68.0)",
        difference,
    ]
    assert difference == "+6.00 (+3.52 to +8.48), better"
    assert large[4:6] == ["72.3 (71.0 to 73.0)", "72.3 (70.0 to 75.0)"]
    assert large[6].endswith(", cannot tell")


@pytest.mark.parametrize(
    ("at_small_lr", "at_large_lr", "words"),
    [
        ((0.50, 0.51), (0.40, 0.42), "end 10.5 to 20.0 points below"),
        ((0.70, 0.71), (0.70, 0.71), "end 9.5 points above"),
        ((0.50, 0.70), (0.61, 0.61), "On MNIST, these runs cannot tell."),
        ((0.50, 0.51), (0.70, 0.71), "On MNIST, it depends on the setting."),
    ],
)
def test_the_answer_in_one_sentence(at_small_lr, at_large_lr, words, write):
    """Against a control of 0.61 and 0.61 at both learning rates."""
    text = write(
        blog_small=[
            *seeds("mask", (0.5, 0.6)),
            *seeds("weights", (0.6, 0.61)),
            *seeds(CONTROL, (0.61, 0.61)),
            *seeds(CONTROL, (0.61, 0.61), mix_lr=1e-3),
            *seeds("mix", at_small_lr),
            *seeds("mix", at_large_lr, mix_lr=1e-3),
        ]
    )
    assert words in prose(text.partition("## The answer")[2].partition("![")[0])


def test_the_answer_is_of_the_recalibrated_accuracies(write):
    def recalibrated(runs, *accuracies):
        pairs = zip(runs, accuracies, strict=True)
        return [replace(run, recalibrated={"last": x, "best": x}) for run, x in pairs]

    text = write(
        blog_small=[
            *recalibrated(MNIST[:3], 0.71, 0.72, 0.75),
            *recalibrated(MNIST[3:6], 0.7, 0.7, 0.7),
            *MNIST[6:12],
        ]
    )
    assert cells(text, "MNIST, `blog-small`", "1e-05", "72.7 (71.0 to 75.0)")
    assert cells(text, "MNIST, `blog-small`", "-", "`mask` - `weights`")[0][3] == "3"


def test_no_verdict_from_one_seed(write):
    text = write(
        blog_small=[result(arm, 0, 0.9) for arm in ("mask", "weights", "mix", CONTROL)]
    )
    assert "One seed so far, which has no interval: no answer yet." in prose(text)
    assert cells(text, "MNIST, `blog-small`", "1e-05", "`mix` - `weights`")[0][3:] == [
        "1",
        "+0.00 (one seed)",
        "+0.00 (one seed)",
    ]


def test_the_table(write):
    text = write(blog_small=MNIST)
    (row,) = cells(text, "MNIST, `blog-small`", "`mix`, lr 1e-05")
    values = "71.67 (70.00 to 73.00)"
    assert row[2:] == [
        "2 after 2",
        "3",
        values,
        values,
        "20.0 (20.0 to 20.0)",
        "-",
        "99.4",
        "99.3",
    ]
    assert (
        len(cells(text, "MNIST, `blog-small`", "`mask`")) == 1
    )  # under both learning rates
    (row,) = cells(text, "MNIST, `blog-small`", f"`{CONTROL}`, lr 0.001")
    assert row[6:] == ["-"] * 4


def test_what_the_second_phase_adds_and_what_is_batch_norms(write):
    """Over the seeds that both arms have; runs without recalibration have no row."""
    recalibrated = [
        replace(run, recalibrated={"best": x, "last": x + 0.02})
        for run, x in zip(MNIST[:3], (0.60, 0.62, 0.60), strict=True)
    ]
    later = replace(
        result("mix", 2, 0.9, mix_lr=1e-4), recalibrated={"best": 0.9, "last": 0.8}
    )
    mix = [
        replace(run, recalibrated={"best": 0.5, "last": run.last.test_accuracy})
        for run in MNIST[6:9]
    ]
    text = write(blog_small=[*recalibrated, later, *MNIST[3:6], *mix, *MNIST[9:12]])
    (row,) = cells(text, "MNIST, `blog-small`", "`mask`")
    assert row[7] == "62.67 (62.00 to 64.00)"
    rows = cells(text, "MNIST, `blog-small`", "`mix`, lr 1e-05")
    assert rows[1][2:] == ["+20.7", "+11.0"]
    rows = cells(text, "MNIST, `blog-small`", "`mix`, lr 0.0001")
    assert rows[1][2:] == ["+38.0", "+20.0"]
    assert rows[0][8:] == ["-", "-"]  # the blog has 1e-5
    assert len(cells(text, "MNIST, `blog-small`", f"`{CONTROL}`, lr 1e-05")) == 1


def test_differences_are_of_one_seed_and_learning_rate(write, one):
    text = write(blog_small=MNIST)
    (row,) = cells(text, "MNIST, `blog-small`", "0.001", f"`mix` - `{CONTROL}`")
    assert row[5] == str(Paired((0.01, -0.02, 0.01)))
    (found,) = one(
        [
            result("mask", 0, 0.5),
            result("mask", 2, 0.8, 0.9),
            result("weights", 1, 0.1),
            result("weights", 2, 0.6),
        ]
    ).differences()
    assert found.pair == ("mask", "weights")
    assert found.last.differences == pytest.approx((0.2,))
    assert found.best.differences == pytest.approx((0.3,))


def test_runs_that_are_no_seeds_of_one(tmp_path):
    save(tmp_path, [result("mask", 0, 0.5), result("mask", 1, 0.5, lr=0.5)])
    found = read_experiments(tmp_path)
    assert [[of.lr for of in one.groups] for one in found] == [[0.01], [0.5]]


@pytest.mark.parametrize("n", range(2, 11))
def test_interval(n):
    values = tuple(np.random.default_rng(n).normal(0.01, 0.02, n).tolist())
    expected = stats.t.interval(
        0.95, n - 1, loc=np.mean(values), scale=stats.sem(values)
    )
    assert Paired(values).interval == pytest.approx(expected)
    low, high = (100 * x for x in expected)
    assert (
        str(Paired(values))
        == f"{100 * np.mean(values):+.2f} ({low:+.2f} to {high:+.2f})"
    )


def test_verdicts():
    assert Paired((0.1, 0.11, 0.12)).verdict is Verdict.BETTER
    assert Paired((-0.1, -0.11, -0.12)).verdict is Verdict.WORSE
    assert (
        Paired((0.1, 0.11, 0.3)).verdict is Verdict.UNDECIDED
    )  # all three above 0, and yet
    assert Paired((0.1,)).verdict is None


def test_earlier_runs_stand_apart_from_those_that_answer(write):
    earlier = [replace(r, command=r.command + " earlier") for r in MNIST]
    text = write(reduced=earlier, blog_small=MNIST)
    page, _, appendix = text.partition("Superseded")
    for part, study in ((page, "blog-small"), (appendix, "reduced")):
        assert cells(part, f"MNIST, `{study}`", "`mask`")
        assert f"- MNIST, `{study}`: `depth`" in part
    assert "`reduced`" not in page
    assert "`blog-small`" not in appendix
    assert "make mask --seed 0 earlier" in appendix


def test_deviations(write):
    text = write(blog_small=seeds("mask", (0.5, 0.6), width=8))
    assert (
        "- MNIST, `blog-small`: `depth` 16 (28), `epochs` 2 (30), "
        "`image_size` 14 (all).\n"
    ) in text


def test_masked_fractions(write):
    text = write(blog_small=MNIST)
    layers = published_numbers("mnist")["layers"]
    total = sum(x.parameters * x.masked for x in layers) / sum(
        x.parameters for x in layers
    )
    assert cells(text, "MNIST", "the blog")[0][2:4] == [f"{100 * total:.1f}", "5.7"]
    (ours,) = cells(text, "MNIST", "`blog-small`")
    same = [
        "20.0 (20.0 to 20.0)",
        "50.0 (50.0 to 50.0)",
        "-",
        "-",
        "10.0 (10.0 to 10.0)",
    ]
    assert ours[2:] == same


LENET = dict(network="lenet-300-100", depth=None, width=None, image_size=None)


def test_estimators(write, tmp_path):
    trial = result("mask", 0, 0.99, estimator="piggyback", held_out=10_000, **LENET)
    text = write(
        which_estimator=[
            *seeds("mask", (0.9, 0.8), lr=0.1, **LENET),
            trial,
            *seeds(
                "mask", (0.95,), estimator="topk", density=0.3, init="normal", **LENET
            ),
        ]
    )
    assert "piggyback" not in text
    assert "on MNIST with `topk 0.3` over glorot weights: 95.00 %.**" in prose(text)
    short, full = cells(text, "topk 0.3")
    assert short[1:] == ["glorot", "1", "95.00", "20.0"]
    assert full[1:6] == ["glorot", "0.01", "normal", "1", "95.00"]
    short, full = cells(text, "threshold")
    outcomes = ["85.00 (80.00 to 90.00)", "20.0 (20.0 to 20.0)"]
    assert short[3:] == outcomes
    assert full[5:] == [outcomes[0], *outcomes]
    assert (tmp_path / "docs" / "figures" / "estimators.png").exists()


def test_tickets(write, tmp_path):
    text = write(
        tickets=[
            *seeds("weights", (0.9,), **LENET),
            *seeds(CONTROL, (0.92,), **LENET),
            *seeds("ticket", (0.8, 0.7), density=0.5, **LENET),
            *seeds("mask", (0.6,), estimator="topk", density=0.1, **LENET),
        ]
    )
    columns = ["mask alone", "supermask, then weights", "random control"]
    assert cells(text, "data set", "density", *columns)
    assert cells(text, "MNIST", "50 %")[0][2:] == [
        "-",
        "-",
        "-",
        "75.00 (70.00 to 80.00)",
        "-",
    ]
    assert cells(text, "MNIST", "10 %")[0][2:] == ["60.00", "-", "-", "-", "-"]
    assert "in as many steps: MNIST 92.00 %." in prose(text)
    assert (tmp_path / "docs" / "figures" / "tickets-mnist.png").exists()


def test_a_supermask_beside_a_ticket(write):
    learned = {"estimator": "topk", "density": 0.5, "mix_lr": 1e-3, **LENET}
    given = {"density": 0.5, "mix_lr": 1e-3, **LENET}
    text = write(
        tickets=[
            *seeds("mix", (0.8, 0.81), **learned),
            *seeds("random-mix", (0.7, 0.79), **learned),
            *seeds("ticket", (0.9, 0.911), **given),
            *seeds("random-ticket", (0.89, 0.915), **given),
        ]
    )
    assert "a ticket is the better mask to train under" in prose(text)
    differences = cells(text.partition("## Ticket")[2], "MNIST", "50 %")[1][2:]
    assert [value.split(" (")[0] for value in differences] == [
        "+6.00",
        "+0.30",
        "-10.05",
        "-15.75",
    ]
    assert [value.split(", ")[1] for value in differences] == [
        "cannot tell",
        "cannot tell",
        "worse",
        "cannot tell",
    ]


def test_ways_to_a_sparse_network(write, tmp_path):
    """Two phases of 8 epochs are compared with one of 16."""
    whole = {**LENET, "epochs": 16, "density": 0.1, "budget": "erk"}
    half = {**whole, "epochs": 8, "mix_lr": 1e-3}
    learned = {**half, "estimator": "topk"}
    text = write(
        dynamic=[
            *seeds("weights", (0.98, 0.99), **{**LENET, "epochs": 16}),
            *seeds("weights", (0.5, 0.5), **{**LENET, "epochs": 8}),
            *seeds("static", (0.90, 0.91), **whole),
            *seeds("set", (0.85, 0.95), **whole),
            *seeds("rigl", (0.95, 0.96), **whole),
            *seeds("gradual", (0.80, 0.811), **whole),
            *seeds("mask", (0.4, 0.4), **learned),
            *seeds("mix", (0.97, 0.98), **learned),
            *seeds("ticket", (0.92, 0.95), **half),
        ]
    )
    network = "lenet-300-100 in 16 epochs; dense 98.50 (98.00 to 99.00) %."
    assert f"- MNIST: {network}" in prose(text)
    assert (
        "**On MNIST, supermask, then weights ends highest at 10 % (97.50 %, a static "
        "random mask 90.50 %).**"
    ) in prose(text)
    rows = {row[2]: row[3:] for row in cells(text, "MNIST", "10 %")}
    assert rows["RigL"] == ["95.50 (95.00 to 96.00)", "+5.00 (+5.00 to +5.00), better"]
    assert rows["gradual magnitude pruning"][1].endswith(", worse")
    assert rows["SET"][1].endswith(", cannot tell")
    assert len(rows["static random mask"]) == 1  # nothing to compare with
    assert (tmp_path / "docs" / "figures" / "dynamic-mnist.png").exists()


def test_ways_to_a_sparse_network_on_two_data_sets(write):
    sparse = {**LENET, "density": 0.1, "budget": "erk"}
    text = write(
        dynamic=[
            *seeds("static", (0.90, 0.91), **sparse),
            *seeds("rigl", (0.95, 0.96), **sparse),
            *seeds("static", (0.60, 0.61), dataset="cifar10", **sparse),
            *seeds("rigl", (0.50, 0.51), dataset="cifar10", **sparse),
        ]
    )
    assert "On MNIST, RigL ends highest at 10 % (95.50 %" in prose(text)
    assert "On CIFAR-10, static random mask ends highest at 10 % (60.50 %" in prose(
        text
    )
    assert cells(text, "CIFAR-10", "10 %", "RigL")[0][4].startswith("-10.00")


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        ((0.90, 0.921), "by less than these runs can tell: +0.05"),
        ((0.95, 0.971), "are more accurate than in float32: +5.05"),
        ((0.80, 0.821), "are less accurate than in float32: -9.95"),
    ],
)
def test_masks_in_bfloat16(accuracies, words, write):
    text = write(
        bfloat16=[
            *seeds("mask", (0.90, 0.92), **LENET),
            *seeds("mask", accuracies, precision="bfloat16", **LENET),
        ]
    )
    assert words in prose(text)
    assert cells(text, "float32")[0][1] == "91.00 (90.00 to 92.00)"


def test_superseded_supermasks_are_in_the_appendix(write):
    old = seeds("mask", (0.97,), lr=0.1, **LENET)
    earlier = {"reduced": seeds("mask", (0.5,)), "literature": old}
    assert "before there was `supermasks`" not in write(**earlier)
    text = write(**earlier, supermasks=old)
    assert len(cells(text.partition("<summary>Superseded")[2], "lenet-300-100")) == 1


def test_supermasks(write):
    text = write(
        supermasks=[
            *seeds("mask", (0.97, 0.98), lr=0.1, **LENET),
            *seeds("mask", (0.5,), lr=0.1, rescale=True, **LENET),
            *seeds("mask", (0.6, 0.601), **LENET),
        ]
    )
    (base,) = cells(text, "lenet-300-100", "epochs 2, lr 0.1")
    assert base[4:5] + base[6:9] == ["97.50 (97.00 to 98.00)", "-", "98.0", "-"]
    rescaled = cells(text, "lenet-300-100", "the same, but rescale True")[0]
    assert rescaled[4:7:2] == ["50.00", "-47.00 (one seed)"]
    (slow,) = cells(text, "lenet-300-100", "the same, but lr 0.01")
    assert slow[4:7:2] == ["60.05 (60.00 to 60.10)", "-37.45 (-43.17 to -31.73)"]
    assert "Better than the first setting: none." in prose(text)
    assert "Worse: lr 0.01 (-37.45)." in prose(text)
    published = json.loads(
        (DOCS.parent / "benchmarks" / "pages" / "published.json").read_text()
    )
    assert list(published["networks"]) == [
        "lenet-300-100",
        "conv-2",
        "conv-4",
        "conv-6",
    ]


def test_nothing_is_said_of_what_is_not_there(write):
    text = write()
    for absent in (
        "{",
        "NaN",
        "None",
        "figures/",
        "## The curves",
        "## Which",
        "<details",
    ):
        assert absent not in text


def test_what_the_curves_show(one):
    """Error in percent, an arm that goes on after the arm it starts from."""
    figure = figures.curves(list(one(MNIST).phases())[:1])
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    mix = lines["then weights under that mask (mix)"]
    assert mix.get_xdata().tolist() == [3, 4]
    assert mix.get_ydata() == pytest.approx([100 - 71.67] * 2, abs=0.01)
    published = [
        100 * (1 - accuracy)
        for accuracy in published_numbers("mnist")["accuracy"]["mask"]["val"]
    ]
    faint = [line for line in axes.lines if line.get_alpha() == figures.FAINT]
    assert faint[0].get_ydata() == pytest.approx(published)
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert {"5", "10", "20", "50"} <= set(labels)
    assert not any("^" in label for label in labels)


def test_the_forest(one):
    figure = figures.forest(one(MNIST).differences())
    (axes,) = figure.axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert labels[0] == "mask - weights   MNIST, WRN-16-1, 14x14"
    assert labels[-1] == "mix - control   MNIST, WRN-16-1, 14x14, then lr 0.001"
    assert len(labels) == 1 + 2 + 2 + 2
    interval = [100 * x for x in Paired((-0.10, -0.10, -0.11)).interval]
    assert axes.lines[0].get_xdata() == pytest.approx(interval)


def test_what_the_page_says_of_the_toy(tmp_path, committed_results):
    """Its sentences stand in the template; they hold for the committed result."""
    toy = read_toy(committed_results / "categorical" / "categorical.json", tmp_path)
    mean = {(m["method"], m["step_size"]): m for m in toy["methods"]}
    ours, hot, cold = (
        "intermediate sampling",
        "Gumbel-softmax, T = 10",
        "Gumbel-softmax, T = 0.1",
    )

    def after(method, size, step):
        return float(toy["mean"](method, size, step))

    assert len(mean) == 12
    for size in (0.1, 0.01, 0.001):
        assert after(ours, size, 30000) < 1.5 * after(ours, size, "lowest")  # it stays
    assert (
        after(ours, 0.01, 30000) < after(ours, 0.1, 30000) / 5
    )  # a smaller step leaves less
    assert after(ours, 0.1, 100) > 5 * after(ours, 0.1, 30000)  # not at once
    assert after(ours, 0.1, 1000) < 1.2 * after(
        ours, 0.1, 30000
    )  # about a thousand steps
    assert after(ours, 0.001, 30000) < after(ours, 0.001, 10000) / 2  # still falls
    assert after(hot, 0.1, 30000) > 50 * after(hot, 0.1, "lowest")  # drifts
    assert after(hot, 0.1, 100) > after(ours, 0.1, 100)  # slow
    assert after(cold, 0.01, 100) < after(ours, 0.01, 100) / 3  # not slow
    assert after(cold, 0.1, 30000) > 10 * after(ours, 0.1, 30000)  # too much
    for step in (10000, 30000):  # as well
        assert 2 / 3 < after(cold, 0.001, step) / after(ours, 0.01, step) < 3 / 2
    assert after("Gumbel-softmax, T = 1", 0.001, 30000) > 5 * after(
        ours, 0.01, 30000
    )  # a bias


def test_the_commands(tmp_path, call):
    save(tmp_path / "results" / "blog-small", MNIST)
    folders = "--results", tmp_path / "results", "--docs", tmp_path / "docs"
    path = tmp_path / "docs" / "reproduction.md"
    assert call("reproduction", *folders) == (0, f"Written to {path} ")
    assert "## The answer" in path.read_text()
    code, text = call("show", tmp_path / "results" / "blog-small")
    assert code == 0
    assert "mask 3 51.00 (50.00 to 52.00) " in text
    assert (tmp_path / "results" / "blog-small" / "blog-small.png").exists()
