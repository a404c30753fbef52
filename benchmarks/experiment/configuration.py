"""Everything that decides the numbers of one arm run, and the arms there are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from tyro.conf import Suppress

from benchmarks import BenchmarkError

# The arms in the order in which they can run; and the one from whose best epoch one goes on.
STARTS_FROM = {
    "mix": "mask",
    "weights-then-weights": "weights",
    "ticket": "weights",
    "random-mix": "mask",
    "random-ticket": "weights",
}
ARMS = ("mask", "weights", *STARTS_FROM)
Images: TypeAlias = Literal["digits", "mnist", "cifar10"]
Method: TypeAlias = Literal[
    "threshold", "bernoulli", "intermediate", "topk", "nofm", "piggyback", "hard-concrete",
    "concrete",
]  # fmt: skip
SCORED = ("mask", "mix")  # their masks follow from scores
LEARNED = (*SCORED, "random-mix")  # theirs from scores that an estimator trained
PRUNED = ("ticket", "random-ticket")  # theirs from the largest trained weights
MASKED = (*LEARNED, *PRUNED)
# The arms that have a use for a field; in the others it is what UNUSED says, or else None.
USED_BY = {
    "estimator": LEARNED, "init": LEARNED, "rescale": LEARNED, "score_lr": LEARNED,
    "schedule_density": LEARNED, "density": MASKED, "budget": MASKED, "mix_lr": tuple(STARTS_FROM),
}  # fmt: skip
UNUSED = {"budget": "none", "schedule_density": "none", "rescale": False}


@dataclass(frozen=True)
class Configuration:
    """One arm run; the defaults are the blog's. The command line of `run` is made from these fields
    and their comments."""

    dataset: Images  # digits come with scikit-learn; for the others see `download`.
    arm: Suppress[str] = "mask"
    network: Literal["wrn", "lenet-300-100", "conv-2", "conv-4", "conv-6"] = "wrn"
    """wrn: the blog's wide residual network."""
    depth: int | None = 28  # Of the wrn: 6n + 4 layers.
    width: int | None = 8  # Of the wrn: channels / 16.
    weights: Literal["glorot", "signed-constant", "signed-kaiming"] = "glorot"
    """Before training. signed-constant: sign(W) * std(W) of each glorot kernel W. signed-kaiming:
    sign(W) * sqrt(2 / fan_in), and / sqrt(density) under a mask that has one."""
    estimator: Method | None = "threshold"  # How the mask follows from its scores.
    density: float | None = None
    """Kept by topk, and by ticket and its control. None: the estimator's own."""
    budget: Literal["none", "overall", "erk"] = "none"
    """How topk's density is shared. none: in each tensor. overall: one cut for all, at every epoch.
    erk: by the tensors' shapes."""
    schedule_density: Literal["none", "cubic", "geometric"] = "none"
    """How topk's density falls from 1, an epoch at a time, over three quarters of the epochs."""
    init: float | Literal["normal"] | None = None
    """Where scores start. normal: standard normal. None: the estimator's own."""
    rescale: bool = False  # Divide the weights under the mask by its density.
    epochs: int = 30  # Per arm.
    batch_size: int = 128
    lr: float = 1e-2  # Adam's, arms mask and weights.
    score_lr: float | None = None  # Of the scores, arm mask. None: lr.
    mix_lr: float | None = 1e-5  # Adam's, arms that go on from another.
    schedule: Literal["plateau", "cosine"] = "plateau"
    """plateau: Keras's, on the training accuracy. cosine: down to 0."""
    seed: int = 0  # Of all randomness.
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, faster on some machines."""
    train_images: int | None = None  # Train on the first so many only. None: all.
    held_out: int | None = None
    """Measure on so many of the last training images, held out. None: on the test set."""
    image_size: int | None = None  # Averaged to so many pixels a side. None: as they are.
    faithful_scaling: bool = False  # 2x - 1 of the bytes, -1 to 509, as the blog has MNIST.
    augmentation: bool = True  # Flip, rotate and shift the training images as the blog does.

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Configuration":
        """From a result or a checkpoint; a field that is younger than the file has its default."""
        return cls(**{**content, "rescale": bool(content.get("rescale"))})

    def check(self) -> None:
        """Raise for what no run can be made of."""
        for name in ("density", "budget", "schedule_density"):
            given = getattr(self, name) not in (None, "none")
            if given and self.arm in LEARNED and self.estimator != "topk":
                raise BenchmarkError(
                    f"--{name} is about --estimator topk; found --estimator {self.estimator}."
                )
        if self.arm in PRUNED and self.density is None:
            raise BenchmarkError(f"The arm {self.arm} expects a --density, found none.")

    def for_arm(self, arm: str) -> "Configuration":
        unused = [name for name, arms in USED_BY.items() if arm not in arms]
        if self.network != "wrn":
            unused += ["depth", "width"]
        empty: dict[str, Any] = {name: UNUSED.get(name) for name in unused}
        return replace(self, arm=arm, **empty)

    @property
    def start(self) -> "Configuration | None":
        """Of the run from whose best epoch this one goes on."""
        return self.for_arm(STARTS_FROM[self.arm]) if self.arm in STARTS_FROM else None

    @property
    def blogs(self) -> "Configuration":
        """This arm on this data set as the blog has it."""
        return Configuration(self.dataset).for_arm(self.arm)

    def changes(self, other: "Configuration", *but: str) -> dict[str, tuple[Any, Any]]:
        """The fields, `but` for these, that differ: what each is here and in the other."""
        here, there = asdict(self), asdict(other)
        return {
            name: (here[name], there[name])
            for name in here
            if here[name] != there[name] and name not in but
        }

    @property
    def first_lr(self) -> float:
        """Where this arm's learning rate starts."""
        return self.lr if self.mix_lr is None else self.mix_lr

    @property
    def network_name(self) -> str:
        return f"wrn-{self.depth}-{self.width}" if self.network == "wrn" else self.network

    @property
    def name(self) -> str:
        """The stem of this run's files: all that is not the blog's."""
        named = ("network", "depth", "width", "estimator", "seed")
        changes = [f"{name}={here}" for name, (here, _) in self.changes(self.blogs, *named).items()]
        parts = [self.dataset, self.network_name, self.arm, self.estimator, *changes]
        return "-".join([*(part for part in parts if part), f"seed{self.seed}"])
