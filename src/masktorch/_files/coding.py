"""A flat mask to bytes and back, in about its entropy; docs/maskfiles.md describes the codings.

`gaps` are the distances between entries of the rarer kind, kept or masked, deflated; `deflated
bits` and `bits`, a bit for each entry, are for masks without a rare kind. Symbol by symbol
(Huffman) comes close to the entropy of independent entries, repeated patterns go below it.
"""

import zlib

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

_PASS = 255  # the byte that stands for 255 entries and none of the rarer kind
_PIECE = (
    2**18
)  # gaps decoded at a time: their positions take eight times the memory of their bytes
_SAMPLE = 2**13  # bytes by which one way to deflate is chosen
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_DEFAULT_STRATEGY)
_RARE = (
    0.08  # share of the rarer kind below which gaps are shorter (alike from 7 to 10 %)
)


def encode(mask: Bools) -> tuple[str, bytes]:
    """The coding and the code of a flat mask: never longer than its bits."""
    kept, bits = int(np.count_nonzero(mask)), np.packbits(mask).tobytes()
    if min(kept, mask.size - kept) < _RARE * mask.size:
        coding, code = "gaps", _deflated(_gaps(mask == (2 * kept <= mask.size)))
    else:
        coding, code = "deflated bits", _deflated(bits)
    return (coding, code) if len(code) < len(bits) else ("bits", bits)


def decode(coding: str, code: bytes | memoryview, kept: int, size: int) -> Bools:
    """The flat mask of `size` entries, `kept` True. Another code raises, after no more work."""
    wrong = ValueError(
        f"a code not of a mask with {kept} of {size} entries kept, by {coding!r}"
    )
    if coding not in ("gaps", "bits", "deflated bits") or not 0 <= kept <= size:
        raise wrong
    most = min(kept, size - kept) + size // _PASS if coding == "gaps" else -(-size // 8)
    content = code if coding == "bits" else _inflated(code, most)
    if coding == "gaps":
        rare_is_kept, last = 2 * kept <= size, -1
        mask = np.full(size, not rare_is_kept)
        for at in range(0, len(content), _PIECE):
            piece = np.frombuffer(content[at : at + _PIECE], np.uint8)
            ends = last + np.cumsum(piece + (piece != _PASS), dtype=np.int64)
            mask[ends[piece != _PASS]] = rare_is_kept
            last = int(ends[-1])
    else:
        mask = np.unpackbits(np.frombuffer(content, np.uint8), count=size).view(
            np.bool_
        )
    if np.count_nonzero(mask) != kept or (coding != "gaps" and len(content) != most):
        raise wrong
    return mask


def _gaps(rare: Bools) -> bytes:
    between = np.diff(np.flatnonzero(rare), prepend=-1) - 1
    passes = between // _PASS
    steps = np.full(between.size + passes.sum(), _PASS, np.uint8)
    steps[np.cumsum(passes + 1) - 1] = between % _PASS
    return steps.tobytes()


def _deflated(content: bytes) -> bytes:
    """A raw deflate stream, of the strategy that is shortest for the first of the bytes."""

    def deflated(part: bytes, strategy: int) -> bytes:
        deflate = zlib.compressobj(level=1, wbits=-15, memLevel=9, strategy=strategy)
        return deflate.compress(part) + deflate.flush()

    return deflated(
        content, min(_STRATEGIES, key=lambda s: len(deflated(content[:_SAMPLE], s)))
    )


def _inflated(code: bytes | memoryview, most: int) -> bytes:
    """A whole deflate stream of at most `most` bytes, inflated no further than that."""
    inflate = zlib.decompressobj(wbits=-15)
    content = inflate.decompress(code, most + 1)
    if len(content) > most or not inflate.eof or inflate.unused_data:
        raise ValueError(f"a code that is no deflate stream of at most {most} bytes")
    return content
