"""Damaged and foreign files: one error, at little cost, and the model unchanged."""

import contextlib
import functools
import io
import itertools
import json
import re
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import masktorch
from masktorch import Bernoulli, load_masks, save_masks
from tools.maskfile_mutants import (
    BAD,
    FORMAT_1,
    FORMAT_2,
    Damage,
    Mutants,
    Net,
    cost,
    header,
    npy,
    plain,
    rewritten,
    row,
    snapshot,
    unchanged,
    with_bomb,
    wrapped,
    zipped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "some masks")


def checkpoint(content):
    out = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, out)
    return out.getvalue()


def other_npz(content):
    out = io.BytesIO()
    np.savez(out, mask=np.ones(3))
    return out.getvalue()


WROTE = "expected a file that masktorch.save_masks wrote, found "
DAMAGED = "the mask file is damaged: "
DIGEST = DAMAGED + "its contents do not match their digest. Copy it again, or save it"
IN_TENSOR_2 = " in tensor 2 of its header, found "

# (what becomes of the bytes of a file, words of the error)
UNREADABLE = [
    (lambda b: b"", WROTE + "0 bytes."),
    (
        lambda b: b"\x93NUMPY" * 99,
        WROTE + r"594 bytes that start with b'\x93NUMPY\x93N'",
    ),
    (
        lambda b: b[: len(b) // 2],
        "bytes are not a whole zip archive (File is not a zip",
    ),
    (lambda b: b[:-1], "bytes are not a whole zip archive (File is not a zip file)."),
    (checkpoint, WROTE + "a PyTorch checkpoint: read it with torch.load and"),
    (other_npz, WROTE + "a zip archive of ['mask.npy']"),
    (
        lambda b: rewritten(b, {"masks": "weights"}),
        WROTE + "a zip archive of ['header.npy', 'weights.npy', 'digest.npy']",
    ),
    (
        lambda b: rewritten(b, {"digest": None}),
        WROTE + "a zip archive of ['header.npy', 'masks.npy']",
    ),
    (
        lambda b: rewritten(b, {"masks": "header", "header": "masks"}),
        DAMAGED + "its header is not JSON (",
    ),
    (lambda b: rewritten(b, {"masks": "digest", "digest": "masks"}), DIGEST),
    (
        lambda b: rewritten(b, header=lambda h: b"{"),
        DAMAGED + "its header is not JSON (Exp",
    ),
    (
        lambda b: rewritten(b, header=lambda h: b"[" * 100_000),
        DAMAGED + "its header is not JSON (maximum recursion depth exceeded",
    ),
    (
        lambda b: rewritten(b, header=lambda h: b"[" + h + b"]"),
        WROTE + "an archive with a header of another kind",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.pop("format"))),
        WROTE + "an archive with a header of another kind",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.update(format="masks"))),
        WROTE + "an archive with a header of another kind",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.pop("version"))),
        DAMAGED + "its format version is None.",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.update(version="1"))),
        DAMAGED + "its format version is '1'.",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.update(version=True))),
        DAMAGED + "its format version is True.",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.update(version=0))),
        DAMAGED + "its format version is 0.",
    ),
    (
        lambda b: rewritten(
            b, header=header(lambda h: h.update(masktorch="9")), redigest=False
        ),
        DIGEST,
    ),
    (lambda b: rewritten(b, redigest=False, header=row("kept", 12)), DIGEST),
    (lambda b: rewritten(b, redigest=False, masks=lambda m: m[::-1]), DIGEST),
    (lambda b: rewritten(b, redigest=False, masks=lambda m: m + b"\0"), DIGEST),
    (lambda b: rewritten(b, masks=lambda m: m + b"\0"), "bytes, its header says "),
    (
        lambda b: rewritten(b, header=header(lambda h: h.pop("tensors"))),
        DAMAGED + "its header has no list of tensors, but None.",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h.update(tensors=3))),
        DAMAGED + "its header has no list of tensors, but 3.",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h["tensors"].append("x"))),
        DAMAGED + "tensor 6 of its header is 'x'.",
    ),
    (
        lambda b: rewritten(
            b, header=header(lambda h: h.update(tensors=h["tensors"] * 2))
        ),
        "bytes, its header says ",
    ),
    (
        lambda b: rewritten(b, header=row("name", 3)),
        DAMAGED + "expected 'name' to be a string" + IN_TENSOR_2 + "3.",
    ),
    (
        lambda b: rewritten(b, header=row("tied", ["head.bias"])),
        DAMAGED + "its header names 'head.bias' twice.",
    ),
    (
        lambda b: rewritten(b, header=row("tied", [3])),
        DAMAGED + "expected 'tied' to be a list of strings" + IN_TENSOR_2 + "[3].",
    ),
    (
        lambda b: rewritten(b, header=row("sparsity", 0.5)),
        DAMAGED + "tensor 2 of its header has unknown fields ['sparsity'].",
    ),
    (
        lambda b: rewritten(b, header=header(lambda h: h["tensors"][2].pop("kept"))),
        DAMAGED + "tensor 2 of its header lacks ['kept'].",
    ),
    (
        lambda b: rewritten(b, header=row("kept", True)),
        DAMAGED + "expected 'kept' to be a number of entries" + IN_TENSOR_2 + "True.",
    ),
    (
        lambda b: rewritten(b, header=row("shape", [4, 3, 3, 3.0])),
        "expected 'shape' to be a "
        "list of at most 64 sizes" + IN_TENSOR_2 + "[4, 3, 3, 3.0].",
    ),
    (
        lambda b: rewritten(b, header=row("shape", [-4, 3, -3, 3])),
        "expected 'shape' to be ",
    ),
    (
        lambda b: rewritten(b, header=row("bytes", -1)),
        DAMAGED + "expected 'bytes' to be a number of bytes" + IN_TENSOR_2 + "-1.",
    ),
    (
        lambda b: rewritten(b, header=row("dtype", None)),
        DAMAGED + "expected 'dtype' to be the name of a dtype" + IN_TENSOR_2 + "None.",
    ),
    (
        lambda b: rewritten(b, header=row("kept", 50)),
        "in the mask of 'conv.weight', expected 50 of 108 entries kept, found ",
    ),
    (
        lambda b: rewritten(b, header=row("kept", 109)),
        "in the mask of 'conv.weight', expected 0 to 108 entries kept, found 109.",
    ),
    (
        lambda b: rewritten(b, header=row("coding", "runs")),
        "in the mask of 'conv.weight', "
        "expected the coding 'gaps', 'deflated bits' or 'bits', found 'runs'.",
    ),
    (
        lambda b: rewritten(b, masks=lambda m: b"\xff" * len(m)),
        DAMAGED
        + "in the mask of 'scale', expected 0 of 1 entries kept, found 1 by 'bits'.",
    ),
    (
        lambda b: zipped(header=b"", masks=b"", digest=b""),
        DAMAGED + "its header is not JSON",
    ),
    (
        lambda b: zipped(header=npy(np.array([None])), masks=b"", digest=b""),
        "is not JSON",
    ),
    (
        lambda b: zipped(header=npy(np.ones(3, bool)), masks=b"", digest=b""),
        "is not JSON",
    ),
    (lambda b: b"junk" + b, DAMAGED + "it has other bytes before or after it."),
    (lambda b: b + b"junk", DAMAGED + "it has other bytes before or after it."),
]


@pytest.mark.parametrize(("damage", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.parametrize(
    "onto", [plain, lambda model: wrapped(plain(model))], ids=["plain", "on"]
)
def test_a_damaged_file_is_refused(path, damage, message, onto):
    model = wrapped()
    save_masks(model, path)
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    model = onto(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_masks(model, path)
    assert str(raised.value).startswith(f"load_masks() can't load {path!r}: ")
    assert len(str(raised.value)) < 600
    assert unchanged(model, before)


@pytest.mark.parametrize("digest", [False, True])
def test_a_file_of_a_newer_format_is_refused(path, digest):
    model = wrapped()
    save_masks(model, path)
    newer = header(lambda h: h.update(version=4, tensors=None))
    Path(path).write_bytes(
        rewritten(Path(path).read_bytes(), header=newer, redigest=digest)
    )
    with pytest.raises(
        ValueError,
        match="expected a mask file of format version 3 or older, found version 4, "
        "which a newer masktorch wrote: upgrade masktorch",
    ):
        load_masks(plain(model), path)


def test_sizes_claimed_by_a_file_are_not_allocated(path):
    model = wrapped(Net(), Bernoulli())
    save_masks(model, path)
    content, huge = Path(path).read_bytes(), 200_000_000

    deflate = zlib.compressobj(1, wbits=-15)
    code = deflate.compress(bytes(huge)) + deflate.flush()
    claims = npy(np.zeros(0, np.uint8)).replace(
        b"(0,), }             ", b"(%d,), }" % 10**13
    )

    def all_is_code(h, coding):
        for number, described in enumerate(h["tensors"]):
            described["bytes"] = len(code) if number == 0 else 0
        h["tensors"][0]["coding"] = coding

    bombs = [
        zipped(header=bytes(huge), masks=b"", digest=b""),
        zipped(header=claims, masks=claims, digest=claims),
        rewritten(content, header=row("shape", [10**15])),
        rewritten(content, header=row("bytes", 10**15)),
        rewritten(content, header=row("kept", 10**15)),
        *(
            rewritten(
                content,
                masks=lambda _: code,
                header=header(functools.partial(all_is_code, coding=coding)),
            )
            for coding in ("gaps", "deflated bits")
        ),
    ]
    for damaged in bombs:
        Path(path).write_bytes(damaged)
        with (
            at_most(megabytes=6),
            pytest.raises(ValueError, match=r"load_masks\(\) can't"),
        ):
            load_masks(model, path)


@contextlib.contextmanager
def at_most(megabytes):
    """Context manager: fail if the peak memory of its block exceeds the limit."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def damage():
    return Damage()


def test_an_undamaged_file_loads(damage):
    assert damage.loads(damage.content)
    assert damage.loads(rewritten(damage.content))


def test_every_truncation_is_found(damage):
    assert not any(damage.loads(damage.content[:n]) for n in range(len(damage.content)))


def test_every_flipped_bit_of_the_arrays_is_found(damage):
    """Flip bits in the arrays inside a correct zip file."""
    for name, size in [("header", 200), ("masks", 200), ("digest", 32)]:
        for at in range(size):

            def flip(array, at=at, size=size):
                at = at * len(array) // size
                return array[:at] + bytes([array[at] ^ 1 << at % 8]) + array[at + 1 :]

            assert not damage.loads(
                rewritten(damage.content, redigest=False, **{name: flip})
            )


@pytest.mark.parametrize("which", ["header", "masks", "digest"])
@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_an_entry_larger_than_declared_is_refused(damage, method, which):
    size = 30_000_000
    content = with_bomb(damage.content, which, method, size)
    assert len(content) < 50_000
    for declared in [size + 128, 300]:
        changed = content.replace(
            struct.pack("<I", size + 128), struct.pack("<I", declared)
        )
        assert (changed == content) == (declared == size + 128)
        with at_most(megabytes=3):
            assert not damage.loads(changed)
            assert not damage.reads(changed)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_methods_are_refused(damage, method):
    content, out = io.BytesIO(damage.content), io.BytesIO()
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(
        ValueError, match=r"'header.npy' is compressed by another method than deflate"
    ):
        masktorch.read_masks(io.BytesIO(out.getvalue()))


@pytest.mark.parametrize("part", ["[],", "{},", '"ab",', "1,"])
def test_a_large_header_is_refused_cheaply(damage, part):
    more = f'"more": [{part * (15_000_000 // len(part))}0], "format"'.encode()
    content = rewritten(
        damage.content, header=lambda h: h.replace(b'"format"', more, 1)
    )
    assert len(content) < 100_000
    with (
        at_most(megabytes=3),
        pytest.raises(ValueError, match=r"'header.npy' claims to have \d+ bytes"),
    ):
        masktorch.read_masks(io.BytesIO(content))


def test_a_shape_of_many_dimensions_or_digits_is_refused(damage):
    for shape in (
        [7] * 300_000,
        [1] * 1000,
        [2**62] * 60,
        [0, *[2**62] * 60],
        [10**4000],
    ):
        edit = header(lambda h, s=shape: h["tensors"][0].update(shape=s))
        content = rewritten(damage.content, header=edit)
        with (
            at_most(megabytes=30),
            pytest.raises(ValueError, match=r"read_masks\(\) can't load "),
        ):
            masktorch.read_masks(io.BytesIO(content))
        assert not damage.loads(content)


@pytest.mark.parametrize("value", ["false", 1, None, [], {}])
def test_a_rescale_that_is_no_bool_is_refused(damage, value):
    edit = header(lambda h: h["tensors"][0].update(rescale=value))
    with pytest.raises(
        ValueError,
        match="'rescale' to be true or false in tensor 0 of its header, found",
    ):
        masktorch.read_masks(io.BytesIO(rewritten(damage.content, header=edit)))


def test_read_masks_limits_the_number_of_entries():
    file = io.BytesIO()
    save_masks(masktorch.wrap(nn.Linear(100, 100, bias=False)), file)
    assert masktorch.read_masks(io.BytesIO(file.getvalue()), most=10_000)[
        "weight"
    ].all()
    message = (
        "expected at most 9999 entries, found 10000, a byte of memory each. If you "
        "trust the file, read_masks(path, most=10000)."
    )
    with pytest.raises(ValueError, match=f": {re.escape(message)}$"):
        masktorch.read_masks(io.BytesIO(file.getvalue()), most=9_999)
    edit = header(lambda h: h["tensors"][0].update(shape=[2**40], kept=2**40))
    with (
        at_most(megabytes=1),
        pytest.raises(ValueError, match="at most 1073741824 entries, f"),
    ):
        masktorch.read_masks(io.BytesIO(rewritten(file.getvalue(), header=edit)))


def test_reading_a_valid_megabyte_takes_little_more_than_its_masks():
    """A megabyte holds at most eight million entries: half of them masked, as gaps."""
    mask = torch.rand(7_000_000).numpy() < 0.49
    steps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    kept = int(mask.sum())
    file = io.BytesIO()
    save_masks(masktorch.wrap(nn.Linear(10, 10, bias=False)), file)
    deflate = zlib.compressobj(wbits=-15, strategy=zlib.Z_HUFFMAN_ONLY)
    code = deflate.compress(steps.astype(np.uint8).tobytes()) + deflate.flush()
    edit = header(
        lambda h: h["tensors"][0].update(
            shape=[mask.size], kept=kept, bytes=len(code), coding="gaps"
        )
    )
    content = rewritten(file.getvalue(), header=edit, masks=lambda _: code)
    assert 850_000 < len(content) < 1_000_000
    with at_most(megabytes=50 + 7):
        (read,) = masktorch.read_masks(io.BytesIO(content)).values()
    assert np.array_equal(read.numpy(), mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [None, FORMAT_2, FORMAT_1], ids=["format 3", "format 2", "format 1"]
)
def test_mutants_load_as_what_was_saved_or_not_at_all(content):
    """No mutant loads as something else or is expensive; see docs/maskfiles.md."""
    damage, loaded = Damage(content), 0
    for mutant, exactly in itertools.islice(Mutants(damage.content, seed=0), 60):
        loads, *costs = cost(damage.loads, mutant, exactly)
        _, *more = cost(damage.reads, mutant, exactly)
        loaded += loads
        if len(mutant) < 10**6:
            assert max(costs[0], more[0]) < 2  # seconds, where the machine is busy
            assert max(costs[1], more[1]) < 50 + 10  # megabytes, masks included
    assert 2 < loaded < 30  # what does no harm: dates and permissions in the zip


@pytest.mark.parametrize("digest", [False, True])
def test_every_edited_field_of_the_header_is_found(damage, digest):
    described = json.loads(np.load(io.BytesIO(damage.content))["header"].tobytes())
    for value in BAD:
        for field in described:
            edit = header(lambda h, f=field, v=value: h.update({f: v}))
            changed = described[field] != value
            loads = damage.loads(
                rewritten(damage.content, header=edit, redigest=digest)
            )
            assert not (loads and changed and not (digest and field == "masktorch"))
        for i, described_row in enumerate(described["tensors"]):
            for field in described_row:
                edit = header(
                    lambda h, i=i, f=field, v=value: h["tensors"][i].update({f: v})
                )
                changed = described_row[field] != (
                    value or [] if field == "tied" else value
                )
                # With a right digest, another kept count is another file, not damage.
                loads = damage.loads(
                    rewritten(damage.content, header=edit, redigest=digest),
                    exactly=not (digest and field == "kept"),
                )
                assert not (
                    loads
                    and changed
                    and not (digest and field in ["estimator", "kept"])
                )


def test_swapped_renamed_and_removed_rows_are_found(damage):
    def swap(h):
        h["tensors"][0], h["tensors"][1] = h["tensors"][1], h["tensors"][0]

    def rename(h):
        h["tensors"][0]["name"], h["tensors"][1]["name"] = "1.weight", "0.weight"

    for edit in [
        swap,
        rename,
        lambda h: h["tensors"].pop(),
        lambda h: h["tensors"].pop(0),
    ]:
        for digest in [False, True]:
            assert not damage.loads(
                rewritten(damage.content, header=header(edit), redigest=digest)
            )


@settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=40)),
        max_size=4,
    )
)
def test_any_replaced_bytes_load_as_what_was_saved_or_not_at_all(damage, edits):
    """Replace bytes anywhere by other bytes, fewer or more."""
    content = damage.content
    for at, length, new in edits:
        at %= len(content) + 1
        content = content[:at] + new + content[at + length :]
    damage.loads(content)
