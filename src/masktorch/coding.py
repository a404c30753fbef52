"""A flat mask to bytes and back, in about its entropy.

Three codings, of which the rarer kind of the entries, kept or masked, decides:

- `gaps`: the positions of the rarer kind, deflated. From one to the next, the number of entries
  between them as a byte; the byte 255 passes 255 entries by and goes on.
- `deflated bits`: a bit for each entry, eight to a byte, deflated.
- `bits`: the same as it is, wherever nothing else is shorter.

Deflated symbol by symbol (Huffman), the first are close to the entropy of independent entries;
where runs or whole patterns repeat, so that this is shorter, they are deflated as such.
"""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

_PASS = 255  # the byte that stands for 255 entries and none of the rarer kind
_PIECE = 2**18  # entries, or bytes, coded at a time, which keeps memory small
_SAMPLE = 2**13  # bytes by which one way to deflate is chosen
# A share of the rarer kind below which gaps are shorter (measured: alike from 7 to 10 %, and from
# there on bits are ten times as fast).
_RARE = 0.08


def encode(mask: Bools) -> tuple[str, bytes]:
    """The coding and the code of a flat mask: never longer than its bits."""
    kept = int(np.count_nonzero(mask))
    if min(kept, mask.size - kept) < _RARE * mask.size:
        coding, pieces = "gaps", _gaps(mask, _rare_is_kept(kept, mask.size))
    else:
        coding, pieces = "deflated bits", _packed(mask)
    code = _deflated(pieces)
    if 8 * len(code) < mask.size:
        return coding, code
    return "bits", b"".join(_packed(mask))


def decode(coding: str, code: bytes | memoryview, kept: int, size: int) -> Bools:
    """The flat mask of `size` entries, `kept` of them True.

    Raises `ValueError` or `zlib.error` where the code is not that of such a mask, with no more work
    than such a mask would take.
    """
    if coding == "gaps":
        steps = _inflated(code, max(min(kept, size - kept), 0) + size // _PASS)
        mask = _from_gaps(steps, size, _rare_is_kept(kept, size))
    elif coding == "deflated bits":
        mask = _unpacked(_inflated(code, -(-size // 8)), size)
    elif coding == "bits":
        mask = _unpacked((code[at : at + _PIECE] for at in range(0, len(code), _PIECE)), size)
    else:
        raise ValueError(f"the unknown coding {coding!r}")
    if mask is None or np.count_nonzero(mask) != kept:
        raise ValueError(f"a code that is not of a mask with {kept} of {size} entries kept")
    return mask


def _rare_is_kept(kept: int, size: int) -> bool:
    return 2 * kept <= size


def _packed(mask: Bools) -> Iterator[bytes]:
    for at in range(0, mask.size, _PIECE):
        yield np.packbits(mask[at : at + _PIECE]).tobytes()


def _unpacked(pieces: Iterable[bytes | memoryview], size: int) -> Bools | None:
    """The mask of these bits, `None` where they are too few or too many."""
    mask, at = np.empty(size, np.bool_), 0
    for piece in pieces:
        bits = np.unpackbits(np.frombuffer(piece, np.uint8)).view(np.bool_)
        part = mask[at : at + bits.size]
        part[:] = bits[: part.size]
        at += bits.size
    return mask if at == -(-size // 8) * 8 else None


def _gaps(mask: Bools, rare_is_kept: bool) -> Iterator[bytes]:
    last = -1
    for start in range(0, mask.size, _PIECE):
        rare = np.flatnonzero(mask[start : start + _PIECE] == rare_is_kept)
        between = np.diff(rare + start, prepend=last) - 1
        last += int(between.sum()) + rare.size
        passes = between // _PASS
        steps = np.full(rare.size + passes.sum(), _PASS, np.uint8)
        steps[np.cumsum(passes + 1) - 1] = between % _PASS
        yield steps.tobytes()


def _from_gaps(pieces: Iterable[bytes], size: int, rare_is_kept: bool) -> Bools | None:
    """The mask of these steps, `None` where they lead beyond its end."""
    mask, last = np.full(size, not rare_is_kept), -1
    for piece in pieces:
        steps = np.frombuffer(piece, np.uint8)
        entry = steps != _PASS
        reached = np.cumsum(steps + entry, dtype=np.int64)
        reached += last
        last = int(reached[-1])
        rare = reached[entry]
        if rare.size and rare[-1] >= size:
            return None
        mask[rare] = rare_is_kept
    return mask


def _deflated(pieces: Iterable[bytes]) -> bytes:
    """A raw deflate stream, of the kind that is shortest for the first of the bytes."""
    pieces = iter(pieces)
    first = next(pieces, b"")
    kinds = (_deflate(zlib.Z_HUFFMAN_ONLY), _deflate(zlib.Z_RLE), _deflate(zlib.Z_DEFAULT_STRATEGY))
    trials = [kind.copy() for kind in kinds]
    lengths = [len(trial.compress(first[:_SAMPLE]) + trial.flush()) for trial in trials]
    deflate = kinds[lengths.index(min(lengths))]
    code = [deflate.compress(first), *map(deflate.compress, pieces)]
    return b"".join([*code, deflate.flush()])


def _deflate(strategy: int) -> "zlib._Compress":
    return zlib.compressobj(level=1, wbits=-15, memLevel=9, strategy=strategy)


def _inflated(code: bytes | memoryview, most: int) -> Iterator[bytes]:
    """A deflate stream inflated, a piece at a time; raises unless it is one of `most` bytes."""
    inflate = zlib.decompressobj(wbits=-15)
    for start in range(0, len(code) + _PIECE, _PIECE):
        rest = code[start : start + _PIECE]
        while piece := inflate.decompress(rest, _PIECE):
            rest = inflate.unconsumed_tail
            most -= len(piece)
            if most < 0:
                raise ValueError("a code that inflates to more than its mask")
            yield piece
    if not inflate.eof or inflate.unused_data:
        raise ValueError("a code that does not end where it should")
