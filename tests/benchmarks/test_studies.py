"""Studies: missing runs are made once, and their commands make them again."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import Location
from benchmarks import __main__ as cli
from benchmarks.experiment import runner as experiment
from benchmarks.experiment.arms import ARMS
from benchmarks.experiment.configuration import Configuration
from benchmarks.experiment.results import Result, find_result, read_results
from benchmarks.experiment.training import Epoch
from benchmarks.studies import catalogue, study
from benchmarks.studies.catalogue import STUDIES
from benchmarks.studies.study import Study


def nothing(name):
    return []


def result(configuration, accuracy=0.5):
    return Result(
        configuration=configuration,
        estimator=None,
        epochs=[Epoch(1, 0.1, 1.0, accuracy, 1.0, accuracy, 1.0)],
        utilisation=[],
        environment={},
        command="",
    )


def everything(name):
    """As if every run that a study asks for had come out."""
    done = []

    def so_far(other):
        return done if other == name else []

    for _ in range(3):
        wanted = dict.fromkeys(STUDIES[name].runs(so_far))
        done += [result(c) for c in list(wanted)[len(done) :]]
    return done


@pytest.mark.parametrize("name", STUDIES)
def test_runs_are_possible_and_in_order(name):
    """Each after the one that it goes on from."""
    found = list(dict.fromkeys(STUDIES[name].runs(everything)))
    assert found
    for number, configuration in enumerate(found):
        configuration.validate()
        assert configuration == configuration.for_arm(configuration.arm)
        start = configuration.start
        assert start is None or start in found[:number]
    assert len({configuration.name for configuration in found}) == len(found)


@pytest.mark.parametrize("name", STUDIES)
def test_a_command_makes_the_same_run(name, call, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.runner, "run", lambda *given: asked.append(given) or [])
    for configuration in list(STUDIES[name].runs(everything))[::7]:
        line = shlex.split(study.command(configuration, Path("a folder")))
        assert line[:4] == ["python", "-m", "benchmarks", "run"]
        assert call(*line[3:])[0] == 0
        options, (arm,), location, _ = asked.pop()
        assert options.for_arm(arm) == configuration
        assert location.output == Path("a folder")


@pytest.mark.parametrize("name", STUDIES)
def test_committed_results_are_those_of_their_study(name, committed_results):
    def results(study):
        return read_results(committed_results / study)

    found = {result.configuration for result in results(name)}
    if not found:
        pytest.skip(f"{name} has no results yet")
    assert found <= set(STUDIES[name].runs(results))


def test_the_blogs_steps_on_small_images():
    found = list(dict.fromkeys(catalogue.blog_small(nothing)))
    assert len(found) == 2 * 3 * (4 + 2)  # data sets, seeds, arms and those with 1e-3
    for configuration in found:
        blog = Configuration(configuration.dataset).for_arm(configuration.arm)
        side = {"cifar10": 16, "mnist": 14}[configuration.dataset]
        changed = replace(
            blog,
            depth=16,
            width=1,
            image_size=side,
            precision="bfloat16",
            seed=configuration.seed,
        )
        assert configuration in (
            changed,
            replace(changed, mix_lr=1e-3 if configuration.start else None),
        )


def test_every_method_tries_as_much_and_its_best_is_run():
    methods = list(catalogue.methods())
    trials = [list(catalogue.trials(method)) for method in methods]
    assert {len(tried) for tried in trials} == {12}
    assert all(t.held_out == 10_000 and t.seed == 0 for tried in trials for t in tried)
    first = list(catalogue.which_estimator(nothing))
    assert first == [trial for tried in trials for trial in tried]
    done = [result(trial, 0.1) for trial in first]
    done[5] = result(first[5], 0.9)
    done[20] = result(first[20], 0.2)
    *_, last = catalogue.which_estimator(lambda name: done)
    later = list(catalogue.which_estimator(lambda name: done))[len(first) :]
    assert len(later) == 3 * len(methods)
    assert later[0] == replace(methods[0], lr=first[5].lr, init=first[5].init)
    assert later[1] == replace(methods[1], lr=first[20].lr, init=first[20].init)
    assert {c.held_out for c in later} == {None}
    assert last.seed == 2
    assert len(list(catalogue.which_estimator(lambda name: done[1:]))) == len(
        first
    ) + 3 * (len(methods) - 1)


def test_the_best_estimator_goes_on_to_the_supermasks():
    assert list(catalogue.supermasks(nothing)) == []
    done = everything("which-estimator")
    full = [r for r in done if r.configuration.held_out is None]
    best = next(r for r in full if r.configuration.density == 0.3)
    done[done.index(best)] = result(best.configuration, 0.99)
    first, *_ = catalogue.supermasks(lambda name: done)
    assert first == best.configuration
    assert list(catalogue.supermasks(lambda name: done[:-1])) == []


@pytest.fixture
def small(tiny, monkeypatch):
    """A study of four arms, and one more run once their results are there."""

    def runs(results):
        for arm in list(ARMS)[:4]:
            yield tiny().for_arm(arm)
        if len(results("small")) >= 4:
            yield tiny(seed=1).for_arm("weights")

    found = Study("small", runs)
    monkeypatch.setitem(catalogue.STUDIES, "small", found)
    return found


def test_a_study_is_run_and_resumed(small, tmp_path, outcome, call, monkeypatch):
    options = "--data-dir", tmp_path, "--device", "cpu", "--output", tmp_path
    (tmp_path / "small").mkdir()
    original, calls = study.make, []

    def dying(*arguments):
        calls.append(arguments[0])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(study, "make", dying)
        with pytest.raises(KeyboardInterrupt):
            call("study", "small", *options)
    assert len(small.missing(tmp_path)) == 2
    code, _ = call("study", "small", *options)
    assert code == 0
    assert small.missing(tmp_path) == []
    assert len(outcome(tmp_path / "small")) == 5
    made = find_result(tmp_path / "small", calls[2])
    assert made.command == study.command(calls[2], tmp_path / "small")
    assert call("study", "small", *options)[0] == 0  # nothing is left to do
    assert len(outcome(tmp_path / "small")) == 5


def test_a_dry_run_runs_nothing(small, tmp_path, call, monkeypatch):
    monkeypatch.setattr(study, "expected_seconds", lambda configuration: 90.0)
    code, text = call("study", "small", "--dry-run", "--output", tmp_path)
    assert code == 0
    assert text.count("1.5 min python -m benchmarks run --dataset digits --arms ") == 4
    assert "0.1 hours for 4 runs" in text
    assert list(tmp_path.iterdir()) == []


def test_expected_seconds(tiny, monkeypatch):
    monkeypatch.setattr(study, "step_seconds", lambda configuration: 0.5)
    assert study.expected_seconds(tiny(train_images=33, epochs=3)) == 3 * 3 * 0.5
    held_out = replace(tiny(train_images=None, held_out=38), batch_size=100)
    assert study.expected_seconds(held_out) == 2 * 14 * 0.5


def test_a_step_is_timed(tiny):
    study.step_seconds.cache_clear()
    assert 0 < study.expected_seconds(tiny()) < 60


def test_the_results_are_described(committed_results):
    """The README of the results says what each folder is."""
    text = (committed_results / "README.md").read_text()
    for folder in committed_results.iterdir():
        if folder.is_dir():
            assert f"`{folder.name}" in text


def test_a_study_stops_when_its_time_is_over(small, tmp_path, call):
    code, _ = call("study", "small", "--minutes", 0, "--output", tmp_path)
    assert code == 0
    assert read_results(tmp_path / "small") == []


@pytest.mark.slow
def test_runs_at_the_same_time_equal_those_one_after_the_other(
    small, tmp_path, outcome, monkeypatch
):
    """Each runs in its own process, and none before the run it starts from."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: sums depend on it
    together = Location(tmp_path, tmp_path / "together", "cpu")
    study.run_against_the_clock(small, together, minutes=5, at_once=4)
    alone = Location(tmp_path, tmp_path / "alone", "cpu")
    first_round = small.missing(alone.output)
    for configuration in first_round:
        study.make(configuration, replace(alone, output=alone.output / small.name))
    found = outcome(together.output / small.name)
    assert found == outcome(alone.output / small.name)
    assert len(found) == len(first_round) == 4
    assert small.missing(
        together.output
    )  # what depends on results is for the next call


@pytest.mark.slow
# what inductor imports, and what torch.compile does to an autograd function
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_a_compiled_run_equals_an_eager_one_up_to_rounding(tiny, tmp_path):
    """Also the smaller last batch of an epoch, evaluation and recalibration."""
    configuration = tiny(
        network="wrn", depth=10, width=1, train_images=72, batch_size=32
    )
    arms = ("mask",)
    eager = experiment.run(
        configuration, arms, Location(output=tmp_path / "eager", device="cpu"), ""
    )
    location = Location(output=tmp_path / "compiled", device="cpu", compile="default")
    compiled = experiment.run(configuration, arms, location, "")
    for expected, found in zip(eager, compiled, strict=True):
        for before, after in zip(expected.epochs, found.epochs, strict=True):
            assert after.train_loss == pytest.approx(before.train_loss, rel=1e-3)
            assert after.test_loss == pytest.approx(before.test_loss, rel=1e-3)
        assert found.masked_fraction == pytest.approx(
            expected.masked_fraction, abs=1e-3
        )
