"""Keep exactly 10 % of a trained network, fine-tune it, and get plain layers back.

Run it from a clone: python examples/sparse_finetune.py
"""

import torch
from torch import nn

import masktorch

torch.manual_seed(0)
prototypes = torch.rand(10, 64)  # made-up digits: ten 8x8 patterns under heavy noise
labels = torch.randint(10, (4000,))
images = prototypes[labels] + torch.randn(4000, 64) / 2
test = slice(3000, 4000)
model = nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))
optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)


def fit(epochs):
    for _ in range(epochs):
        for batch in torch.randperm(3000).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        right = model(images[test]).argmax(1) == labels[test]
    return right.float().mean().item()


print(f"dense:             {fit(epochs=5):.1%} of the test images are right")

weights = {f"{i}.weight": model[i].weight.detach().abs() for i in (0, 2)}
masks = masktorch.keep_largest(weights, 0.1)  # one ranking for both layers
masktorch.set_masks(model, masks)  # fixed masks; the weights under them still train
print(f"10 % of it:        {fit(epochs=0):.1%}")
print(f"after fine-tuning: {fit(epochs=20):.1%}")  # the same optimiser

masktorch.unwrap(model)  # plain nn.Linear layers, masked weights exactly 0.0
kept = sum(int(model[i].weight.count_nonzero()) for i in (0, 2))
total = sum(model[i].weight.numel() for i in (0, 2))
print(f"{kept:,} of {total:,} weights are not zero")
