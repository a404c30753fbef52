"""One random network that never changes, and one learned mask for each task.

Run it from a clone: python examples/many_tasks.py
"""

import io

import torch
from torch import nn

import masktorch

torch.manual_seed(0)
prototypes = torch.rand(10, 64)  # made-up digits: ten 8x8 patterns under heavy noise
labels = torch.randint(10, (4000,))
images = prototypes[labels] + torch.randn(4000, 64) / 2
test = slice(3000, 4000)
tasks = {
    "which digit": labels,
    "odd or even": labels % 2,
    "above four": (labels > 4).long(),
}

model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
model.requires_grad_(False)  # also the biases, which have no masks
masks = {}
for task, targets in tasks.items():
    masktorch.wrap(model)  # every task starts with all weights kept
    optimiser = torch.optim.Adam(masktorch.mask_parameters(model), lr=5e-2)
    for _ in range(5):
        for batch in torch.randperm(3000).split(100):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimiser.step()
    masks[task] = masktorch.masks(model)  # a dict of bool tensors
    masktorch.save_masks(model, file := io.BytesIO())  # or a path
    print(f"{task}: {len(file.getvalue()):,} bytes in a mask file")
    masktorch.unwrap(model, bake=False)  # the weights as they were

masktorch.set_masks(model, masks["which digit"])  # a plain model gets fixed masks
for task, targets in tasks.items():
    with masktorch.using(model, masks[task]):  # until the block ends
        right = model(images[test]).argmax(1) == targets[test]
    print(f"{task}: {right.float().mean():.1%} of the test images are right")
