"""Smaller and faster afterwards: torch-pruning removes channels that nothing reads.

    pip install torch-pruning
    python docs/recipes/smaller.py DATA --out benchmarks/results/recipes/smaller.json

`DATA` is a folder with MNIST's four files. docs/recipes/smaller.md says what comes out.
"""

import argparse
import copy
import io
import statistics
import time
import warnings
from pathlib import Path

import torch
from experiment import accuracy, mnist, record, train
from torch import nn

import masktorch


def convolutions():
    """Three convolutions and a linear layer; each can do without half its inputs."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def perceptron():
    return nn.Sequential(
        nn.Linear(784, 1024),
        nn.ReLU(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


def readers(model):
    """Weights whose input channels may go: all but the first, which reads images."""
    layers = [
        n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    return [f"{name}.weight" for name in layers[1:]]


def learn_channels(model, density, data, epochs):
    """A plain model whose layers read a share of their inputs, and these weights."""
    inputs = masktorch.Blocks(masktorch.TopK(density), (None, 1))
    masktorch.wrap(model, inputs, targets=readers(model))
    masktorch.freeze_weights(model, False)  # scores and weights together
    scores = set(masktorch.mask_parameters(model))
    groups = [
        {"params": list(scores), "lr": 1e-2},
        {"params": [p for p in model.parameters() if p not in scores], "lr": 1e-3},
    ]
    train(model, torch.optim.Adam(groups), *data, epochs)
    masktorch.freeze_mask(model)  # then the weights alone
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), *data, epochs)
    return masktorch.unwrap(model).eval()


def without_unread_channels(model, example):
    """A smaller model that computes the same: what no layer reads is not computed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch-pruning
        import torch_pruning

        smaller = copy.deepcopy(model).eval()
        graph = torch_pruning.DependencyGraph().build_dependency(smaller, example)
        removes = {
            nn.Conv2d: torch_pruning.prune_conv_in_channels,
            nn.Linear: torch_pruning.prune_linear_in_channels,
        }
        for name in readers(smaller):
            layer = smaller.get_submodule(name.removesuffix(".weight"))
            read = (
                layer.weight.detach().transpose(0, 1).flatten(1).any(1)
            )  # by input channel
            unread = torch.nonzero(~read).flatten().tolist()
            graph.get_pruning_group(layer, removes[type(layer)], idxs=unread).prune()
    with torch.no_grad():  # raises where a channel was read after all
        torch.testing.assert_close(
            smaller(example), model.eval()(example), rtol=1e-4, atol=1e-4
        )
    return smaller


@torch.no_grad()
def side_by_side(models, inputs, rounds):
    """Median seconds of a forward of each, measured in turns."""
    found = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            began = time.perf_counter()
            model(inputs)
            found[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def size(model):
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def sparse_layers(size, rounds):
    """Time a square linear layer: dense, as CSR, and with half its inputs gone."""
    weight, inputs = torch.randn(size, size), torch.randn(64, size)
    half, fewer = weight[:, ::2].contiguous(), inputs[:, ::2].contiguous()
    rows = []
    for density in (0.2, 0.1, 0.05, 0.01):
        kept = masktorch.keep_largest({"weight": weight.abs()}, density)["weight"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSR is in beta
            csr = (weight * kept).to_sparse_csr()
        seconds = side_by_side(
            {
                "dense": lambda x: nn.functional.linear(x, weight),
                "CSR": lambda x, csr=csr: (csr @ x.T).T,
                "half the inputs": lambda x: nn.functional.linear(fewer, half),
            },
            inputs,
            rounds,
        )
        rows.append({"layer": f"{size}x{size}", "density": density, "seconds": seconds})
    return rows


def table(content):
    lines = [
        "| network | model | parameters | bytes | test accuracy | 256 images "
        "| relative to dense |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = content["rows"]
    for row in (row for row in rows if "network" in row):
        dense = next(r for r in rows if r.get("network") == row["network"])["seconds"]
        cells = [
            row["network"], row["model"], f"{row['parameters']:,}", f"{row['bytes']:,}",
            f"{100 * row['accuracy']:.2f} %", f"{1000 * row['seconds']:.1f} ms",
            f"{dense / row['seconds']:.1f}x",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| layer, batch of 64 | density | CSR, times as fast "
        "| half of the inputs removed, times as fast |",
    ]
    lines.append("| --- | --- | --- | --- |")
    for row in (row for row in rows if "layer" in row):
        times = row["seconds"]
        cells = [
            f"{times['dense'] / times[way]:.1f}x" for way in ("CSR", "half the inputs")
        ]
        lines.append(
            f"| {row['layer']} | {100 * row['density']:g} % | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, (images, labels) = mnist(options.data)
    rows = []
    for build in (perceptron, convolutions):
        torch.manual_seed(0)
        dense = build()
        train(
            dense,
            torch.optim.Adam(dense.parameters(), lr=1e-3),
            *data,
            2 * options.epochs,
        )
        torch.manual_seed(0)
        zeros = learn_channels(build(), options.density, data, options.epochs)
        smaller = without_unread_channels(zeros, images[:1])
        with torch.no_grad():
            apart = (zeros(images[:512]) - smaller(images[:512])).abs().max().item()
        models = {"dense": dense.eval(), "with zeros": zeros, "smaller": smaller}
        seconds = side_by_side(models, images[:256], options.rounds)
        for name, model in models.items():
            rows.append(
                {
                    "network": build.__name__,
                    "model": name,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "bytes": size(model),
                    "accuracy": accuracy(model, images, labels),
                    "seconds": seconds[name],
                    "outputs differ by": apart if name == "smaller" else None,
                }
            )
    rows += sparse_layers(2048, options.rounds)
    return record(
        options.out, rows, __file__, arguments,
        epochs=options.epochs, density=options.density, rounds=options.rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
