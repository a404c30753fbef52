"""Lottery tickets: iterative magnitude pruning with rewinding, and three controls.

    python docs/recipes/tickets.py DATA --out benchmarks/results/recipes/tickets.json

`DATA` is a folder with MNIST's four files. docs/recipes/tickets.md says what comes out.
"""

import argparse
import statistics
from pathlib import Path

import torch
from experiment import accuracy, mnist, network, record, train

import masktorch


def learn(model, data, epochs):
    """Trains the weights with a new optimiser: momentum is not rewound."""
    train(model, torch.optim.Adam(model.parameters(), lr=1.2e-3), *data, epochs)


def tickets(start, data, densities, epochs):
    """Yield per density the model and the masks of iterative magnitude pruning.

    `start` is the state_dict of a plain model: no masks that loading could restore.
    """
    model = network()
    model.load_state_dict(start)
    learn(model, data, epochs)
    masks = {
        name: torch.ones_like(p, dtype=torch.bool)
        for name, p in model.named_parameters()
        if name.endswith("weight")
    }
    for density in densities:
        weights = dict(model.named_parameters())
        sizes = {  # what is masked ranks last, or rewinding would bring it back
            name: weights[name].detach().abs().masked_fill(~mask, -1)
            for name, mask in masks.items()
        }
        masks = masktorch.keep_largest(sizes, density)
        model.load_state_dict(
            start, strict=False
        )  # rewinds the weights and leaves masks alone
        masktorch.set_masks(model, masks)
        learn(model, data, epochs)
        yield masks, model


def at_random(masks):
    """Masks with as many entries kept in each tensor, anywhere."""
    noise = {name: torch.rand(mask.shape) for name, mask in masks.items()}
    return masktorch.keep_largest(noise, density_of_each(masks))


def density_of_each(masks):
    return {name: mask.double().mean().item() for name, mask in masks.items()}


def under(start, masks, data, epochs):
    """The start's weights, trained under given masks."""
    model = network()
    model.load_state_dict(start)
    masktorch.set_masks(model, masks)
    learn(model, data, epochs)
    return model


def supermask(start, densities, data, epochs):
    """A mask that is learned over the start's signs, as many entries in each tensor.

    Returns the masked model and the `state_dict` of what is under the mask.
    """
    model = network()
    model.load_state_dict(start)
    for name, weight in model.named_parameters():
        if name in densities:
            masktorch.init.signed_constant_(weight, densities[name])
    signs = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.requires_grad_(False)
    masktorch.wrap(model, {name: masktorch.TopK(d) for name, d in densities.items()})
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=1e-2)
    train(model, optimiser, *data, epochs)
    return model, signs


def table(content):
    """Accuracies in percent by density: mean, least and most over the seeds."""
    rows = content["rows"]
    arms = list(dict.fromkeys(row["arm"] for row in rows))[1:]

    def cell(arm, density):
        found = [
            100 * r["accuracy"]
            for r in rows
            if (r["arm"], r["density"]) == (arm, density)
        ]
        return f"{statistics.mean(found):.2f} ({min(found):.2f} - {max(found):.2f})"

    lines = [f"| density | {' | '.join(arms)} |", "|" + " --- |" * (len(arms) + 1)]
    for density in sorted({row["density"] for row in rows if row["arm"] == arms[-1]})[
        ::-1
    ]:
        cells = [cell(arm, density) for arm in arms]
        lines.append(f"| {100 * density:.1f} % | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, "", f"Nothing masked, trained once: {cell('dense', 1.0)}."]
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument(
        "--every", type=int, default=4, help="controls at every so many rounds"
    )
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, test = mnist(options.data)
    densities = [0.8**number for number in range(1, options.rounds + 1)]
    rows = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        start = network().state_dict()
        dense = network()
        dense.load_state_dict(start)
        learn(dense, data, options.epochs)
        found = {
            "seed": seed,
            "arm": "dense",
            "density": 1.0,
            "accuracy": accuracy(dense, *test),
        }
        rows.append(found)
        for number, (masks, model) in enumerate(
            tickets(start, data, densities, options.epochs), 1
        ):
            models = {"ticket": model}
            if number % options.every == 0:
                models["random mask"] = under(
                    start, at_random(masks), data, options.epochs
                )
                learned, signs = supermask(
                    start, density_of_each(masks), data, options.epochs
                )
                models["supermask"] = learned
                models["supermask, then weights"] = under(
                    signs, masktorch.masks(learned), data, options.epochs
                )
            rows += [
                {
                    "seed": seed,
                    "arm": arm,
                    "density": density,
                    "accuracy": accuracy(model, *test),
                }
                for arm, model in models.items()
                for density in [round(densities[number - 1], 6)]
            ]
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
