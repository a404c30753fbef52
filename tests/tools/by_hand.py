"""Formulas written out in numpy, for comparison with the library."""

import math

import numpy as np


def sigma(s):
    return 1 / (1 + np.exp(-s))


def kept_count(density, n):
    """How many of n entries a density keeps."""
    return max(1, math.floor(density * n + 0.5))


def first_of(values, k):
    """Mark the k largest of a flat array; ties go to the lower index."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values, kind="stable")[:k]] = True
    return mask


def topk_by_hand(s, density, absolute=True, block=None):
    """The mask of TopK: blocks, if any, compete by their means."""
    v = np.abs(s) if absolute else s
    if block is None:
        return first_of(v.ravel(), kept_count(density, s.size)).reshape(s.shape)
    number = blocks_of(s.shape, block)
    means = np.array([v[number == b].mean() for b in range(number.max() + 1)])
    return first_of(means, kept_count(density, means.size))[number]


def block_lengths(shape, block):
    return [
        n if length is None else length for n, length in zip(shape, block, strict=False)
    ]


def blocks_of(shape, block):
    """For each entry the number of its block; blocks are numbered row by row."""
    row_length, column_length = block_lengths(shape, block)
    across = shape[1] // column_length
    row, column, *_ = np.indices(shape)
    return (row // row_length) * across + column // column_length


def n_of_m_by_hand(s, n, m, absolute=True):
    """The mask of NOfM: the n largest of every m along dimension 1."""
    v = np.moveaxis(np.abs(s) if absolute else s, 1, -1)
    rows = v.reshape(-1, m)
    masks = np.array([first_of(row, n) for row in rows]).reshape(v.shape)
    return np.moveaxis(masks, -1, 1)


def together(tensors):
    """The entries of several tensors in one flat array."""
    return np.concatenate(
        [tensor.detach().double().numpy().ravel() for tensor in tensors]
    )
