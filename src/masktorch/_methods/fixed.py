"""Fixed masks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fixed:
    """Return the scores: those of a fixed mask are the mask itself, bool."""

    def __call__(self, scores: Tensor) -> Tensor:
        return scores

    mode = __call__
