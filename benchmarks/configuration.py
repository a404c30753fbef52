"""Everything that decides the numbers of one arm run, and the arms there are."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from benchmarks import BenchmarkError

ARMS = ("mask", "weights", "mix", "weights-then-weights")  # in the order in which they can run
STARTS_FROM = {"mix": "mask", "weights-then-weights": "weights"}  # the arm whose best they go on


@dataclass(frozen=True)
class Configuration:
    """One arm run; a field that the arm has no use for is None. The defaults are the blog's."""

    dataset: str
    arm: str = "mask"
    network: str = "wrn"
    depth: int | None = 28
    width: int | None = 8
    weights: str = "glorot"  # before training; signed-constant: sign(W) * std(W) of these
    estimator: str | None = "threshold"
    init: float | None = None  # None: the estimator's own start
    rescale: bool | None = False  # the weights under the mask, by the inverse of its density
    epochs: int = 30
    batch_size: int = 128
    lr: float = 1e-2  # of the arms mask and weights
    score_lr: float | None = None  # of the mask arm's scores; None: lr
    mix_lr: float | None = 1e-5  # of the arms that go on from another arm's best
    schedule: str = "plateau"  # or cosine
    seed: int = 0
    precision: str = "float32"
    train_images: int | None = None  # None: all
    held_out: int | None = None  # measure on so many of the last training images; None: on test
    faithful_scaling: bool = False
    augmentation: bool = True

    def for_arm(self, arm: str) -> "Configuration":
        masked, goes_on, wrn = arm in ("mask", "mix"), arm in STARTS_FROM, self.network == "wrn"
        return replace(
            self,
            arm=arm,
            depth=self.depth if wrn else None,
            width=self.width if wrn else None,
            estimator=self.estimator if masked else None,
            init=self.init if masked else None,
            rescale=self.rescale if masked else None,
            score_lr=self.score_lr if arm == "mask" else None,
            mix_lr=self.mix_lr if goes_on else None,
        )

    @property
    def first_lr(self) -> float:
        """Where this arm's learning rate starts."""
        return self.lr if self.mix_lr is None else self.mix_lr

    @property
    def first_score_lr(self) -> float:
        """Where the scores' learning rate starts."""
        return self.first_lr if self.score_lr is None else self.score_lr

    @property
    def network_name(self) -> str:
        return f"wrn-{self.depth}-{self.width}" if self.network == "wrn" else self.network

    @property
    def name(self) -> str:
        """The stem of this run's files."""
        parts = [self.dataset, self.network_name, self.arm, self.estimator, f"seed{self.seed}"]
        return "-".join(part for part in parts if part)

    def check_same(self, found: "Configuration", path: Path) -> None:
        """Raise where `path` belongs to another configuration than this one."""
        differences = [
            f"{field.name} is {getattr(found, field.name)!r} there and "
            f"{getattr(self, field.name)!r} here"
            for field in fields(self)
            if getattr(found, field.name) != getattr(self, field.name)
        ]
        if differences:
            raise BenchmarkError(
                f"{path} comes from a run with another configuration: {'; '.join(differences)}. "
                f"Give this run another --output folder, or delete that file."
            )
