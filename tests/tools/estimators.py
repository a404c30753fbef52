"""The estimators that tests go through. A new one is a line of one list."""

import pytest

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

# A score decides about its own entry alone.
ELEMENTWISE = [
    Threshold(),
    Bernoulli(),
    IntermediateSampling(),
    Piggyback(),
    HardConcrete(),
    Concrete(),
]
# Scores compete: the number of kept entries is fixed.
RANKED = [
    TopK(0.4),
    TopK(0.4, absolute=False),
    TopK(1.0),
    NOfM(),
    NOfM(1, 2, absolute=False),
]
# The same with one score per block: fewer scores than entries.
RANKED_BLOCKS = [Blocks(TopK(0.5), (2, None)), Blocks(TopK(0.3), (2, 2))]
# Scores of another shape, one per pattern.
PATTERNS = [ConcreteNOfM()]
# Fields that differ from their defaults, for tests of copies and files.
OTHER_SETTINGS = [
    Threshold(0.3),
    Bernoulli(0.6),
    IntermediateSampling(0.2, 0.4),
    Piggyback(0.25),
    HardConcrete(0.5, -0.2, 1.3),
    Concrete(0.3, hard=False),
    NOfM(3, None),
    ConcreteNOfM(1, 2, temperature=0.5, scale=100.0, hard=True),
    Blocks(Threshold(0.3), (2, 4)),
    Blocks(ConcreteNOfM(1, 2), (None, 1)),
]
ALL = [*ELEMENTWISE, *RANKED, *RANKED_BLOCKS, *PATTERNS, *OTHER_SETTINGS]

# Hardly ever 0 or 1, where a score gets no gradient: every score learns in each step.
LEARNING_EVERYWHERE = [
    HardConcrete(gamma=-1e-3, zeta=1.001) if estimator == HardConcrete() else estimator
    for estimator in ELEMENTWISE
]

each_elementwise = pytest.mark.parametrize("estimator", ELEMENTWISE, ids=repr)
each_learning_everywhere = pytest.mark.parametrize(
    "estimator", LEARNING_EVERYWHERE, ids=repr
)
each_ranked = pytest.mark.parametrize("estimator", RANKED, ids=repr)
each_ranked_or_blocks = pytest.mark.parametrize(
    "estimator", [*RANKED, *RANKED_BLOCKS], ids=repr
)
each_estimator = pytest.mark.parametrize("estimator", [*ELEMENTWISE, *RANKED], ids=repr)


class HalfKept:
    """An estimator that can only keep half of the entries, the largest scores."""

    def __call__(self, scores):
        return self.mode(scores).to(scores.dtype)

    def mode(self, scores):
        return scores > scores.median()

    def __repr__(self):
        return "HalfKept()"
