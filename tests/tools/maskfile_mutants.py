"""Models with masks, their files, and mutants of these files, structured ones included.

    python tests/tools/maskfile_mutants.py 10000

makes that many, reads and loads each, and prints how many load and their cost.
"""

import base64
import copy
import functools
import hashlib
import io
import itertools
import json
import random
import struct
import sys
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import masktorch
from masktorch import Threshold


class Net(nn.Module):
    """One of each: a convolution, tied weights, a scalar, a tensor without entries."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.none = nn.Parameter(torch.empty(0, 3))


EVERYTHING = ["conv.weight", "conv.bias", "head.weight", "head.bias", "scale", "none"]


def wrapped(model=None, estimator=Threshold(), kept=0.5, **options):
    """A wrapped model with random masks."""
    model = Net() if model is None else model
    masktorch.wrap(model, estimator, **{"targets": EVERYTHING, **options})
    drawn = {n: torch.rand(m.shape) < kept for n, m in masktorch.masks(model).items()}
    return masktorch.set_masks(model, drawn)


def plain(model):
    """The model without its masks, over the same weights."""
    return masktorch.unwrap(copy.deepcopy(model), bake=False)


def trained(model):
    """The model with other weights."""
    with torch.no_grad():
        for name in ["head.bias", "embed.weight"]:
            dict(model.named_parameters())[name][-1] += 1
    return model


def same(some, others):
    return some.keys() == others.keys() and all(
        torch.equal(some[n], others[n]) for n in some
    )


def snapshot(model):
    """All that a failed load must leave alone."""
    tensors = model.state_dict(keep_vars=True).items()
    state = {n: t.detach().clone() for n, t in tensors if not (is_lazy(t) or t.is_meta)}
    flags = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
    return str(model), [type(m) for m in model.modules()], flags, state


def unchanged(model, before):
    after = snapshot(model)
    return after[:3] == before[:3] and same(after[3], before[3])


def rewritten(content, names=None, redigest=True, store=False, **changed):
    """The bytes of a mask file with changed arrays.

    Args:
        content: the file.
        names: new names of entries.
        redigest: whether to make the digest right again.
        store: whether entries are stored instead of deflated.
        changed: for each array to change, a function of its bytes.
    """
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name].tobytes() for name in ["header", "masks", "digest"]}
    for name, change in changed.items():
        arrays[name] = change(arrays[name])
    if redigest:
        arrays["digest"] = hashlib.sha256(arrays["header"] + arrays["masks"]).digest()
    content = {
        (names or {}).get(k, k): npy(np.frombuffer(v, np.uint8))
        for k, v in arrays.items()
    }
    method = zipfile.ZIP_STORED if store else zipfile.ZIP_DEFLATED
    return zipped(method, **{name: array for name, array in content.items() if name})


def header(edit):
    """A change of the header, for `rewritten`."""

    def change(text):
        described = json.loads(text)
        edit(described)
        return json.dumps(described).encode()

    return change


def row(field, value):
    return header(lambda h: h["tensors"][2].update({field: value}))


def zipped(method=zipfile.ZIP_DEFLATED, **entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


BAD = [
    None,
    -1,
    0,
    1,
    2,
    10**30,
    1.5,
    True,
    "",
    "x",
    [],
    {},
    [[]],
    [-1],
    [10**30],
    [8, 9],
    [72],
    "0.weight",
    "1.weight",
    "gaps",
    "bits",
    "deflated bits",
    ["0.weight"],
    ["x", "x"],
    [0] * 99,
    [2**62, 2**62],
    "\ud800",
    10**7,
    [10**7],
    "float64",
    "0" * 32,
]


class Damage:
    """A model, its file, and the question what a damaged file does to a model."""

    def __init__(self, content=None):
        torch.manual_seed(0)
        start = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(70, 10))
        for parameter in start.parameters():  # known numbers: a file of the past fits
            parameter.data = torch.arange(parameter.numel()).view(parameter.shape) / 8
        model = masktorch.wrap(start, targets=["0.weight", "1.weight", "2.weight"])
        self.masks = {
            n: torch.arange(m.numel()).view(m.shape) % 10 < i + 1
            for i, (n, m) in enumerate(masktorch.masks(model).items())
        }
        masktorch.set_masks(model, self.masks)
        masktorch.save_masks(model, file := io.BytesIO())
        self.content = content or file.getvalue()
        self.before = {n: ~m for n, m in self.masks.items()}
        self.onto = masktorch.set_masks(model, self.before)

    def loads(self, content, exactly=True):
        """Load it; check that the masks are those saved, or the model unchanged."""
        try:
            masktorch.load_masks(self.onto, io.BytesIO(content))
        except ValueError as error:
            message = str(error)
        else:
            message = ""
        if message:
            assert message.startswith("load_masks() can't ")
            assert "BytesIO" in message
            assert same(masktorch.masks(self.onto), self.before)
            return False
        if exactly:
            assert same(masktorch.masks(self.onto), self.masks)
        masktorch.set_masks(self.onto, self.before)
        return True

    def reads(self, content, exactly=True):
        """The same without a model."""
        try:
            masks = masktorch.read_masks(io.BytesIO(content), most=10**7)
        except ValueError:
            return False
        assert all(mask.dtype is torch.bool for mask in masks.values())
        if exactly:
            assert same(masks, self.masks)
        return True


def deflated(content):
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(bytes(content)) + deflate.flush()


ZEROS = deflated(bytes(10**8))


@functools.cache
def with_bomb(content, which, method, size):
    """The file with one of its arrays all zeros, and many."""
    start, out = npy(np.zeros(0, np.uint8)), io.BytesIO()
    start = start.replace(b"(0,), }" + b" " * 9, b"(%d,), }".ljust(16) % size)[
        :128
    ].ljust(128)
    with (
        np.load(io.BytesIO(content)) as file,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name in ["header", "masks", "digest"]:
            if name == which:
                archive.writestr(f"{name}.npy", start + bytes(size), method)
            else:
                archive.writestr(f"{name}.npy", npy(file[name]))
    return out.getvalue()


class Mutants:
    """Mutants of a file: (its bytes, whether it may only load as what was saved)."""

    def __init__(self, content, seed):
        self.content, self.rng = content, random.Random(seed)
        self.kinds = [
            self.bytes,
            self.bytes,
            self.field,
            self.field,
            self.rows,
            self.bloated,
            self.codes,
            self.bomb,
            self.entry,
            self.names,
            self.npy,
        ]

    def __iter__(self):
        while True:
            yield self.rng.choice(self.kinds)()

    def bytes(self):
        """Bytes flipped, replaced, removed, doubled."""
        rng, content = self.rng, bytearray(self.content)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            at, kind = rng.randrange(len(content)), rng.randrange(6)
            if kind < 2:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                length = rng.choice([1, 2, 4, 30])
                content[at : at + length] = rng.randbytes(length)
            elif kind == 3:
                del content[at : at + rng.choice([1, 4, 100])]
            elif kind == 4:
                other = rng.randrange(len(content))
                content[at:at] = content[other : other + rng.choice([1, 4, 100])]
            else:
                del content[at:]
            content = content or bytearray(b"?")
        return bytes(content), True

    def field(self):
        """A field of the header, of a kind or a value that it should not have."""
        rng, value = self.rng, self.rng.choice(BAD)

        def edit(described):
            place = rng.choice([described, *described["tensors"]])
            place[rng.choice([*place, "other"])] = value

        redigest = rng.random() < 0.7
        return rewritten(
            self.content, header=header(edit), redigest=redigest
        ), not redigest

    def rows(self):
        """Rows doubled, dropped, shuffled, by the thousand."""
        rng = self.rng

        def edit(described):
            rows = described["tensors"]
            kind = rng.randrange(4)
            if kind == 0:
                rng.shuffle(rows)
            elif kind == 1:
                del rows[rng.randrange(len(rows))]
            elif kind == 2:
                rows += rng.choices(rows, k=rng.choice([1, 1000]))
            else:
                more = range(rng.choice([1, 100, 3000]))
                rows += [{**rows[0], "name": str(i), "bytes": 0} for i in more]

        redigest = rng.random() < 0.8
        return rewritten(self.content, header=header(edit), redigest=redigest), False

    def bloated(self):
        """A header of megabytes of brackets, numbers or strings, right otherwise."""
        rng = self.rng
        part = rng.choice(
            ["[]", "{}", "1", '"ab"', "1.5", "[[[[]]]]", '{"a":[]}', "1" * 4000]
        )
        length = rng.choice([10**4, 7 * 10**5, 10**6, 15 * 10**6])
        text = "[" + f"{part}," * (length // len(part) // 2) + "0]"
        if rng.random() < 0.1:
            text = "[" * len(text)

        def change(described):
            if rng.random() < 0.5:
                return described[:-1] + b', "more": ' + text.encode() + b"}"
            return described.replace(
                b'"shape":', b'"shape": ' + text.encode() + b', "also":', 1
            )

        return rewritten(self.content, header=change, store=rng.random() < 0.1), True

    def codes(self):
        """Codes of other lengths, of noise, that inflate to a hundred megabytes."""
        rng = self.rng
        kind = rng.randrange(4)
        code = (
            rng.randbytes(rng.choice([0, 1, 9, 99])),
            rng.choice(
                [
                    ZEROS,
                    deflated(rng.choice([b"\xff", b"\1"]) * rng.choice([10, 10**6])),
                ]
            ),
            deflated(rng.randbytes(rng.choice([1, 8, 9, 10, 88]))),
            b"\0\0\0\xff\xff" * rng.choice([1, 10**5]),  # deflate blocks of nothing
        )[kind]
        which, coding = rng.randrange(3), rng.choice(["gaps", "bits", "deflated bits"])

        def change(masks, described):
            rows, codes = described["tensors"], []
            for row in rows:
                codes.append(masks[: row["bytes"]])
                masks = masks[row["bytes"] :]
            codes[which] = code
            rows[which]["bytes"] = len(code)
            if described["version"] > 1:
                rows[which]["coding"] = coding
            if rng.random() < 0.3:
                rows[which]["shape"] = [rng.choice([72, 10**6, 10**7, 10**9, 10**12])]
                rows[which]["kept"] = rng.choice([0, 1, rows[which]["shape"][0]])
            return b"".join(codes)

        with np.load(io.BytesIO(self.content)) as file:
            described = json.loads(file["header"].tobytes())
            masks = change(file["masks"].tobytes(), described)
        text = json.dumps(described).encode()
        return rewritten(
            self.content, header=lambda _: text, masks=lambda _: masks
        ), False

    def bomb(self):
        """An entry that inflates to megabytes, with any declared size."""
        rng = self.rng
        method = rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
        which = rng.choice(["header", "masks", "digest"])
        size = rng.choice([10**6, 3 * 10**7])
        content = bytearray(with_bomb(self.content, which, method, size))
        if rng.random() < 0.7:  # the size that both headers of the entry declare
            declared = struct.pack("<I", rng.choice([0, 1, 300, 10**5, 2**32 - 2]))
            content = content.replace(struct.pack("<I", size + 128), declared)
        return bytes(content), True

    def entry(self):
        """A number in the headers of an entry or at the end of the zip."""
        rng, content = self.rng, bytearray(self.content)
        sign, fields = rng.choice(
            [
                (
                    b"PK\x03\x04",
                    [
                        (4, 2),
                        (6, 2),
                        (8, 2),
                        (14, 4),
                        (18, 4),
                        (22, 4),
                        (26, 2),
                        (28, 2),
                    ],
                ),
                (
                    b"PK\x01\x02",
                    [
                        (8, 2),
                        (10, 2),
                        (16, 4),
                        (20, 4),
                        (24, 4),
                        (28, 2),
                        (30, 2),
                        (32, 2),
                        (34, 2),
                        (42, 4),
                    ],
                ),
                (
                    b"PK\x05\x06",
                    [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
                ),
            ]
        )
        places = [at for at in range(len(content)) if content.startswith(sign, at)]
        start, length = rng.choice(fields)
        at = rng.choice(places) + start
        value = rng.choice(
            [0, 1, 8, 9, 12, 14, 93, 95, 99, 300, 65535, 2**31, 2**32 - 1]
        )
        content[at : at + length] = (value % 256**length).to_bytes(length, "little")
        return bytes(content), True

    def names(self):
        """Other entries, twice the same, by the thousand."""
        rng, out = self.rng, io.BytesIO()
        with (
            np.load(io.BytesIO(self.content)) as file,
            zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive,
        ):
            for name in rng.choices(["header", "masks", "digest"], k=3):
                if f"{name}.npy" not in archive.namelist():
                    archive.writestr(f"{name}.npy", npy(file[name]))
            for i in range(rng.choice([0, 1, 2000])):
                archive.writestr(str(i), b"")
        return out.getvalue(), True

    def npy(self):
        """The npy header of an array: another shape, another kind, nested."""
        rng = self.rng
        text = rng.choice(
            [
                "(99,)",
                "(10000000000000,)",
                "(-1,)",
                "()",
                "(9, 9)",
                "(" * 3000,
                "(9" * 2000,
                "None",
            ]
        )
        kind = rng.choice(["|u1", "|O", "<f8", "|b1", "|S99", "x"])
        fields = f"'descr': '{kind}', 'fortran_order': False, 'shape': {text}, "
        described = f"{{{fields}}}\n".encode()
        array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(described)) + described
        which = rng.choice(["header", "masks", "digest"])
        with np.load(io.BytesIO(self.content)) as file:
            arrays = {name: npy(file[name]) for name in ["header", "masks", "digest"]}
        return zipped(**{**arrays, which: array + arrays[which][128:]}), True


# What earlier versions wrote for the model of `Damage`.
FORMAT_1 = base64.b64decode(
    """UEsDBC0AAAAIAAAAIQD6pCIQ//////////8KABQAaGVhZGVyLm5weQEAEADIAgAAAAAAAEkBAAAAAAAA
    pZBBb8IgHMXddZ+CcKkmxEBpC5jsutuWHbbDspgFCthGbQ2gy+L6KfaFB3qYi54mJ/7vvfD/Pb4fXx6e
    Xm9Gu9E+08bXLpuB7GtLMgQy27vgZPfeO22Sfi9X3kTdN3Jj4jwueYEmCAzg3+d2D+OWtQxwBuBa+mXo
    Xd2AdPMQAbgzzrd9F12CTgIpjadkilMmmM73zkftbQ87uTZH98O0iyakwIE32RwBMY/C0mzSwjhCFzvL
    VXLtsR00PrQRqHfpmecmBpp+pcdBbu/wtJykB9VnMGkfwXGwbbcwbuPa7lACq6LkSqlasqriNi8p1rmy
    Za0ZpVwROCDwi0kuYTIE+Akmya/mLM45qcqV0FYwqnhBJTGFUEzXJSWFZqw0fznzS5ypPsMnpPnhQ65C
    LcQ5qqVE69KK2laFzVVlKyWIqYzgHIsKMzjMhx9QSwMELQAAAAgAAAAhAOllHtn//////////wkAFABt
    YXNrcy5ucHkBABAAyQAAAAAAAABkAAAAAAAAAJvsF+obEMnIUMZQrZ6SWpxcpG6loF5Taqiuo6Cell9U
    UpSYF59flJIKEndLzClOBYoXZyQWpAL5GubGOpo6CrUK5AOu5AdPwICFITnhARwyMLAeVGRkYGBoUJj1
    X567gzBgBABQSwMELQAAAAgAAAAhADHbHn///////////woAFABkaWdlc3QubnB5AQAQAKAAAAAAAAAA
    ZwAAAAAAAACb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ck
    FqQC+RrGRjqaOgq1CuQDrtQ5R4uerfDweGLh8JiZx5RVb43pbg1RT5fDnHPuMibX/gQAUEsBAi0DLQAA
    AAgAAAAhAPqkIhBJAQAAyAIAAAoAAAAAAAAAAAAAAIABAAAAAGhlYWRlci5ucHlQSwECLQMtAAAACAAA
    ACEA6WUe2WQAAADJAAAACQAAAAAAAAAAAAAAgAGFAQAAbWFza3MubnB5UEsBAi0DLQAAAAgAAAAhADHb
    Hn9nAAAAoAAAAAoAAAAAAAAAAAAAAIABJAIAAGRpZ2VzdC5ucHlQSwUGAAAAAAMAAwCnAAAAxwIAAAAA"""
)

FORMAT_2 = base64.b64decode(
    """UEsDBBQAAAAIAAAAIQAs8YkeVwEAAOoCAAAKAAAAaGVhZGVyLm5wea2Pv07DMBCHy8pTRF5CJauy8892
    JVY2EAMMCFXIjs9N1DapbLcIlT4FL8ylQ4EOHQBPd7/Puvvu4+7x9v7pYrQd7VILofbpNEnfNzylSep6
    H73uXnpvYchv9DIA5qHRa8D+quKSjmmyT379LncEt6x0JFOy0mERe183yVAFQskWfGj7jkwz+kXxJ5vw
    CUMeoQu9D2T6vCOdXsEBvUI7b+JAW7CIZpQchLGUVGG3gDWuk5R4vFcvEbjDYQRCbFGl9zjnoUHa9Et7
    FfXmmk3KMU6se9t2c6SmjYOfeYuA2xUlDnPwa992wyXMFKU0xtRaVJV0WZkzmxlX1lbkuTSc7OlRmJ8T
    FlQehXn2f8bi1Dg3mVHWKZEbWeSaQ6GMsHWZ88IKUcJ34+ycMWdUsKNzhu0fpC24pY5gk5/2nJ/qu5xb
    WzpVu6pwmalcZRSHCpSUTFVMkP1s/wlQSwMEFAAAAAgAAAAhAMiSjSZfAAAAmwAAAAkAAABtYXNrcy5u
    cHmb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpG
    5jqaOgq1CuQDrgYFDiYGEHHAgIeZ4YBBdcLB43c+NLxiYWYAAFBLAwQUAAAACAAAACEAln1ShmcAAACg
    AAAACgAAAGRpZ2VzdC5ucHmb7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3
    S8wpTgWKF2ckFqQC+RrGRjqaOgq1CuQDLj65F5m2x3+3Si62lfozx1xij8yhKTVqTZuj926o1SvuOwkA
    UEsBAhQDFAAAAAgAAAAhACzxiR5XAQAA6gIAAAoAAAAAAAAAAAAAAIABAAAAAGhlYWRlci5ucHlQSwEC
    FAMUAAAACAAAACEAyJKNJl8AAACbAAAACQAAAAAAAAAAAAAAgAF/AQAAbWFza3MubnB5UEsBAhQDFAAA
    AAgAAAAhAJZ9UoZnAAAAoAAAAAoAAAAAAAAAAAAAAIABBQIAAGRpZ2VzdC5ucHlQSwUGAAAAAAMAAwCn
    AAAAlAIAAAAA"""
)


def cost(function, *arguments):
    """Call a function; return its result, its processor seconds and its megabytes."""
    start = time.process_time()
    result = function(*arguments)
    seconds = time.process_time() - start
    tracemalloc.start()
    function(*arguments)
    megabytes = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return result, seconds, megabytes


def main(count):
    loaded = read = large = 0
    slowest = most = 0.0
    for content, seed in [(None, 0), (FORMAT_1, 1), (FORMAT_2, 2)]:
        damage = Damage(content)
        for mutant, exactly in itertools.islice(
            Mutants(damage.content, seed), count // 3
        ):
            loads, *costs = cost(damage.loads, mutant, exactly)
            reads, *more = cost(damage.reads, mutant, exactly)
            loaded, read = loaded + loads, read + reads
            if len(mutant) > 10**6:
                large += 1
            else:
                slowest = max(slowest, costs[0], more[0])
                most = max(most, costs[1], more[1])
    print(
        f"{count} mutants: {loaded} load, {read} can be read, all others are refused; "
        f"at most"
    )
    print(
        f"{slowest:.2f} s and {most:.0f} MB ({large} of more than a megabyte are left "
        f"out there)"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
