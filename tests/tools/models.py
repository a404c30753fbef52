"""Small models, their inputs, and what tests do with them all the time."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import masktorch
from masktorch import Threshold

ROWS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
SIX_ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Small(nn.Module):
    """Convolution, batch norm and linear layers, enough for every invariant."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


SMALL_NAMES = ["features.0.weight", "head.weight"]


class Block(nn.Module):
    """A residual block of two linear layers, for SIX_ROWS."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Checkpointed(nn.Module):
    """Three blocks; `reentrant` is None without activation checkpointing."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x):
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.reentrant)
        return x


class ReadsTwice(nn.Linear):
    """Zero if both reads of the weight give the same draw."""

    def forward(self, x):
        return F.linear(x, self.weight - self.weight)


class Tied(nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


# Masks


def half(model):
    """Random masks that keep about half of each masked tensor."""
    return {
        name: torch.rand(m.shape) < 0.5 for name, m in masktorch.masks(model).items()
    }


def random_masks(model, *arguments, **keywords):
    """Wrap a model; its masks keep about half."""
    masktorch.wrap(model, *arguments, **keywords)
    return masktorch.set_masks(model, half(model))


STRIPES = torch.tensor([[True, False, True, False]]).expand(4, 4)


def striped(layer=None, estimator=Threshold(), **options):
    """A layer whose mask keeps every other column."""
    layer = masktorch.wrap(layer or nn.Linear(4, 4, bias=False), estimator, **options)
    return masktorch.set_masks(layer, {"weight": STRIPES.contiguous()})


def plain_with(model, masks):
    """A copy of the plain model whose masked entries are 0."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters(remove_duplicate=True):
            if name in masks:
                parameter[~masks[name]] = 0
    return model


def kept_counts(model):
    return {name: int(mask.sum()) for name, mask in masktorch.masks(model).items()}


def weight_under(layer):
    """The weight parameter of a masked layer, without its mask."""
    return layer._parameters["weight"]


def parameter_under(model, name):
    """The parameter of this name in a wrapped model, without its mask."""
    return dict(model.named_parameters())[name]


def what_is_held(model):
    """Name the masks that hold a computed tensor outside a forward."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(getattr(module, "forward_state", None), "reads", None) is not None
    ]


# Training


def adamw(model):
    """One optimiser over everything, whose weight decay moves what has a gradient."""
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model, batch, optimiser, steps=5):
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimiser.step()


def gradients(model):
    return {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def seeded_step(model, x=SIX_ROWS):
    """Output and gradients of one seeded forward and backward."""
    model.zero_grad()
    torch.manual_seed(5)
    out = model(x)
    out.square().mean().backward()
    return out.detach(), gradients(model)


# Comparisons


def assert_equal(one, other, **tolerance):
    """Bit for bit, unless a tolerance is given."""
    torch.testing.assert_close(one, other, **(tolerance or dict(rtol=0, atol=0)))


def assert_learns(model):
    assert not what_is_held(model)
    before = [s.detach().clone() for s in masktorch.mask_parameters(model)]
    opt = torch.optim.SGD(masktorch.mask_parameters(model), lr=10.0)
    opt.zero_grad()
    model.train()(SIX_ROWS).square().mean().backward()
    opt.step()
    for then, now in zip(before, masktorch.mask_parameters(model), strict=True):
        assert not torch.equal(then, now)


def tensors_of(out):
    """All tensors of an output, which may be nested."""
    if isinstance(out, torch.Tensor):
        return [out]
    return [t for part in out if part is not None for t in tensors_of(part)]


def same_output(one, other):
    """Equal up to rounding, which depends on where factors lie in memory."""
    one, other = tensors_of(one), tensors_of(other)
    close = all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(one, other, strict=True)
    )
    return close and all(a.dtype == b.dtype for a, b in zip(one, other, strict=True))
