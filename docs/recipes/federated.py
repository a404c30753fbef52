"""Federated masks: clients send one bit per weight (FedPM, arXiv 2209.15328).

    python docs/recipes/federated.py DATA \\
        --out benchmarks/results/recipes/federated.json

`DATA` is a folder with MNIST's four files. The page is docs/recipes/federated.md.
"""

import argparse
import io
import statistics
from pathlib import Path

import torch
from experiment import accuracy, mnist, network, record, train

import masktorch


def shared_model(seed):
    """Everybody makes the same model of the seed: weights never travel."""
    torch.manual_seed(seed)
    model = network().requires_grad_(False)
    for layer in (model[0], model[2], model[4]):
        masktorch.init.signed_constant_(layer.weight)
    return masktorch.wrap(model, masktorch.Bernoulli(), init=0.0)


def set_scores(model, scores):
    """Of all masks, as the server sent them."""
    with torch.no_grad():
        for name, own in masktorch.named_mask_parameters(model):
            own.copy_(scores[name])


def client(model, scores, images, labels):
    """Train an epoch on a client's data; return the bytes it sends, a draw of masks."""
    set_scores(model, scores)
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=0.1)
    train(model, optimiser, images, labels, epochs=1)
    message = io.BytesIO()
    with masktorch.using(model, masktorch.sample_masks(model)):
        masktorch.save_masks(model, message)
    return message.getvalue()


def server(messages):
    """The scores whose probabilities are the clients' mean."""
    draws = [masktorch.read_masks(io.BytesIO(message)) for message in messages]
    return {
        name: torch.stack([draw[name].float() for draw in draws])
        .mean(0)
        .clamp(0.01, 0.99)
        .logit()
        for name in draws[0]
    }


def one_round(model, scores, parts):
    """What the clients send, and the scores that the server makes of it."""
    messages = [client(model, scores, *part) for part in parts]
    return messages, server(messages)


def sampled_accuracy(model, images, labels, draws=10):
    """The mean over drawn masks, as trained; the mode is one more mask."""
    found = []
    for _ in range(draws):
        with masktorch.using(model, masktorch.sample_masks(model)):
            found.append(accuracy(model, images, labels))
    return sum(found) / draws


def shards(images, labels, clients, classes):
    """A part for each client: of all classes, or sorted so that it has few of them."""
    order = torch.randperm(len(images))
    if classes < 10:
        order = order[labels[order].argsort(stable=True)]
        pieces = order.tensor_split(clients * classes)
        deal = torch.randperm(len(pieces)).tensor_split(clients)
        parts = [torch.cat([pieces[i] for i in hand]) for hand in deal]
    else:
        parts = order.tensor_split(clients)
    return [(images[part], labels[part]) for part in parts]


def table(content):
    """Accuracies in percent, mean, least and most over the seeds, by round."""
    rows = content["rows"]
    kinds = list(dict.fromkeys(row["classes of a client"] for row in rows))

    def cell(number, classes, what):
        found = [
            100 * row[what]
            for row in rows
            if (row["round"], row["classes of a client"]) == (number, classes)
        ]
        return f"{statistics.mean(found):.1f} ({min(found):.1f} - {max(found):.1f})"

    whats = [
        (kind, what) for kind in kinds for what in ("accuracy, drawn", "accuracy, mode")
    ]
    heads = [f"{kind} classes a client, {what.split(', ')[1]}" for kind, what in whats]
    lines = [f"| round | {' | '.join(heads)} |", "|" + " --- |" * (len(heads) + 1)]
    last = max(row["round"] for row in rows)
    for number in (n for n in (1, 2, 5, 10, 20) if n <= last):
        cells = [cell(number, *what) for what in whats]
        lines.append(f"| {number} | {' | '.join(cells)} |")
    most = max(row["bytes up, a client"] for row in rows)
    weights = content["settings"]["weights"]
    sent = (
        f"At most {most:,} bytes up, a client and round, for {weights:,} weights "
        f"({8 * most / weights:.2f} bits a weight; float32 weights are "
        f"{4 * weights:,} bytes)."
    )
    return "\n".join([*lines, "", sent])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, test = mnist(options.data)
    rows = []
    for seed in range(options.seeds):
        for classes in (10, 2):
            model = shared_model(seed)
            parts = shards(*data, options.clients, classes)
            scores = {
                n: s.detach().clone() for n, s in masktorch.named_mask_parameters(model)
            }
            for number in range(1, options.rounds + 1):
                messages, scores = one_round(model, scores, parts)
                set_scores(model, scores)
                rows.append(
                    {
                        "seed": seed,
                        "classes of a client": classes,
                        "round": number,
                        "bytes up, a client": round(
                            sum(map(len, messages)) / len(messages)
                        ),
                        "accuracy, drawn": sampled_accuracy(model, *test),
                        "accuracy, mode": accuracy(model, *test),
                    }
                )
    weights = sum(scores.numel() for scores in masktorch.mask_parameters(model))
    return record(
        options.out,
        rows,
        __file__,
        arguments,
        clients=options.clients,
        rounds=options.rounds,
        seeds=options.seeds,
        weights=weights,
    )


if __name__ == "__main__":
    main()
