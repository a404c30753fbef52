"""The published supermasks, with the best estimator; and what makes the difference, one change at
a time."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import mean

from benchmarks.experiment.configuration import Configuration
from benchmarks.studies import which_estimator
from benchmarks.studies.study import Results, Study


def best(results: Results) -> Configuration | None:
    """The setting of the most accurate mask of `which-estimator`, once all its runs are done."""
    done = {r.configuration: r.last.test_accuracy for r in results(which_estimator.NAME)}
    wanted = list(which_estimator.runs(results))
    if not done or any(configuration not in done for configuration in wanted):
        return None
    groups: dict[Configuration, list[float]] = {}
    for configuration in wanted:
        if configuration.held_out is None:
            groups.setdefault(replace(configuration, seed=0), []).append(done[configuration])
    return max(groups, key=lambda setting: mean(groups[setting]))


def ablations(base: Configuration) -> Iterator[Configuration]:
    """One change each."""
    yield base
    yield replace(base, epochs=100)
    yield replace(base, rescale=not base.rescale)
    yield replace(base, batch_size=64)
    yield replace(base, schedule="plateau")
    yield replace(base, weights="glorot")
    yield replace(base, weights="signed-constant")
    if base.estimator == "topk":
        for density in (0.7, 0.5, 0.3, 0.1):
            yield replace(base, density=density)
        yield replace(base, budget="overall")
        yield replace(base, schedule_density="cubic")


def runs(results: Results) -> Iterator[Configuration]:
    base = best(results)
    if base is None:
        return
    for seed in range(3):
        yield from (replace(changed, seed=seed) for changed in ablations(base))
    images = replace(base, dataset="cifar10", epochs=20, precision="bfloat16", augmentation=True)
    for network in ("conv-2", "conv-4", "conv-6"):
        yield replace(images, network=network)


STUDY = Study("supermasks", "Does a mask alone reach the published supermasks?", runs)
