"""What the committed results say, as pieces of Markdown by name: the fields of the page."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import combinations, permutations
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.experiment.configuration import STARTS_FROM, Configuration
from benchmarks.experiment.results import Result, read_results
from benchmarks.pages import literature, sweeps, table, toy
from benchmarks.pages.figures import draw
from benchmarks.pages.kinds import KINDS, layer_range, mean_of_seeds, shares, small_and_large
from benchmarks.pages.paired import points
from benchmarks.pages.reference import blog
from benchmarks.pages.settings import EPOCHS, Setting, arm_name, settings

# The folders with results of `python -m benchmarks run`, and where one has only arms that go on
# from another's, that other one.
STUDIES = {"wrn-28-1": None, "reduced": None, "reduced-1e-3": "reduced"}
DATASETS = {"cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}
TRAINING_IMAGES = {"cifar10": 50_000, "mnist": 60_000}
BLOGS_ARMS = ("mask", "weights", "mix")
CONTROL = "weights-then-weights"
PAIRS = (("mask", "weights"), ("mix", "weights"), (CONTROL, "weights"), ("mix", CONTROL))
READ_OFF = 0.01  # how exactly the blog's accuracies could be read
NORM_KEEPS = 0.99  # of a running average, per step: Keras's default


def facts(results: Path, figures: Path) -> dict[str, str]:
    """All that the results give, nothing of what they don't; draws the figures into a folder."""
    found: dict[str, str] = {}
    runs = {study: read_results(results / study) for study in STUDIES if _holds(results / study)}
    if runs:
        found |= _of_runs([s for study in runs for s in settings(study, runs[study])])
        found["table"] = table.markdown([result for study in runs.values() for result in study])
        drawn = [study for study in runs if not STUDIES.get(study)]
        found["figures"] = "\n\n".join(_figures(study, runs[study], figures) for study in drawn)
    if _holds(results / "literature"):
        found["literature"] = literature.markdown(results / "literature")
    if _holds(results / "categorical"):
        found |= _of_toy(results / "categorical" / "categorical.json", figures)
    for path in sorted((results / "sweep").glob("*.json")):
        command = json.loads(path.read_text())["command"]
        found[f"sweep {path.stem}"] = f"{sweeps.markdown(path)}\n\nMade by `{command}`."
    return {name: piece.strip() for name, piece in found.items() if piece}


def _holds(folder: Path) -> bool:
    return any(folder.glob("*.json"))


def _of_runs(every: list[Setting]) -> dict[str, str]:
    whole = [_with_its_starts(setting, every) for setting in every]
    found = {
        "runs": _runs(every),
        "answer": _answer(whole),
        "orders": _bullets(whole, _order),
        "differences": _differences(whole, lambda setting: PAIRS),
        "readings": _bullets(whole, _reading),
        "spreads": _bullets(every, _spread),
        "estimators": _differences(every, lambda setting: combinations(setting.masks, 2)),
        "winners": _bullets(every, _winner),
        "kinds": _kinds(every),
        "claims": _bullets(every, _claim),
        "deviations": _bullets(every, _deviations),
        "short runs": _bullets(every, _short_runs),
        "misses": _bullets(every, _misses),
        "learning rates": _learning_rates(every),
    }
    for setting in every:
        for arm, runs in setting.arms.items():
            first = mean(result.epochs[0].test_accuracy for result in runs.values())
            found[f"{setting.study} {setting.dataset} {arm}, first"] = f"{first:.4f}"
        for arm, epoch in ((arm, epoch) for arm in setting.arms for epoch in EPOCHS):
            name = f"{setting.study} {setting.dataset} {arm}"
            found[f"{name}, {epoch}"] = f"{setting.mean(arm, epoch):.4f}"
            for other in setting.arms:
                if paired := setting.paired(arm, other, epoch):
                    found[f"{name} - {other}, {epoch}"] = str(paired)
    return found


def _with_its_starts(setting: Setting, every: Iterable[Setting]) -> Setting:
    """With the arms that its own go on from, where those are in another folder."""
    starts: dict[str, dict[int, Result]] = {}
    for other in every:
        if (other.study, other.dataset) == (STUDIES.get(setting.study), setting.dataset):
            starts = {arm: runs for arm, runs in other.arms.items() if arm not in STARTS_FROM}
    return replace(setting, arms=starts | setting.arms)


def _of_toy(path: Path, figures: Path) -> dict[str, str]:
    content, descents = json.loads(path.read_text()), toy.read(path)
    toy.draw(descents, figures)
    found = {
        "toy table": toy.markdown(descents),
        "toy origin": f"`{content['command']}` ({_software(content['environment'])})",
        "toy categories": str(content["categories"]),
        "toy distributions": str(len(descents[0].divergence)),
    }
    for descent in descents:
        name = f"{descent.method}, {descent.step_size:g}"
        found[f"{name}, lowest"] = f"{min(descent.mean()):.4f}"
        for step, divergence in zip(descent.steps, descent.mean(), strict=True):
            found[f"{name}, {step}"] = f"{divergence:.4f}"
    return found


def _figures(study: str, results: Sequence[Result], output: Path) -> str:
    """The blog's estimator shown, the others linked."""
    paths = draw(results, output)
    links = {path: f"[{path.stem}](figures/{path.name})" for path in paths}
    others = [path for path in paths if path.stem.endswith(("-bernoulli", "-intermediate"))]
    lines = [f"From `{study}`:", *(f"!{links[path]}" for path in paths if path not in others)]
    if others:
        linked = ", ".join(links[path] for path in others)
        lines.append(f"The other estimators, drawn likewise: {linked}.")
    return "\n\n".join(lines)


def _bullets(every: Sequence[Setting], sentences: Callable[[Setting], Iterator[str]]) -> str:
    return "\n".join(f"- {_title(one)}: {text}." for one in every for text in sentences(one))


def _title(setting: Setting) -> str:
    return f"{DATASETS[setting.dataset]}, `{setting.study}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing where there is no row."""
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    head = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return "\n".join([*head, *lines]) if lines else ""


def _runs(every: Sequence[Setting]) -> str:
    columns: dict[str, Callable[[Result], object]] = {
        "network": lambda result: result.configuration.network_name,
        "training images": lambda result: result.configuration.train_images or "all",
        "epochs": lambda result: result.configuration.epochs,
        "seed": lambda result: result.configuration.seed,
        "precision": lambda result: result.configuration.precision,
        "processor": lambda result: result.environment["processor"],
        "software": lambda result: _software(result.environment),
    }
    return _table(
        ["results", *columns, "arm runs", "hours in all"],
        (
            [
                _title(setting),
                *(
                    ", ".join(dict.fromkeys(str(of(result)) for result in setting.results))
                    for of in columns.values()
                ),
                str(len(setting.results)),
                f"{sum(result.wall_seconds for result in setting.results) / 3600:.1f}",
            ]
            for setting in every
        ),
    )


def _software(environment: Mapping[str, Any]) -> str:
    commit, changed = environment["commit"], environment["dirty"]
    at = f" at {commit[:7]}{' with changes' if changed else ''}" if commit else ""
    return f"masktorch {environment['masktorch']}{at} with torch {environment['torch']}"


def _differences(
    every: Sequence[Setting], pairs: Callable[[Setting], Iterable[tuple[str, str]]]
) -> str:
    return _table(
        ["results", "difference", "best epoch", "last epoch"],
        (
            [_title(setting), f"`{arm}` - `{other}`", str(best), str(last)]
            for setting in every
            for arm, other in pairs(setting)
            if (best := setting.paired(arm, other, "best"))
            and (last := setting.paired(arm, other, "last"))
        ),
    )


def _order(setting: Setting) -> Iterator[str]:
    """The blog's three arms, and whether they come in the blog's order."""
    reference = blog(setting.dataset)
    if reference and set(BLOGS_ARMS) <= setting.arms.keys():
        ours = ", ".join(f"`{arm}` {setting.mean(arm, 'best'):.4f}" for arm in BLOGS_ARMS)
        theirs = ", ".join(f"{reference.curves[arm].best:.3f}" for arm in BLOGS_ARMS)
        if not list(_ordered(setting)):
            order = "the blog's lie too close together to be in an order"
        else:
            order = " and ".join(_broken(setting)) or "the order is the blog's"
        run = setting.results[0].configuration
        yield (
            f"{run.network_name}, {run.epochs} epochs: best epoch {ours}, in the blog (WRN-28-8, "
            f"30 epochs) {theirs}; {order}"
        )


def _broken(setting: Setting) -> list[str]:
    """Where the means of two arms' best epochs are not in the blog's order."""
    return [
        f"`{low}` is below `{high}` in the blog and not here"
        for low, high in _ordered(setting)
        if setting.mean(low, "best") >= setting.mean(high, "best")
    ]


def _ordered(setting: Setting) -> Iterator[tuple[str, str]]:
    """Pairs of arms of which the blog's first is surely the lower one."""
    if reference := blog(setting.dataset):
        for low, high in permutations([arm for arm in BLOGS_ARMS if arm in setting.arms], 2):
            if reference.curves[high].best - reference.curves[low].best > READ_OFF:
                yield low, high


def _answer(every: Iterable[Setting]) -> str:
    """The title's question over all settings, where there are seeds enough for intervals."""
    found = [setting.paired("mix", CONTROL, "last") for setting in every]
    signs = [paired.sign for paired in found if paired and paired.sign is not None]
    if not signs:
        return ""
    ahead, level, behind = (signs.count(sign) for sign in (1, 0, -1))
    return (
        "Is a mask a better start for the weights than none? Against the same further training of "
        f"the weights without a mask, in {len(signs)} settings with several seeds (last epoch, "
        f"95 % intervals): better in {ahead}, not told apart in {level}, worse in {behind}."
    )


def _reading(setting: Setting) -> Iterator[str]:
    """What the control says about the blog's conclusion; where the intervals lie decides."""
    gains = {
        1: "The blog's gain of `mix` over `weights` is there",
        0: "The blog's gain of `mix` over `weights` does not show in these seeds",
        -1: "The blog's gain is turned round, `mix` is below `weights`",
    }
    reasons = {
        1: "and the mask gives more than the same further training without one",
        0: "and these seeds cannot tell the mask from the same further training without one",
        -1: "and the same further training without a mask gives more",
    }
    for epoch in EPOCHS:
        gain, rest = (setting.paired("mix", other, epoch) for other in ("weights", CONTROL))
        if gain and rest and gain.sign is not None and rest.sign is not None:
            yield (
                f"{epoch} epoch, `mix` - `weights` is {gain}, `mix` - `{CONTROL}` is {rest}. "
                f"{gains[gain.sign]}, {reasons[rest.sign]}"
            )


def _spread(setting: Setting) -> Iterator[str]:
    several = [arm for arm, runs in setting.arms.items() if len(runs) > 1]
    for epoch in EPOCHS:
        found = [setting.accuracies(arm, epoch).values() for arm in several]
        if found:
            widest = 100 * max(max(values) - min(values) for values in found)
            yield f"{epoch} epoch, the seeds of one arm lie up to {widest:.2f} points apart"


def _winner(setting: Setting) -> Iterator[str]:
    """The estimator with the best mask arm, and whether the seeds tell it from the others."""
    for epoch in EPOCHS:
        ranked = sorted(setting.masks, key=lambda arm: -setting.mean(arm, epoch))
        leads = [
            f"of `{other}` by {lead}" + (" (not told apart)" if lead.sign == 0 else "")
            for other in ranked[1:]
            if (lead := setting.paired(ranked[0], other, epoch))
        ]
        if leads:
            yield f"{epoch} epoch, `{ranked[0]}` is ahead {' and '.join(leads)}"


def _kinds(every: Sequence[Setting]) -> str:
    rows = []
    for dataset in dict.fromkeys(setting.dataset for setting in every):
        if reference := blog(dataset):
            rows.append([DATASETS[dataset], "the blog", *shares(reference.utilisation)])
        rows += [
            [DATASETS[dataset], f"`{setting.study}`, `{arm}`", *shares(mean_of_seeds(setting, arm))]
            for setting in every
            if setting.dataset == dataset
            for arm in setting.masks
        ]
    return _table(["data set", "masks", *KINDS], rows)


def _claim(setting: Setting) -> Iterator[str]:
    """The blog's two sentences on utilisation, beside the same of ours."""
    reference = blog(setting.dataset)
    if reference is None or "mask" not in setting.arms:
        return
    ours, theirs = mean_of_seeds(setting, "mask"), reference.utilisation
    (small, large), (small_there, large_there) = map(small_and_large, (ours, theirs))
    how = "far less" if small < large / 2 else "less, though not half," if small < large else "more"
    yield (
        f"{layer_range(ours)} % of a layer is masked, in the blog {layer_range(theirs)} %. Small "
        f"layers are masked {how} than the 3x3 convolutions, {100 * small:.1f} % against "
        f"{100 * large:.1f} %; in the blog {100 * small_there:.1f} % against "
        f"{100 * large_there:.1f} %"
    )


def _deviations(setting: Setting) -> Iterator[str]:
    """Every field of the configurations that is not the blog's, with the arms it holds for."""
    nothing = {"train_images": "all", "score_lr": "`lr`", "init": "the estimator's own"}
    found: dict[str, dict[str, None]] = {}
    for result in setting.results:
        ours = result.configuration
        theirs = replace(
            Configuration(setting.dataset).for_arm(ours.arm),
            estimator=ours.estimator,
            seed=ours.seed,
        )
        for name in (field.name for field in fields(ours)):
            here, there = getattr(ours, name), getattr(theirs, name)
            if here != there and (here, there) != (False, None):  # `rescale`, where nothing is
                text = f"`{name}` {here} ({nothing.get(name) if there is None else there})"
                found.setdefault(text, {})[arm_name(ours)] = None
    everywhere = [text for text, arms in found.items() if len(arms) == len(setting.arms)]
    somewhere = [
        f"{text} in {', '.join(f'`{arm}`' for arm in arms)}"
        for text, arms in found.items()
        if text not in everywhere
    ]
    if found:
        yield "; ".join([", ".join(everywhere), *somewhere] if everywhere else somewhere)


def _short_runs(setting: Setting) -> Iterator[str]:
    """What fewer steps do to running averages and to an arm with a small learning rate."""
    whole = TRAINING_IMAGES.get(setting.dataset)
    if whole is None:
        return
    ours, blogs = setting.results[0].configuration, Configuration(setting.dataset)
    steps = math.ceil((ours.train_images or whole) / ours.batch_size)
    blogs_steps = math.ceil(whole / blogs.batch_size)
    yield (
        f"{steps} steps an epoch, in the blog {blogs_steps}. After the first epoch batch norm's "
        f"averages still are {100 * NORM_KEEPS**steps:.0f} % what they started as, in the blog "
        f"{100 * NORM_KEEPS**blogs_steps:.0f} %"
    )
    if "mix" in setting.arms:
        mix = next(iter(setting.arms["mix"].values())).configuration
        reach = steps * mix.epochs * mix.first_lr
        blogs_reach = blogs_steps * blogs.epochs * blogs.for_arm("mix").first_lr
        yield (
            f"Adam moves a weight by about its learning rate a step at most, which makes "
            f"{reach:.2g} in the whole of `mix`, in the blog {blogs_reach:.2g}"
        )


def _learning_rates(every: Sequence[Setting]) -> str:
    """The arms that were run from the same starts with two learning rates, `weights` before."""
    pairs = [
        (one, other)
        for one, other in permutations(every, 2)
        if (one.study, one.dataset) == (STUDIES.get(other.study), other.dataset)
    ]
    return _table(
        ["data set", "`weights`", "arm", "learning rate", "accuracy", "learning rate", "accuracy"],
        (
            [
                DATASETS[one.dataset],
                f"{one.mean('weights', 'best'):.4f}",
                f"`{arm}`",
                *(
                    cell
                    for setting in (one, other)
                    for cell in (
                        f"{next(iter(setting.arms[arm].values())).configuration.mix_lr:g}",
                        f"{setting.mean(arm, 'best'):.4f}",
                    )
                ),
            ]
            for one, other in pairs
            for arm in other.arms
            if arm in one.arms
        ),
    )


def _misses(setting: Setting) -> Iterator[str]:
    """What is further from the blog than its figures could be read, or in another order."""
    reference = blog(setting.dataset)
    if reference is None:
        return
    gaps = {
        arm: setting.mean(arm, "best") - reference.curves[arm].best
        for arm in BLOGS_ARMS
        if arm in setting.arms
    }
    far = [f"`{arm}` {points(gap)}" for arm, gap in gaps.items() if abs(gap) > READ_OFF]
    if far:
        yield f"the best epoch's distance from the blog's is, in points, {', '.join(far)}"
    yield from _broken(setting)
