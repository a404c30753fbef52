"""How dense: supermasks of random weights at set densities, and the threshold's own.

    python docs/recipes/density.py DATA --out benchmarks/results/recipes/density.json

`DATA` is a folder with MNIST's four files. docs/density.md says what comes out.
"""

import argparse
from pathlib import Path

import torch
from experiment import accuracy, mnist, network, record, train
from torch import nn

import masktorch
from masktorch import Threshold, TopK, budget

ARMS = {
    "`Threshold()`": (Threshold(), 1.0, None, 1e-2),
    "`TopK(0.5)`": (TopK(0.5), 0.5, None, 1e-3),
    "`TopK(0.3)`": (TopK(0.3), 0.3, None, 1e-3),
    "`TopK(0.1)`: 10 % of every layer": (TopK(0.1), 0.1, None, 1e-3),
    "`budget.overall(model, 0.1)`": (TopK(0.1), 0.1, budget.overall, 1e-3),
    "`budget.erk(model, 0.1)`": (TopK(0.1), 0.1, budget.erk, 1e-3),
}


def run(data, held_out, seed, epochs, estimator, density, share, lr):
    """A mask learned over random signed-constant weights, and the accuracy held out."""
    torch.manual_seed(seed)
    model = network()
    for layer in model:
        if isinstance(layer, nn.Linear):
            masktorch.init.signed_constant_(layer.weight, density)
            nn.init.zeros_(layer.bias)
            layer.bias.requires_grad_(False)
    masktorch.wrap(model, estimator)
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        if share is not None:
            masktorch.set_density(model, share(model, density))
        train(model, optimiser, *data, 1)
        schedule.step()
    report = masktorch.report(model)
    return accuracy(model, *held_out), report.kept, report.size


def table(content):
    lines = [
        "| masks | kept of 266,200 weights | accuracy, mean (range) |",
        "| --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["arm"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["arm"] == name]
        found = [100 * row["accuracy"] for row in rows]
        kept = sorted({row["kept"] for row in rows})
        counts = f"{kept[0]:,}" if len(kept) == 1 else f"{kept[0]:,} to {kept[-1]:,}"
        mean = sum(found) / len(found)
        lines.append(
            f"| {name} | {counts} "
            f"| {mean:.1f} % ({min(found):.1f} to {max(found):.1f}) |"
        )
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    (images, labels), _ = mnist(options.data)
    cut = len(images) * 5 // 6
    parts = (images[:cut], labels[:cut]), (images[cut:], labels[cut:])
    rows = []
    for seed in range(options.seeds):
        for name, arm in ARMS.items():
            found, kept, size = run(*parts, seed, options.epochs, *arm)
            rows.append(
                {
                    "arm": name,
                    "seed": seed,
                    "accuracy": found,
                    "kept": kept,
                    "size": size,
                }
            )
    return record(
        options.out,
        rows,
        __file__,
        arguments,
        epochs=options.epochs,
        seeds=options.seeds,
    )


if __name__ == "__main__":
    main()
