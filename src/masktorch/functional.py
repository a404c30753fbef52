"""From scores to masks, each method with the gradient it gives the scores.

A mask `m` in {0, 1} has no useful derivative. A method is therefore two formulas: how
`m` is chosen from the scores `s`, and a *rule* for `dL/ds`, given `g = dL/dm`. `sigma`
is the logistic function.

Each function returns the mask, in the scores' dtype. Given a `weight`, it returns the
product `weight * m` in the weight's dtype, in fewer passes and with the same gradients:
with `G` the gradient of the product, the rule gets `g = G * weight` and the weight gets
`G * m`. Scores and weight may differ in dtype, and in shape if they broadcast.
"""

from masktorch._methods.bernoulli import bernoulli
from masktorch._methods.concrete import concrete
from masktorch._methods.concrete_n_of_m import concrete_n_of_m
from masktorch._methods.hard_concrete import hard_concrete
from masktorch._methods.intermediate_sampling import intermediate
from masktorch._methods.n_of_m import n_of_m
from masktorch._methods.piggyback import piggyback
from masktorch._methods.threshold import threshold
from masktorch._methods.top_k import topk

__all__ = [
    "bernoulli",
    "concrete",
    "concrete_n_of_m",
    "hard_concrete",
    "intermediate",
    "n_of_m",
    "piggyback",
    "threshold",
    "topk",
]
