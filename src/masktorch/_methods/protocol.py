"""What masktorch asks of an estimator."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Estimator(Protocol):
    """What `masktorch.wrap` asks of an estimator: two methods.

    `__call__(scores)` gives the mask used in training: floating point, shaped like `scores`,
    differentiable by the estimator's rule. `mode(scores)` gives the deterministic one of
    evaluation, frozen masks, files and reports: bool, the same shape. It may offer more, by name:

    - `draws`: False where the mask of training follows from the scores;
    - `init`: the scores to start from, a number or a function of the weight (else 1.0);
    - `product(scores, weight)`, `mode_product(scores, weight)`: the weight times either mask;
    - `scores_for(scores, mask)`: scores near those given whose `mode` is `mask` (else 1 and 0);
    - `expected(scores)`: the probability that each entry is kept (else the mask of training);
    - `sample(scores)`: a bool mask drawn as in training (else where that one is positive).

    Examples:
        >>> from masktorch import Threshold
        >>> isinstance(Threshold(), Estimator)
        True
    """

    def __call__(self, scores: Tensor, /) -> Tensor: ...
    def mode(self, scores: Tensor, /) -> Tensor: ...
