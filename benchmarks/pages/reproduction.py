"""docs/reproduction.md: what became of the blog's question, from the committed results alone."""

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.atomic import replacing
from benchmarks.pages.facts import facts

RESULTS = Path(__file__).parents[1] / "results"
DOCS = Path(__file__).parents[2] / "docs"
FIELD = re.compile(r"\{([^{}]+)\}")

# The page. A {field} stands for a fact of `facts`. A paragraph that asks for one that the results
# do not give is left out, and so is a section that gets none of those it asks for.
PAGE = """
# The blog's question

The post "Super-Masks: Are They Good Initializations?" (2019-11-02) learns a binary mask over the
frozen weights of a random network (`mask`), trains the weights of the same network without one
(`weights`), and trains the weights under the frozen mask of the first (`mix`). It asks how far a
mask alone gets, and whether a mask is a better start than none. This page is what came of running
it again with masktorch. `python -m benchmarks reproduction` writes it from the result files in
`benchmarks/results`; every number in it, and every sentence that depends on one, is computed there.

## In short

{answer}

{orders}

## What was run, and on which machine

{runs}

Each line is a folder of `benchmarks/results` and a data set. Hours are those of training and
evaluation, on cores that did other work besides. The next table has the command of every run.

## The blog's numbers beside ours

{table}

The blog's numbers are read off its published figures: 0.01 either way on an accuracy, 0.005 on a
masked fraction. It has one run of each arm.

### Training curves and mask utilisation

{figures}

## What is masked

The blog reports 2.6 to 16.4 % of a layer masked on CIFAR-10 and 1.8 to 11.6 % on MNIST, and far
less in the small layers (1x1 shortcuts and the classifier). Below, the share of all parameters of a
kind that is masked, and in brackets the least and the most of one layer, each layer the mean of its
seeds.

{kinds}

{claims}

## Is a mask a better start?

The blog's `mix` has had twice the epochs of its `weights`, and a learning rate a thousand times
smaller in the second half. The arm that would tell what the mask itself gives is missing there.
Here it is: `weights-then-weights` trains the weights, and goes on from their best epoch exactly as
`mix` goes on from the mask's. Differences are in percentage points of test accuracy, paired by
seed, since the arms of a seed share their initial weights, and `mix` and its control meet the same
images in the same order.

{differences}

A 95 % interval is Student's, over the seeds. With few seeds it is wide; that it holds 0 says that
these runs cannot tell, not that there is nothing.

{readings}

## Which estimator

In the mask arm alone; `mask` is `Threshold`, the blog's own.

{estimators}

{winners}

### The learning rates of the scores

The threshold keeps the blog's 0.01. For the other two the best of three was taken, 0.1, on training
images held out (`benchmarks/results/sweep/wrn.json`); it is the largest that was tried.

{sweep wrn}

## Learned supermasks in the literature

{literature}

## Intermediate sampling's own toy

Intermediate sampling was published with a toy: recover a random categorical distribution from
single draws, where it is said to converge at once and stay, and Gumbel-softmax to be slow or to
drift. In each step here a target is drawn from the true distribution and a category from the
learned one, and the step descends `KL(target || draw)`. The loss matters: with this one the
expected gradient of intermediate sampling is that of `KL(true || learned)` by the logits, but for a
factor, whatever its `alpha`; with the squared distance of the two draws it would not be zero at the
truth (`benchmarks/categorical.py` has the argument). There are {toy categories} categories and
{toy distributions} random distributions, and the logits start at zero and follow plain gradient
descent. The numbers are `KL(true || learned)`, the mean of the distributions (lowest to highest).

{toy table}

Made by {toy origin}.

![Divergence over steps, a panel per step size](figures/categorical.png)

- *It stays*: confirmed. With step 0.1 its mean has a lowest of
  {intermediate sampling, 0.1, lowest} on the way and ends at
  {intermediate sampling, 0.1, 30000}: the noise of single draws, of which a smaller step leaves
  less ({intermediate sampling, 0.01, 30000} with 0.01).
- *At once*: not confirmed. From {intermediate sampling, 0.1, 1} after the first step it takes
  about a thousand steps of 0.1 to settle; with 0.001 it is at
  {intermediate sampling, 0.001, 30000} after 30,000 and still falls. Its gradient is as
  bounded as any other's, so the step decides how fast it goes.
- *Gumbel-softmax drifts*: confirmed for temperature 10. With step 0.1 its mean comes down to
  {Gumbel-softmax, T = 10, 0.1, lowest} and ends at {Gumbel-softmax, T = 10, 0.1, 30000}. It
  comes to rest where the mean of its *soft* draws is the truth, and at a high temperature that is a
  distribution far too peaked. At temperature 1 it stops at
  {Gumbel-softmax, T = 1, 0.001, 30000} with the smallest step, for the same reason.
- *Gumbel-softmax is slow*: confirmed for temperature 10, not for 0.1. Its gradient has a factor of
  1/T, so that at temperature 0.1 a step is worth twenty of intermediate sampling. With step 0.1
  that is too much ({Gumbel-softmax, T = 0.1, 0.1, 30000} at the end); with 0.001 it is at
  {Gumbel-softmax, T = 0.1, 0.001, 10000} after 10,000 steps and at
  {Gumbel-softmax, T = 0.1, 0.001, 30000} after 30,000, where intermediate sampling with 0.01 is
  at {intermediate sampling, 0.01, 10000} and {intermediate sampling, 0.01, 30000}. Cold,
  and with a step to match, it does as well.

So what intermediate sampling has over Gumbel-softmax in this toy is that it has no bias to trade
for noise, not that it is faster.

## What is different from the original

From the blog's settings, as recorded with each result:

{deviations}

In every run:

- PyTorch, not Keras. What Keras's defaults decide is taken over: Glorot-uniform kernels, biases of
  zero, batch norm's epsilon 1e-3 and momentum, Adam's epsilon 1e-7.
- MNIST is scaled to [-1, 1]. The original code leaves out a division, so that its digits run from
  -1 to 509 (`--faithful-scaling` brings that back).
- The blog's "val" is the test set, and it keeps the epoch that is best on it. So do the "best"
  numbers here, and so does the state that `mix` and `weights-then-weights` start from. The last
  epoch, on which nothing was selected, stands beside it.
- Batch norm's running averages, which evaluation uses, take over 1 % per step (Keras's momentum of
  0.99). In short runs they lag behind the weights, which can lower test accuracy in the first
  epochs and leaves training accuracy alone.
- The schedule is the blog's: the learning rate falls to a tenth at every second epoch in a row
  without a better training accuracy. With fewer and shorter epochs it has less to act on.
- Batch order, augmentation and initial weights are random, with seeds of ours.

### What fewer steps mean

{short runs}

## Where it does not come out as in the blog

{misses}

Three things can be behind a difference. *The original*: one run per arm, with numbers read off its
pictures. *Our deviations*: they are listed above. *Noise*: below. A mistake of ours would be a
fourth; against it stand the tests, which hold the network to the published parameter counts, the
schedule to Keras's, and each estimator's gradient to its closed form.

### Why `mix` gains less here

In the reduced design 1e-5 is too little for so few steps, as computed above. The same arms were run
once more with 1e-3 in its place, from the same starts (`reduced-1e-3`). Best epoch, mean of the
seeds:

{learning rates}

Part of what the second phase adds is hardly training. On CIFAR-10 `weights-then-weights` goes from
`weights` at {reduced cifar10 weights, best} to {reduced cifar10 weights-then-weights, first} in one
epoch at 1e-5, 40 steps in which a weight moves by about 0.0004 at most. Weights that stand still
let batch norm's averages catch up is our reading of it, not measured apart. It would benefit `mix`
and its control, and not `weights`: another reason to have the control.

### Noise

Whatever is smaller than the seeds of one arm lie apart is no finding of one run.

{spreads}
"""


def write(results: Path, docs: Path) -> Path:
    """Draw the figures into `docs`/figures and write `docs`/reproduction.md; return its path."""
    path = docs / "reproduction.md"
    text = fill(PAGE, facts(results, docs / "figures"))
    with replacing(path) as partial:
        partial.write_text(text)
    return path


def fill(template: str, known: Mapping[str, str]) -> str:
    """Put the facts in their places and leave out what asks for unknown ones."""
    kept = []
    for section in re.split(r"\n(?=#)", template.strip()):
        asked = FIELD.findall(section)
        if asked and not any(field in known for field in asked):
            continue
        kept += [
            FIELD.sub(lambda found: known[found[1]], paragraph)
            for paragraph in section.strip().split("\n\n")
            if all(field in known for field in FIELD.findall(paragraph))
        ]
    return "\n\n".join(kept) + "\n"
