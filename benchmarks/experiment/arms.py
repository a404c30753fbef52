"""The arms: what each trains, under which mask, and from where it starts.

A new arm is one entry in `ARMS`, after the arm it starts from.
"""

from dataclasses import dataclass
from enum import Enum, auto


class MaskOrigin(Enum):
    NO_MASK = auto()
    OWN_SCORES = auto()  # scores that this arm trains
    FROZEN_SCORES = auto()  # the scores of the arm it starts from, frozen
    STARTS_MASK = auto()  # the mask that those scores give, fixed
    # Keeps the largest weights of the arm it starts from, fixed.
    LARGEST_WEIGHTS = auto()
    RANDOM = auto()  # fixed where it does not move


class MaskMove(Enum):
    """How a mask moves while weights train under it."""

    SET = auto()  # drop small weights, grow random ones
    RIGL = auto()  # drop small weights, grow where the dense gradient is large
    PRUNE = auto()  # keep the largest weights, fewer and fewer


@dataclass(frozen=True)
class Arm:
    name: str
    help: str  # on the command line
    label: str  # in a figure
    colour: str  # in a figure
    mask: MaskOrigin = MaskOrigin.NO_MASK
    moves: MaskMove | None = None
    shuffles_mask: bool = False  # random, with the same density in each tensor
    starts_from: str | None = None  # the arm whose best epoch it needs
    continues_training: bool = False  # from that epoch's state; else: initial weights

    @property
    def has_mask(self) -> bool:
        return self.mask is not MaskOrigin.NO_MASK

    @property
    def trains_scores(self) -> bool:
        return self.mask is MaskOrigin.OWN_SCORES

    @property
    def has_scores(self) -> bool:
        """Whether its model has scores; a fixed mask does not."""
        return self.mask in (MaskOrigin.OWN_SCORES, MaskOrigin.FROZEN_SCORES)

    @property
    def uses_estimator(self) -> bool:
        """Whether an estimator has made its mask, in this arm or in the one before."""
        return self.has_scores or self.mask is MaskOrigin.STARTS_MASK

    @property
    def needs_density(self) -> bool:
        """Whether its density has no estimator to come from."""
        return self.mask in (MaskOrigin.LARGEST_WEIGHTS, MaskOrigin.RANDOM)


CONTROL = "weights-then-weights"  # what `mix` has to beat: as many epochs, no mask

_ARMS = (
    Arm(
        name="mask",
        help="scores train, weights stay random",
        label="a mask alone (mask)",
        colour="tab:blue",
        mask=MaskOrigin.OWN_SCORES,
    ),
    Arm(
        name="weights",
        help="weights train, no mask",
        label="weights alone (weights)",
        colour="tab:orange",
    ),
    Arm(
        name="mix",
        help="weights train under the frozen mask of mask's best epoch",
        label="then weights under that mask (mix)",
        colour="tab:green",
        mask=MaskOrigin.FROZEN_SCORES,
        starts_from="mask",
        continues_training=True,
    ),
    Arm(
        name=CONTROL,
        help="weights train on from weights' best epoch, as in mix but without a mask",
        label=f"then weights once more, no mask ({CONTROL})",
        colour="tab:red",
        starts_from="weights",
        continues_training=True,
    ),
    Arm(
        name="ticket",
        help="initial weights train under a mask of weights' largest trained weights",
        label="the largest trained weights, from the start again (ticket)",
        colour="tab:purple",
        mask=MaskOrigin.LARGEST_WEIGHTS,
        starts_from="weights",
    ),
    Arm(
        name="random-mix",
        help="initial weights train under a random mask with the densities of mask's",
        label="random, as dense as the mask (random-mix)",
        colour="tab:olive",
        mask=MaskOrigin.STARTS_MASK,
        shuffles_mask=True,
        starts_from="mask",
    ),
    Arm(
        name="random-ticket",
        help="initial weights train under a random mask with the densities of ticket's",
        label="random, as dense as the ticket (random-ticket)",
        colour="tab:pink",
        mask=MaskOrigin.LARGEST_WEIGHTS,
        shuffles_mask=True,
        starts_from="weights",
    ),
    Arm(
        name="static",
        help="initial weights train under a random mask",
        label="a random mask (static)",
        colour="tab:gray",
        mask=MaskOrigin.RANDOM,
    ),
    Arm(
        name="set",
        help="weights train under a mask that drops small weights, grows random ones",
        label="SET (set)",
        colour="tab:brown",
        mask=MaskOrigin.RANDOM,
        moves=MaskMove.SET,
    ),
    Arm(
        name="rigl",
        help="as set, but grows where the dense gradient is largest",
        label="RigL (rigl)",
        colour="tab:cyan",
        mask=MaskOrigin.RANDOM,
        moves=MaskMove.RIGL,
    ),
    Arm(
        name="gradual",
        help="weights train while a mask keeps fewer and fewer of the largest",
        label="gradual magnitude pruning (gradual)",
        colour="black",
        mask=MaskOrigin.RANDOM,
        moves=MaskMove.PRUNE,
    ),
)
ARMS = {arm.name: arm for arm in _ARMS}  # in an order in which they can run
