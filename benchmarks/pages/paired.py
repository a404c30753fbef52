"""Differences between two arms, seed by seed."""

from dataclasses import dataclass
from statistics import mean, stdev

# Student's t, two-sided 95 %, for 2 seeds, 3, ...; more seeds take the last, a little too wide.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Paired:
    """Two arms of a seed share initial weights and images, so that their difference says more than
    the two apart."""

    differences: tuple[float, ...]  # of accuracies, one per seed

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """mean -+ t * s / sqrt(n); None for a single seed."""
        n = len(self.differences)
        if n == 1:
            return None
        half = T_95[min(n - 2, len(T_95) - 1)] * stdev(self.differences) / n**0.5
        return self.mean - half, self.mean + half

    @property
    def sign(self) -> int | None:
        """1 or -1 where the interval lies above or below 0, 0 where it holds 0."""
        if self.interval is None:
            return None
        low, high = self.interval
        return 1 if low > 0 else -1 if high < 0 else 0

    def __str__(self) -> str:
        text = f"{points(self.mean)} points"
        if self.interval is None:
            return f"{text} (one seed)"
        low, high = min(self.differences), max(self.differences)
        return (
            f"{text} ({points(low)} to {points(high)} over {len(self.differences)} seeds; "
            f"95 % interval {points(self.interval[0])} to {points(self.interval[1])})"
        )


def points(difference: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * difference:+.2f}"
