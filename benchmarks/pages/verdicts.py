"""What several comparisons say together, in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from benchmarks.pages.comparison import Difference, Verdict
from benchmarks.pages.formats import dataset_name


class Conclusion(Enum):
    ALL_BETTER = "all better"
    ALL_WORSE = "all worse"
    SOME_BETTER = "some better, the others undecided"
    SOME_WORSE = "some worse, the others undecided"
    MIXED = "some better, some worse"
    UNDECIDED = "all undecided"


@dataclass(frozen=True)
class Tally:
    """Comparisons of one pair of arms, each with an interval."""

    comparisons: Sequence[Difference]

    def __bool__(self) -> bool:
        return bool(self.comparisons)

    def having(self, verdict: Verdict) -> list[Difference]:
        return [one for one in self.comparisons if one.last.verdict is verdict]

    @property
    def conclusion(self) -> Conclusion:
        better = len(self.having(Verdict.BETTER))
        worse = len(self.having(Verdict.WORSE))
        if better and worse:
            return Conclusion.MIXED
        if better:
            all_better = better == len(self.comparisons)
            return Conclusion.ALL_BETTER if all_better else Conclusion.SOME_BETTER
        if worse:
            all_worse = worse == len(self.comparisons)
            return Conclusion.ALL_WORSE if all_worse else Conclusion.SOME_WORSE
        return Conclusion.UNDECIDED

    def sentence(self, subject: str, reference: str) -> str:
        """Say per data set how far the subject ends above or below the reference.

        On CIFAR-10, SUBJECT end 3.0 to 10.4 points below REFERENCE; on MNIST, these
        runs cannot tell.
        """
        by_dataset: dict[str, list[Difference]] = {}
        for one in self.comparisons:
            by_dataset.setdefault(dataset_name(one.configuration), []).append(one)
        parts = [
            f"on {name}, {_outcome(comparisons, subject, reference)}"
            for name, comparisons in by_dataset.items()
        ]
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."


def _outcome(comparisons: Sequence[Difference], subject: str, reference: str) -> str:
    verdicts = {one.last.verdict for one in comparisons}
    if verdicts == {Verdict.UNDECIDED}:
        return "these runs cannot tell"
    if verdicts not in ({Verdict.BETTER}, {Verdict.WORSE}):
        return "it depends on the setting"
    where = "above" if verdicts == {Verdict.BETTER} else "below"
    distances = [100 * abs(one.last.mean) for one in comparisons]
    nearest, farthest = f"{min(distances):.1f}", f"{max(distances):.1f}"
    span = nearest if nearest == farthest else f"{nearest} to {farthest}"
    return f"{subject} end {span} points {where} {reference}"


def tally(differences: Iterable[Difference], pair: tuple[str, str]) -> Tally:
    """Collect the comparisons of a pair of arms that have more than one seed."""
    return Tally(
        [
            one
            for one in differences
            if one.pair == pair and one.last.verdict is not None
        ]
    )


_SUPERMASK_WINS = (
    "Where these runs can tell, a supermask is the better mask to train under."
)
_TICKET_WINS = (
    "Where these runs can tell, a ticket is the better mask to train under: the "
    "largest trained weights say more about what to keep than scores learned over "
    "random ones."
)
_NO_WINNER = "Neither is the better mask to train under throughout."
_CANNOT_TELL = "These runs cannot tell which is the better mask to train under."
SUPERMASK_OR_TICKET = {
    Conclusion.ALL_BETTER: _SUPERMASK_WINS,
    Conclusion.SOME_BETTER: _SUPERMASK_WINS,
    Conclusion.ALL_WORSE: _TICKET_WINS,
    Conclusion.SOME_WORSE: _TICKET_WINS,
    Conclusion.MIXED: _NO_WINNER,
    Conclusion.UNDECIDED: _CANNOT_TELL,
}
