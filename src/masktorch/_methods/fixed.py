"""Fixed masks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fixed:
    """A mask that is given, not learned: its scores are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    mode = __call__
