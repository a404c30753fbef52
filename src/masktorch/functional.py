"""From scores to masks, each method with the gradient it gives the scores.

A mask `m` in {0, 1} has no useful derivative. A method is therefore two formulas: how `m` is
chosen from the scores `s`, and a *rule* for `dL/ds` given `g = dL/dm`; `sigma` is the logistic
function. Each returns the mask, or given a `weight` the product `weight * m`, in fewer passes with
the same gradients: with `G` that of the result, `G * weight` reaches the rule, `G * m` the weight.
"""

from masktorch._methods.bernoulli import bernoulli
from masktorch._methods.concrete import concrete
from masktorch._methods.hard_concrete import hard_concrete
from masktorch._methods.intermediate_sampling import intermediate
from masktorch._methods.n_of_m import n_of_m
from masktorch._methods.piggyback import piggyback
from masktorch._methods.threshold import threshold
from masktorch._methods.top_k import topk

__all__ = [
    "bernoulli", "concrete", "hard_concrete", "intermediate", "n_of_m", "piggyback", "threshold",
    "topk",
]  # fmt: skip
