"""Masks to bytes and back: exact, about the entropy, at most a bit per entry."""

import math
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masktorch._files.coding import decode, encode
from tools.maskfile_mutants import deflated


def entropy(mask):
    """Bytes: n * H(kept fraction) / 8."""
    counts = [int(mask.sum()), int(mask.size - mask.sum())]
    return -sum(k * math.log2(k / mask.size) / 8 for k in counts if k)


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 5000])
@pytest.mark.parametrize("after", [0, 1, 254, 255, 256, 600])
@pytest.mark.parametrize("kept", [False, True])
def test_gaps_around_the_byte_limit(gap, after, kept):
    mask = np.full(gap + 1 + gap + 1 + after, not kept)
    mask[[gap, gap + 1 + gap]] = kept
    coded(mask)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 700)), max_size=30))
def test_any_mask_survives_coding(runs):
    mask = np.array([kind for kind, length in runs for _ in range(length)], dtype=bool)
    coded(mask)


@pytest.mark.parametrize("kept", [0.7, 0.00002, 0.99998])
def test_masks_longer_than_one_piece_survive_coding(kept):
    mask = torch.rand(1_000_003).numpy() < kept
    coded(mask)


def test_decode_accepts_exactly_the_codes_of_masks():
    steps = [2, 255, 0, 3]  # entries 2, 258 and 262
    mask = decode("gaps", deflated(steps), 3, 263)
    assert np.flatnonzero(mask).tolist() == [2, 258, 262]
    masked = ~decode("gaps", deflated(steps), 597, 600)
    assert np.flatnonzero(masked).tolist() == [2, 258, 262]
    for coding, code, kept, size in [
        ("gaps", deflated(steps), 3, 262),  # beyond the end
        ("gaps", deflated(steps), 2, 263),  # too many
        ("gaps", deflated(steps), 4, 263),  # too few
        ("gaps", deflated(steps), -3, 263),
        ("gaps", deflated(steps) + b"x", 3, 263),
        ("gaps", deflated(steps)[:-1], 3, 263),
        ("gaps", b"", 0, 263),
        ("deflated bits", deflated(b"\xff"), 7, 8),
        ("deflated bits", deflated(b"\xff\xff"), 8, 8),
        ("deflated bits", deflated(b"\xff"), 9, 9),
        ("deflated bits", deflated(b"\xff") + b"x", 8, 8),
        ("deflated bits", b"", 0, 0),
        ("bits", b"\xff", 7, 8),
        ("bits", b"\xff\0", 8, 8),
        ("bits", b"\xff", 8, 9),
        ("", b"\xff", 8, 8),
    ]:
        with pytest.raises(ValueError, match=r"^expected .*, found "):
            decode(coding, code, kept, size)


@settings(max_examples=400, deadline=None, database=None)
@given(
    st.sampled_from(["gaps", "deflated bits", "bits"]),
    st.binary(max_size=200),
    st.booleans(),
    st.integers(0, 40),
    st.integers(0, 3000),
)
def test_any_bytes_decode_to_a_mask_of_the_right_count_or_fail(
    coding, code, deflate, kept, size
):
    """Decode to a mask with the stated number of kept entries, or raise."""
    try:
        mask = decode(coding, deflated(code) if deflate else code, kept, size)
    except ValueError:
        return
    assert (mask.size, mask.sum()) == (size, kept)


@pytest.mark.parametrize("coding", ["gaps", "deflated bits"])
def test_a_code_that_inflates_too_far_is_abandoned(coding):
    """300 kB of code inflate to 300 MB: stop one piece after the mask is full."""
    deflate = zlib.compressobj(wbits=-15)
    code = b"".join(deflate.compress(bytes(10**7)) for _ in range(30)) + deflate.flush()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected a whole deflate stream"):
            decode(coding, code, 50, 1000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def coded(mask):
    """The code of a mask; check that it decodes to the mask."""
    coding, code = encode(mask)
    assert np.array_equal(decode(coding, code, int(mask.sum()), mask.size), mask)
    return coding, code


DENSITIES = [0.001, 0.01, 0.04, 0.079, 0.081, 0.1, 0.16, 0.3, 0.5, 0.8, 0.93, 0.999]


@pytest.mark.parametrize("density", DENSITIES)
def test_the_code_takes_about_the_entropy(density):
    mask = torch.rand(1_000_000).numpy() < density
    coding, code = coded(mask)
    assert len(code) <= 1.02 * entropy(mask) + (200 if coding == "gaps" else 0)
    assert coding == ("gaps" if min(density, 1 - density) < 0.08 else
                      "bits" if density == 0.5 else "deflated bits")  # fmt: skip


@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 9, 100, 1000, 2**18, 2**18 + 1, 1_000_001]
)
@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.9, 1])
def test_the_code_takes_at_most_a_bit_per_entry(size, density):
    _, code = coded(torch.rand(size).numpy() < density)
    assert len(code) <= math.ceil(size / 8)


@pytest.mark.parametrize("density", [0.02, 0.3, 0.5])
def test_whole_channels_are_coded_far_below_the_entropy(density):
    """Whole channels, kept or masked: far below the entropy of independent entries."""
    channels = torch.rand(1000).numpy() < density
    _, code = coded(np.repeat(channels, 1000))
    assert len(code) < 0.03 * entropy(np.repeat(channels, 1000))
    _, code = coded(np.tile(channels, 1000))
    assert len(code) < 0.1 * entropy(np.tile(channels, 1000))
