"""A supermask: choose which random weights of a network to keep, without training any.

Run it from a clone: python examples/supermask.py
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
for layer in (model[0], model[2]):
    masktorch.init.signed_constant_(layer.weight, density=0.5)
    nn.init.zeros_(layer.bias).requires_grad_(False)


def accuracy():
    model.eval()
    with torch.no_grad():
        right = model(images[test]).argmax(1) == labels[test]
    model.train()
    return right.float().mean().item()


print(f"random network:  {accuracy():.1%} of the test images are right")
before = model[0].weight.clone()
masktorch.wrap(model, masktorch.TopK(density=0.5))  # weights freeze, scores train
optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)  # after wrap, for the scores
for _ in range(10):
    for batch in torch.randperm(3000).split(100):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()
print(f"half of it:      {accuracy():.1%}")
print(masktorch.report(model))

masktorch.unwrap(model)  # plain nn.Linear layers again
kept = model[0].weight != 0
assert torch.equal(model[0].weight[kept], before[kept])  # no weight has moved
