"""Encode a flat mask in about its entropy, and decode it.

A mask becomes bytes in one of two ways. *Gaps* are the distances between entries of the
rarer kind, kept or masked. *Bits* are one bit per entry. Deflate then shortens the
bytes. docs/maskfiles.md describes the codings.

Huffman codes alone reach the entropy of independent entries. Structured masks (whole
rows, columns, tiles, repeated patterns) become far shorter if deflate also copies bytes
that occurred before, but its search for copies takes up to thirty times as long. So it
only runs if a few probes of the bytes find structure.
"""

import itertools
import math
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

GAPS, DEFLATED_BITS, BITS = "gaps", "deflated bits", "bits"

# A gap of g entries is the byte 255 `g // 255` times, then the byte `g % 255`.
_PASS = 255

# Share of the rarer kind below which gaps beat bits (alike from 7 to 10 %).
_RARE = 0.08
# Below this share most bytes of the gaps are passes, which form runs.
_VERY_RARE = 0.001

# Gaps; their positions take eight times the memory of their bytes.
_DECODED_AT_ONCE = 2**18

_FAST, _THOROUGH = 1, 6  # levels of deflate

_SHORT = 200  # bytes; a code this short is not worth a search for a shorter one
_SAMPLE = 2**13  # bytes that estimate how often each byte value occurs
_UNSEEN = 0.5  # occurrences assumed of a value that is not in the sample
_INCOMPRESSIBLE = 7.95  # bits of information in a byte; Huffman codes would save 0.5 %

# Runs, and densities that differ from place to place, leave less information in the
# bytes than independent entries have. n of m chosen independently leave half or more.
_INFORMATION_OF_STRUCTURE = 0.4

_LONGEST_COPY = 258  # bytes that deflate copies at once
_WINDOW = 2**15  # bytes that deflate looks back for a copy
# Windows of the probes in turn: most copies are near, at a distance of one row.
_WINDOWS = (_WINDOW, _WINDOW // 8, _WINDOW // 2, _WINDOW // 8)

# Where probes start, as shares of the bytes. Multiples of the golden ratio, modulo 1,
# are spread evenly without a common distance, which a pattern might have too. In masks
# that gain a third or more, a probe recurs with probability 0.2 to 1 (measured): 16
# probes rarely miss.
_PROBES = np.arange(16) * (math.sqrt(5) - 1) / 2 % 1
# Information of a probe: in a window of independent bytes one in 2**17 recurs.
_PROBE_BITS = 32


class Coded(NamedTuple):
    coding: str
    code: bytes


def encode(mask: Bools) -> Coded:
    """Encode a flat mask, in no more bytes than its bits take."""
    kept = int(np.count_nonzero(mask))
    rare = min(kept, mask.size - kept)
    bits = np.packbits(mask).tobytes()
    if rare < _RARE * mask.size:
        rare_entries = mask if _kept_is_rare(kept, mask.size) else ~mask
        coding, content = GAPS, _gaps(rare_entries)
    else:
        coding, content = DEFLATED_BITS, bits

    information = _information(content)
    has_runs = rare < _VERY_RARE * mask.size
    shortest = _shortest(
        [
            Coded(BITS, bits),
            *_quick_codes(coding, content, information, has_runs=has_runs),
        ]
    )
    if len(shortest.code) <= _SHORT:
        return shortest

    independent = mask.size * _entropy(rare / mask.size)
    if _is_structured(content, information, independent):
        return _shortest([shortest, *_searched_codes(coding, content, bits)])
    return shortest


def _quick_codes(
    coding: str, content: bytes, information: "_Information", *, has_runs: bool
) -> list[Coded]:
    """Deflate without a search for copies."""
    codes = []
    if information.average < _INCOMPRESSIBLE:
        codes.append(Coded(coding, _deflate(content, zlib.Z_HUFFMAN_ONLY)))
    if has_runs:
        codes.append(Coded(coding, _deflate(content, zlib.Z_RLE)))
    return codes


def _searched_codes(coding: str, content: bytes, bits: bytes) -> list[Coded]:
    """Deflate with a search for copies, near ones or all."""
    return [
        Coded(coding, _deflate(content, zlib.Z_RLE)),
        Coded(coding, _deflate(content, zlib.Z_DEFAULT_STRATEGY, _THOROUGH)),
        Coded(DEFLATED_BITS, _deflate(bits, zlib.Z_DEFAULT_STRATEGY, _THOROUGH)),
    ]


def _kept_is_rare(kept: int, size: int) -> bool:
    """Whether gaps lie between the kept entries, not between the masked ones."""
    return 2 * kept <= size


def decode(coding: str, code: bytes | memoryview, kept: int, size: int) -> Bools:
    """Decode the flat mask of `size` entries of which `kept` are True.

    Raises:
        ValueError: the code is not that of such a mask. Nothing is inflated or
            allocated beyond what such a mask takes.
    """
    if not 0 <= kept <= size:
        raise ValueError(f"expected 0 to {size} entries kept, found {kept}")
    if coding == GAPS:
        mask = _decode_gaps(code, kept, size)
    elif coding == DEFLATED_BITS:
        mask = _decode_bits(_inflate(code, _bytes_of_bits(size)), size)
    elif coding == BITS:
        mask = _decode_bits(code, size)
    else:
        raise ValueError(
            f"expected the coding {GAPS!r}, {DEFLATED_BITS!r} or {BITS!r}, found "
            f"{coding!r:.99}"
        )
    found = int(np.count_nonzero(mask))
    if found != kept:
        raise ValueError(
            f"expected {kept} of {size} entries kept, found {found} by {coding!r}"
        )
    return mask


def _shortest(codes: list[Coded]) -> Coded:
    """Choose the first of the shortest codes."""
    return min(codes, key=lambda coded: len(coded.code))


# -- bits ------------------------------------------------------------------------------


def _bytes_of_bits(size: int) -> int:
    return -(-size // 8)


def _decode_bits(bits: bytes | memoryview, size: int) -> Bools:
    if len(bits) != _bytes_of_bits(size):
        raise ValueError(
            f"expected {_bytes_of_bits(size)} bytes for {size} entries, found "
            f"{len(bits)}"
        )
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=size).view(np.bool_)


# -- gaps ------------------------------------------------------------------------------


def _gaps(rare: Bools) -> bytes:
    """Write the number of entries before each rare one, since the previous rare one."""
    gaps = np.diff(np.flatnonzero(rare), prepend=-1) - 1
    passes = gaps // _PASS
    passes_so_far = np.cumsum(passes)
    if gaps.size == 0 or passes_so_far[-1] == 0:
        return gaps.astype(np.uint8).tobytes()
    content = np.full(gaps.size + passes_so_far[-1], _PASS, np.uint8)
    content[passes_so_far + np.arange(gaps.size)] = gaps - passes * _PASS
    return content.tobytes()


def _decode_gaps(code: bytes | memoryview, kept: int, size: int) -> Bools:
    kept_is_rare = _kept_is_rare(kept, size)
    content = _inflate(code, min(kept, size - kept) + size // _PASS)
    mask = np.full(size, not kept_is_rare)
    last = -1  # position of the entry up to which gaps have been decoded
    for start in range(0, len(content), _DECODED_AT_ONCE):
        gaps = np.frombuffer(content[start : start + _DECODED_AT_ONCE], np.uint8)
        is_rare = gaps != _PASS  # a pass ends at an entry of the other kind
        ends = last + np.cumsum(gaps + is_rare, dtype=np.int64)
        last = int(ends[-1])
        if last >= size:
            raise ValueError(f"expected gaps within {size} entries, found longer ones")
        mask[ends[is_rare]] = kept_is_rare
    return mask


# -- deflate ---------------------------------------------------------------------------


def _deflate(content: bytes, strategy: int, level: int = _FAST) -> bytes:
    """Write a raw deflate stream."""
    deflate = zlib.compressobj(level, wbits=-15, memLevel=9, strategy=strategy)
    return deflate.compress(content) + deflate.flush()


def _inflate(code: bytes | memoryview, most: int) -> bytes:
    """Read a whole raw deflate stream; inflate no more than `most` bytes."""
    inflate = zlib.decompressobj(wbits=-15)
    try:
        content = inflate.decompress(code, most + 1)
    except zlib.error as error:
        raise ValueError(f"expected a deflate stream, found none ({error})") from error
    if len(content) > most or not inflate.eof or inflate.unused_data:
        raise ValueError(
            f"expected a whole deflate stream of at most {most} bytes, found another"
        )
    return content


# -- structure -------------------------------------------------------------------------


class _Information(NamedTuple):
    """Bits of information in bytes, as if each were independent of the others."""

    values: npt.NDArray[np.float64]  # of each of the 256 byte values
    average: float  # of a byte


def _information(content: bytes) -> _Information:
    """Estimate the information from a sample of the bytes."""
    # Odd, so that it shares no factor with rows of 2**n bytes and reaches all columns.
    stride = (len(content) // _SAMPLE) | 1
    sample = np.frombuffer(content, np.uint8)[::stride]
    if sample.size == 0:
        return _Information(np.zeros(256), 0.0)
    counts = np.bincount(sample, minlength=256)
    values = -np.log2(np.maximum(counts, _UNSEEN) / sample.size)
    return _Information(values, float(values @ counts) / sample.size)


def _entropy(share: float) -> float:
    """Compute the information, in bits, of an entry that is rare by this share."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def _is_structured(
    content: bytes, information: _Information, independent: float
) -> bool:
    """Tell whether deflate may find much that it can copy in the bytes of a mask.

    The cost is bounded at any size. A wrong answer costs only time or space.

    Args:
        content: the gaps or the bits of the mask.
        information: of these bytes.
        independent: information of a mask of this density with independent entries.
    """
    if len(content) * information.average < _INFORMATION_OF_STRUCTURE * independent:
        return True
    values = np.frombuffer(content, np.uint8)
    longest = min(_LONGEST_COPY, len(values) // 2)
    starts = (_PROBES * (len(values) - longest)).astype(np.int64)
    positions = starts[:, None] + np.arange(longest)  # a row for each probe
    so_far = information.values[values[positions]].cumsum(axis=1)
    lengths = 1 + np.count_nonzero(so_far < _PROBE_BITS, axis=1)
    return any(
        _recurs(content, start, length, window)
        for start, length, window in zip(
            starts.tolist(), lengths.tolist(), itertools.cycle(_WINDOWS), strict=False
        )
        if length <= longest  # otherwise it is a run, with too little information
    )


def _recurs(content: bytes, start: int, length: int, window: int) -> bool:
    """Tell whether a copy of some bytes starts at most `window` bytes before them."""
    probe = content[start : start + length]
    return content.rfind(probe, max(0, start - window), start + length - 1) >= 0
