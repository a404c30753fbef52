"""Many tasks on one backbone: a mask each, switched, inferred, or one per example.

    python docs/recipes/many_tasks.py DATA \\
        --out benchmarks/results/recipes/many_tasks.json

`DATA` is a folder with MNIST's four files. The page is docs/recipes/many_tasks.md.
"""

import argparse
import io
import statistics
import time
from pathlib import Path

import torch
from experiment import accuracy, mnist, network, record, train
from torch.func import functional_call

import masktorch


def backbone():
    """Weights that are never trained: a sign each, of one size in a layer."""
    model = network().requires_grad_(False)
    for layer in (model[0], model[2], model[4]):
        masktorch.init.signed_constant_(layer.weight)
    return model


def learn(task, images, labels, seed, epochs):
    """The masks of a task, learned over the backbone of the seed."""
    torch.manual_seed(seed)
    model = masktorch.wrap(backbone(), masktorch.TopK(0.5))
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=1e-2)
    train(model, optimiser, images[:, task], labels, epochs)
    return model


@torch.no_grad()
def least_entropy(model, tasks, inputs):
    """The task whose mask is surest of its answers to inputs of an unknown task."""

    def entropy(masks):
        with masktorch.using(model, masks):
            p = model.eval()(inputs).softmax(1)
        return torch.special.entr(p).sum(1).mean().item()

    return min(range(len(tasks)), key=lambda t: entropy(tasks[t]))


def scores_key(name):
    *module, tensor = name.split(".")
    return ".".join([*module, "parametrizations", tensor, "scores"])


@torch.no_grad()
def one_mask_per_example(model, tasks, inputs, which):
    """The outputs for a batch in which every example is of a task of its own."""
    masks = {
        scores_key(name): torch.stack([tasks[t][name] for t in which.tolist()])
        for name in tasks[0]
    }

    def one(masks, example):
        return functional_call(model, masks, (example.unsqueeze(0),)).squeeze(0)

    return torch.vmap(one)(masks, inputs)


def table(content):
    rows = content["rows"]
    tasks = [row for row in rows if "task" in row]
    found = [100 * row["accuracy"] for row in tasks]
    sizes = [row["bytes"] for row in tasks]
    lines = [
        "| what | |",
        "| --- | --- |",
        f"| accuracy with a task's own mask, {len(tasks)} tasks | "
        f"{statistics.mean(found):.1f} % ({min(found):.1f} - {max(found):.1f}) |",
        f"| a task's mask file | {max(sizes):,} bytes at most |",
    ]
    for row in rows:
        if "told" in row:
            few = "1 example" if row["told by"] == 1 else f"{row['told by']} examples"
            lines.append(f"| unknown task told by {few} | {100 * row['told']:.1f} % |")
        elif "seconds" in row:
            lines.append(f"| {row['timed']} | {1000 * row['seconds']:.2f} ms |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--tries", type=int, default=200, help="unknown tasks to tell")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, (images, labels) = mnist(options.data)
    permutations, tasks, rows = [], [], []
    for number in range(options.tasks):
        torch.manual_seed(1000 + number)
        permutations.append(torch.randperm(784))
        model = learn(permutations[-1], *data, seed=0, epochs=options.epochs)
        file = io.BytesIO()
        masktorch.save_masks(model, file)
        rows.append(
            {
                "task": number,
                "accuracy": accuracy(model, images[:, permutations[-1]], labels),
                "bytes": len(file.getvalue()),
            }
        )
        tasks.append(masktorch.masks(model))

    torch.manual_seed(0)
    model = masktorch.set_masks(
        backbone(), tasks[0]
    ).eval()  # one model for all of them
    for examples in (1, 4, 16):
        right = 0
        for _ in range(options.tries):
            task = int(torch.randint(len(tasks), ()))
            some = torch.randint(len(images), (examples,))
            right += task == least_entropy(
                model, tasks, images[some][:, permutations[task]]
            )
        rows.append({"told by": examples, "told": right / options.tries})

    def seconds(switch):
        began = time.perf_counter()
        for _ in range(5):
            for masks in tasks:
                switch(masks)
        return (time.perf_counter() - began) / 5 / len(tasks)

    def use(masks):
        with masktorch.using(model, masks):
            pass

    switch = seconds(lambda masks: masktorch.set_masks(model, masks))
    rows.append({"timed": "a switch by `set_masks`", "seconds": switch})
    rows.append({"timed": "a switch by `using`", "seconds": seconds(use)})

    which = torch.randint(len(tasks), (256,))
    inputs = torch.stack(
        [images[i, permutations[t]] for i, t in enumerate(which.tolist())]
    )
    began = time.perf_counter()
    mixed = one_mask_per_example(model, tasks, inputs, which)
    by_vmap = time.perf_counter() - began
    began = time.perf_counter()
    looped = torch.empty_like(mixed)
    with torch.no_grad():
        for task in which.unique().tolist():
            with masktorch.using(model, tasks[task]):
                looped[which == task] = model(inputs[which == task])
    by_loop = time.perf_counter() - began
    torch.testing.assert_close(mixed, looped, rtol=1e-4, atol=1e-4)
    rows.append({"timed": "256 examples of all tasks by vmap", "seconds": by_vmap})
    rows.append(
        {"timed": "256 examples of all tasks, a loop over tasks", "seconds": by_loop}
    )
    return record(
        options.out, rows, __file__, arguments,
        tasks=options.tasks, epochs=options.epochs, tries=options.tries,
    )  # fmt: skip


if __name__ == "__main__":
    main()
