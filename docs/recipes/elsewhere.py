"""Coming from elsewhere: masks and weights out of the files of other libraries.

    python docs/recipes/elsewhere.py DATA \\
        --out benchmarks/results/recipes/elsewhere.json

`DATA` is a folder with MNIST's four files. The page is docs/recipes/elsewhere.md.
"""

import argparse
import io
from pathlib import Path

import torch
from experiment import accuracy, mnist, network, record, train
from torch import nn
from torch.nn.utils import prune

import masktorch


def from_torch_prune(state):
    """(weights, masks) of a state_dict pruned by torch, before `prune.remove`."""
    masks = {
        name.removesuffix("_mask"): mask.bool()
        for name, mask in state.items()
        if name.endswith("_mask")
    }
    weights = {
        name.removesuffix("_orig"): tensor
        for name, tensor in state.items()
        if not name.endswith("_mask")
    }
    return weights, masks


def from_hidden_networks(state, kept, task=None):
    """(weights, masks) of a state_dict of hidden-networks, biprop or a supsup task.

    `kept` is the share of each layer that the run kept (hidden-networks' --prune-rate,
    supsup's --sparsity); the file does not have it. Pass None for supsup's fast layers,
    which keep scores from 0 up.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    ending = ".scores" if task is None else f".scores.{task}"
    scores = {
        name.removesuffix(ending) + ".weight": tensor
        for name, tensor in state.items()
        if name.endswith(ending)
    }
    weights = {name: tensor for name, tensor in state.items() if ".scores" not in name}
    if kept is None:
        return weights, {name: s >= 0 for name, s in scores.items()}
    densities = {  # rounded as they round
        name: (s.numel() - int((1 - kept) * s.numel())) / s.numel()
        for name, s in scores.items()
    }
    sizes = {name: s.abs() for name, s in scores.items()}
    return weights, masktorch.keep_largest(sizes, densities)


def from_supermask_linear(state, sparsity, tile=1):
    """(weights, masks) of a state_dict with torchao's SupermaskLinear layers.

    `sparsity` and `tile` are its arguments sparsity_level and blocksize, which the file
    does not have.
    """
    layers = [name.removesuffix("scores") for name in state if name.endswith("scores")]
    own = {
        f"{layer}{part}" for layer in layers for part in ("scores", "scale", "shift")
    }
    weights = {name: tensor for name, tensor in state.items() if name not in own}
    masks = {}
    for layer in layers:
        scores, name = state[f"{layer}scores"], f"{layer}weight"
        cut = (
            scores.flatten().kthvalue(1 + round(sparsity * (scores.numel() - 1))).values
        )
        mask = scores >= cut
        for dimension, length in enumerate(weights[name].shape):
            mask = mask.repeat_interleave(tile, dimension).narrow(dimension, 0, length)
        masks[name] = mask
        scale, shift = state.get(f"{layer}scale", 1), state.get(f"{layer}shift", 0)
        weights[name] = weights[name] * scale + shift
    return weights, masks


def as_linear(tensors, model):
    """Reshape 1x1 convolutions, hidden-networks' linear layers, as the model's."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    return {name: t.view(shapes.get(name, t.shape)) for name, t in tensors.items()}


def table(content):
    lines = [
        "| model | test accuracy | kept for it | bytes |",
        "| --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        cells = [
            row["model"],
            f"{100 * row['accuracy']:.2f} %",
            row["kept"],
            f"{row['bytes']:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, test = mnist(options.data)
    torch.manual_seed(0)
    model = network()
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), *data, options.epochs)
    layers = [(layer, "weight") for layer in model if isinstance(layer, nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.9)
    train(model, torch.optim.Adam(model.parameters(), lr=1e-3), *data, options.epochs)

    def saved(state):
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return file

    file = saved(model.state_dict())
    rows = [
        {
            "model": "torch.nn.utils.prune",
            "accuracy": accuracy(model, *test),
            "kept": "state_dict with `_orig` and `_mask`",
            "bytes": len(file.getvalue()),
        }
    ]
    weights, masks = from_torch_prune(torch.load(file, weights_only=True))
    backbone = saved(weights)
    plain = network()
    plain.load_state_dict(weights)
    masktorch.set_masks(plain, masks)
    file = io.BytesIO()
    masktorch.save_masks(plain, file)
    about = {"model": "masktorch", "accuracy": accuracy(plain, *test)}
    rows.append(about | {"kept": "mask file", "bytes": len(file.getvalue())})
    rows.append(
        about | {"kept": "state_dict of the weights", "bytes": len(backbone.getvalue())}
    )
    return record(options.out, rows, __file__, arguments, epochs=options.epochs)


if __name__ == "__main__":
    main()
