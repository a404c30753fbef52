"""Everything that decides the numbers of one run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

from tyro.conf import Suppress

from benchmarks import BenchmarkError
from benchmarks.experiment.arms import ARMS, Arm
from benchmarks.experiment.estimators import (
    ESTIMATORS,
    EstimatorKind,
    EstimatorName,
    names_with_density,
)

DatasetName: TypeAlias = Literal["digits", "mnist", "cifar10"]

# What fields are set to in a run that has no use for them, so that equal runs are
# equal.
WITHOUT_ESTIMATOR = {
    "estimator": None,
    "init": None,
    "rescale": False,
    "score_lr": None,
    "schedule_density": "none",
}
WITHOUT_MASK = {"density": None, "budget": "none"}
WITHOUT_START = {"mix_lr": None}
WITHOUT_WRN = {"depth": None, "width": None}


@dataclass(frozen=True)
class Configuration:
    """One run of one arm; the defaults are the blog's."""

    # The options of `run` and their help are these fields and their comments.
    dataset: DatasetName
    """digits come with scikit-learn; for the others see `download`."""
    arm: Suppress[str] = "mask"
    network: Literal["wrn", "lenet-300-100", "conv-2", "conv-4", "conv-6"] = "wrn"
    """wrn: the blog's wide residual network."""
    depth: int | None = 28  # Layers of the wrn: 6n + 4.
    width: int | None = 8  # Channels of the wrn / 16.
    weights: Literal["glorot", "signed-constant", "signed-kaiming"] = "glorot"
    """Initial weights. signed-constant: sign(W) * std(W) of each glorot kernel W.
    signed-kaiming: sign(W) * sqrt(2 / fan_in), divided by sqrt(density) if the
    configuration has one."""
    estimator: EstimatorName | None = "threshold"  # How scores give a mask.
    density: float | None = None
    """Fraction kept by topk and by arms with a mask of another origin. None: the
    estimator's own."""
    budget: Literal["none", "overall", "erk"] = "none"
    """How tensors share topk's density. none: each has it. overall: one cut for all,
    at every epoch. erk: by the tensors' shapes."""
    schedule_density: Literal["none", "cubic", "geometric"] = "none"
    """How topk's density falls from 1, over three quarters of the epochs."""
    init: float | Literal["normal"] | None = None
    """Initial scores. normal: standard normal. None: the estimator's own."""
    rescale: bool = False  # Divide the weights under the mask by its density.
    epochs: int = 30  # Per arm.
    batch_size: int = 128  # Images per step, over all processes.
    lr: float = 1e-2  # Adam's, in mask and weights.
    score_lr: float | None = None  # Adam's, for the scores in mask. None: lr.
    mix_lr: float | None = 1e-5  # Adam's, in arms that start from another.
    schedule: Literal["plateau", "cosine"] = "plateau"
    """plateau: Keras's, on the training accuracy. cosine: down to 0."""
    seed: int = 0  # Of all randomness.
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast, faster on some machines."""
    train_images: int | None = None  # Train on the first so many only. None: all.
    held_out: int | None = None
    """Measure on so many held-out last training images. None: on the test set."""
    image_size: int | None = None
    """Average the images to so many pixels a side. None: as they are."""
    faithful_scaling: bool = False
    """Scale bytes to 2x - 1, from -1 to 509, as the blog scales MNIST."""
    augmentation: bool = True
    """Flip, rotate and shift the training images as the blog does."""

    @classmethod
    def from_stored(cls, content: Mapping[str, Any]) -> "Configuration":
        """Read a result's or a checkpoint's; fields newer than the file have defaults.

        Old results have None for `rescale` where nothing is masked.
        """
        return cls(**{**content, "rescale": bool(content.get("rescale"))})

    def validate(self) -> None:
        """Raise `BenchmarkError` if no run can be made of these settings."""
        if self.arm_definition.uses_estimator and self.estimator is None:
            raise BenchmarkError(
                f"The arm {self.arm} expects an --estimator, found none."
            )
        if self.arm_definition.uses_estimator and not self.takes_density:
            for name in ("density", "budget", "schedule_density"):
                if getattr(self, name) not in (None, "none"):
                    raise BenchmarkError(
                        f"--{name} is about --estimator "
                        f"{' or '.join(names_with_density())}; "
                        f"found --estimator {self.estimator}."
                    )
        if self.arm_definition.needs_density and self.density is None:
            raise BenchmarkError(f"The arm {self.arm} expects a --density, found none.")

    @property
    def estimator_kind(self) -> EstimatorKind | None:
        return None if self.estimator is None else ESTIMATORS[self.estimator]

    @property
    def takes_density(self) -> bool:
        """Whether its estimator has a density to set."""
        return self.estimator_kind is not None and self.estimator_kind.takes_density

    @property
    def arm_definition(self) -> Arm:
        return ARMS[self.arm]

    def for_arm(self, name: str) -> "Configuration":
        """Return the same settings for another arm, without those it has no use for."""
        arm = ARMS[name]
        unused: dict[str, Any] = {}
        if not arm.uses_estimator:
            unused |= WITHOUT_ESTIMATOR
        if not arm.has_mask:
            unused |= WITHOUT_MASK
        if arm.starts_from is None:
            unused |= WITHOUT_START
        if self.network != "wrn":
            unused |= WITHOUT_WRN
        return replace(self, arm=name, **unused)

    @property
    def start(self) -> "Configuration | None":
        """The run from whose best epoch this one starts; None: initial weights."""
        first = self.arm_definition.starts_from
        return None if first is None else self.for_arm(first)

    @property
    def as_published(self) -> "Configuration":
        """This arm on this data set with the blog's settings."""
        return Configuration(self.dataset).for_arm(self.arm)

    def changes(
        self, other: "Configuration", ignoring: tuple[str, ...] = ()
    ) -> dict[str, tuple[Any, Any]]:
        """Return the fields that differ: (value here, value in the other) by name."""
        here, there = asdict(self), asdict(other)
        return {
            name: (here[name], there[name])
            for name in here
            if here[name] != there[name] and name not in ignoring
        }

    @property
    def first_lr(self) -> float:
        """The learning rate this arm starts with, except for scores with their own."""
        return self.lr if self.mix_lr is None else self.mix_lr

    @property
    def network_name(self) -> str:
        if self.network == "wrn":
            return f"wrn-{self.depth}-{self.width}"
        return self.network

    @property
    def name(self) -> str:
        """Name the run, and its files, by all that differs from the blog."""
        named = ("network", "depth", "width", "estimator", "seed")
        changes = self.changes(self.as_published, ignoring=named)
        parts = [self.dataset, self.network_name, self.arm]
        if self.estimator is not None:
            parts.append(self.estimator)
        parts += [f"{name}={here}" for name, (here, _) in changes.items()]
        return "-".join([*parts, f"seed{self.seed}"])
