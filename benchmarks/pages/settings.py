"""The results of one folder and data set: by arm, by seed, and one arm against another."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from benchmarks.experiment.configuration import ARMS, Configuration, Images
from benchmarks.experiment.results import Result
from benchmarks.pages.paired import Paired

EPOCHS = ("best", "last")


@dataclass(frozen=True)
class Setting:
    study: str  # the folder
    dataset: Images
    arms: dict[str, dict[int, Result]]  # of one configuration each, but for the seed

    @property
    def results(self) -> list[Result]:
        return [result for runs in self.arms.values() for result in runs.values()]

    @property
    def masks(self) -> list[str]:
        """The mask arm under each estimator."""
        return [arm for arm in self.arms if arm.startswith("mask")]

    def accuracies(self, arm: str, epoch: str) -> dict[int, float]:
        """Test accuracy by seed, at the best or the last epoch."""
        return {
            seed: {"best": result.best, "last": result.last}[epoch].test_accuracy
            for seed, result in self.arms[arm].items()
        }

    def mean(self, arm: str, epoch: str) -> float:
        return mean(self.accuracies(arm, epoch).values())

    def paired(self, arm: str, other: str, epoch: str) -> Paired | None:
        """`arm` less `other` over the seeds that both have; None where they have none."""
        if not {arm, other} <= self.arms.keys():
            return None
        one, two = self.accuracies(arm, epoch), self.accuracies(other, epoch)
        seeds = sorted(one.keys() & two.keys())
        return Paired(tuple(one[seed] - two[seed] for seed in seeds)) if seeds else None


def settings(study: str, results: list[Result]) -> Iterator[Setting]:
    """One per data set; the arms in the order in which they can run."""
    for dataset in dict.fromkeys(result.configuration.dataset for result in results):
        arms: dict[str, dict[int, Result]] = {}
        for result in sorted(results, key=lambda result: ARMS.index(result.configuration.arm)):
            if result.configuration.dataset == dataset:
                runs = arms.setdefault(arm_name(result.configuration), {})
                runs[result.configuration.seed] = result
        yield Setting(study, dataset, arms)


def arm_name(configuration: Configuration) -> str:
    """Thresholds are the blog's, so that with them an arm has its plain name."""
    if configuration.estimator in (None, "threshold"):
        return configuration.arm
    return f"{configuration.arm} ({configuration.estimator})"
