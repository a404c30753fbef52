"""Structured masks cost no more than general compression makes of them."""

import io
import itertools
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch._files import coding
from masktorch._files.coding import decode, encode


def rows(rng, share, shape):
    return np.broadcast_to(rng.random((shape[0], 1)) < share, shape)


def columns(rng, share, shape):
    return np.broadcast_to(rng.random((1, shape[1])) < share, shape)


def tiles(height, width):
    def mask(rng, share, shape):
        kept = rng.random((-(-shape[0] // height), -(-shape[1] // width))) < share
        return np.kron(kept, np.ones((height, width), bool))[: shape[0], : shape[1]]

    return mask


def blocks_of_columns(width):
    def mask(rng, share, shape):
        kept = rng.random((1, -(-shape[1] // width))) < share
        return np.broadcast_to(np.repeat(kept, width, 1)[:, : shape[1]], shape)

    return mask


def repeated(height, width):
    def mask(rng, share, shape):
        tile = rng.random((height, width)) < share
        times = -(-shape[0] // height), -(-shape[1] // width)
        return np.tile(tile, times)[: shape[0], : shape[1]]

    return mask


def of_positions(function):
    def mask(rng, share, shape):
        i, j = np.indices(shape)
        return function(i, j)

    return mask


def in_one_corner(rng, share, shape):
    mask = np.zeros(shape, bool)
    mask[-200:, -200:] = repeated(16, 16)(rng, share, mask[-200:, -200:].shape)
    return mask


def after_random_rows(rng, share, shape):
    mask = np.array(tiles(16, 16)(rng, share, shape))
    mask[: shape[0] // 10] = rng.random((shape[0] // 10, shape[1])) < share
    return mask


TILES = [(1, 16), (1, 64), (16, 1), (64, 1), (2, 2), (4, 4), (7, 5), (8, 8), (3, 24)]
TILES += [(16, 16), (32, 32), (128, 128)]
REPEATED = [(1, 9), (1, 64), (1, 100), (7, 100), (16, 16), (64, 64), (100, 100)]
REPEATED += [(16, 256)]

KINDS = {
    "rows": rows,
    "columns": columns,
    "rows and columns": lambda *a: rows(*a) & columns(*a),
    "rows or columns": lambda *a: rows(*a) | columns(*a),
    "blocks of 16 columns": blocks_of_columns(16),
    "heads of 64": blocks_of_columns(64),
    "heads of 80": blocks_of_columns(80),
    **{f"tiles of {h}x{w}": tiles(h, w) for h, w in TILES},
    **{f"a tile of {h}x{w} repeated": repeated(h, w) for h, w in REPEATED},
    "2:4, always the same": of_positions(lambda i, j: j % 4 < 2),
    "2:4, shifted by rows": of_positions(lambda i, j: (i + j) % 4 < 2),
    "checkerboard": of_positions(lambda i, j: (i + j) % 2 == 0),
    "checkerboard of 8": of_positions(lambda i, j: (i // 8 + j // 8) % 2 == 0),
    "diagonal": of_positions(lambda i, j: i == j),
    "band": of_positions(lambda i, j: abs(i - j) < 50),
    "all but a band": of_positions(lambda i, j: abs(i - j) > 5),
    "triangle": of_positions(lambda i, j: j <= i),
    "stripes": of_positions(lambda i, j: (3 * j + 5 * i) % 11 < 4),
    "butterfly": of_positions(lambda i, j: (i ^ j) & ((i ^ j) - 1) == 0),
    "a pattern in one corner": in_one_corner,
    "tiles after random rows": after_random_rows,
}


def made(kind, share, noise, shape, seed=0):
    rng = np.random.default_rng(seed)
    mask = KINDS[kind](rng, share, shape)
    return mask ^ (rng.random(shape) < noise)


def saved(*masks):
    """The bytes of a file of these masks, each on a tensor of its own."""
    model = nn.ParameterDict(
        {f"layer{i}": torch.zeros(mask.shape) for i, mask in enumerate(masks)}
    )
    masktorch.set_masks(
        model, {f"layer{i}": torch.from_numpy(mask) for i, mask in enumerate(masks)}
    )
    file = io.BytesIO()
    masktorch.save_masks(model, file)
    return file.getvalue()


def compressed(*masks):
    """Bytes that zlib makes of the bits of each mask."""
    return sum(len(zlib.compress(np.packbits(mask).tobytes(), 6)) for mask in masks)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0, 0.003])
def test_at_most_half_more_than_zlib(kind, noise):
    for share, shape in itertools.product([0.05, 0.5, 0.9], [(256, 512), (130, 1000)]):
        mask = made(kind, share, noise, shape)
        content = saved(mask)
        assert len(content) <= 1.5 * compressed(mask) + 1500, (share, shape)
        (read,) = masktorch.read_masks(io.BytesIO(content)).values()
        assert np.array_equal(read.numpy(), mask)


def test_blocks_of_columns_on_a_large_tensor():
    """They cost 73 kB before: bits at a fast level."""
    mask = made("blocks of 16 columns", 0.5, 0, (2048, 2048))
    assert len(saved(mask)) < 4000


@pytest.mark.parametrize("seed", range(8))
def test_runs_of_two_bytes(seed):
    """Their bytes are nearly independent: few recur more often than by chance."""
    mask = made("tiles of 1x16", 0.5, 0, (2048, 2048), seed)
    assert len(saved(mask)) <= 1.5 * compressed(mask) + 1500


@pytest.mark.parametrize("axis", ["output", "input", "kernel position", "kernel"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_convolutions(axis, share):
    shape = (128, 64, 3, 3)
    part = {"output": (128, 1, 1, 1), "input": (1, 64, 1, 1), "kernel": (128, 64, 1, 1),
            "kernel position": (1, 1, 3, 3)}[axis]  # fmt: skip
    kept = np.random.default_rng(0).random(part) < share
    mask = np.ascontiguousarray(np.broadcast_to(kept, shape))
    assert len(saved(mask)) <= 1.5 * compressed(mask) + 1500


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_several_tensors(share):
    kinds = ["blocks of 16 columns", "tiles of 16x16", "a tile of 7x100 repeated"]
    kinds += ["rows", "heads of 64", "checkerboard", "tiles of 8x8", "band"]
    masks = [made(kind, share, 0, (512, 768)) for kind in kinds]
    assert len(saved(*masks)) <= 1.5 * compressed(*masks) + 1500


@pytest.fixture
def levels(monkeypatch):
    """The levels of deflate that a mask is encoded by."""
    used = []
    deflate = coding._deflate

    def recorded(content, strategy, level=coding._FAST):
        used.append(level)
        return deflate(content, strategy, level)

    monkeypatch.setattr(coding, "_deflate", recorded)
    return used


def independent(rng, share, size):
    return rng.random(size) < share


def two_of_four(rng, share, size):
    return np.argsort(rng.random((size // 4, 4)), 1).ravel() < 2


def rows_of_many_densities(rng, share, size):
    """As learned masks have them."""
    densities = np.repeat(share * rng.uniform(0.5, 1.5, size // 1000), 1000)
    return rng.random(len(densities)) < densities


@pytest.mark.parametrize("kind", [independent, two_of_four, rows_of_many_densities])
@pytest.mark.parametrize("size", [10_000, 300_000])
def test_independent_entries_take_no_search(levels, kind, size):
    """It would take up to thirty times as long, and find nothing."""
    rng = np.random.default_rng(0)
    for share in [1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.07, 0.1, 0.16, 0.3, 0.5, 0.65]:
        for mask in (kept := kind(rng, share, size)), ~kept:
            code = encode(mask)
            assert np.array_equal(decode(*code, mask.sum(), mask.size), mask)
    assert coding._THOROUGH not in levels


def test_structure_takes_a_search(levels):
    encode(made("blocks of 16 columns", 0.5, 0, (512, 512)).ravel())
    assert coding._THOROUGH in levels
