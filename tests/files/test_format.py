"""The format of a mask file, read by an independent reader; files of format 1."""

import base64
import hashlib
import io
import json
import math
import zlib

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    load_masks,
    save_masks,
)
from tools.maskfile_mutants import (
    FORMAT_1,
    FORMAT_2,
    Damage,
    same,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (1, 1), (3, 4), (0, 3), (2, 3, 4)])
def test_the_fingerprint_hashes_values_in_row_major_order(path, shape, dtype):
    values = torch.randn(shape, dtype=dtype)
    wide = torch.stack([values, values + 1], -1)
    for tensor in [
        values,
        wide[..., 0],
        values.mT.contiguous().mT if len(shape) > 1 else values,
    ]:
        model = wrapped(nn.ParameterDict({"a": tensor}), targets=["a"])
        save_masks(model, path)
        content = b"".join(
            value.view(torch.uint8).numpy().tobytes()
            for value in values.reshape(-1, 1).clone()
        )
        sha = hashlib.sha256(f"{dtype} {list(shape)}\n".encode() + content)
        assert slowly(path)[1]["tensors"][0]["fingerprint"] == sha.hexdigest()[:32]


def slowly(path):
    """The reader that docs/maskfiles.md describes, one entry at a time."""
    with np.load(path, allow_pickle=False) as file:
        assert sorted(file.files) == ["digest", "header", "masks"]
        assert all(
            file[name].dtype == np.uint8 and file[name].ndim == 1 for name in file.files
        )
        text, coded, digest = (
            file[name].tobytes() for name in ("header", "masks", "digest")
        )
    assert hashlib.sha256(text + coded).digest() == digest
    header = json.loads(text)
    assert (header["format"], header["version"]) == ("masktorch masks", 3)
    masks = {}
    for row in header["tensors"]:
        size, code = math.prod(row["shape"]), coded[: row["bytes"]]
        coded = coded[row["bytes"] :]
        if row["coding"] == "gaps":
            rare_is_kept = row["kept"] <= size - row["kept"]
            mask, at = [not rare_is_kept] * size, -1
            for byte in zlib.decompress(code, wbits=-15):
                at += 255 if byte == 255 else byte + 1
                if byte != 255:
                    mask[at] = rare_is_kept
        else:
            bits = code if row["coding"] == "bits" else zlib.decompress(code, wbits=-15)
            assert len(bits) == math.ceil(size / 8)
            mask = [bits[at // 8] << at % 8 & 128 > 0 for at in range(size)]
        assert sum(mask) == row["kept"]
        masks[row["name"]] = torch.tensor(mask, dtype=torch.bool).view(row["shape"])
    assert not coded
    return masks, header


@pytest.mark.parametrize(
    "kept", [0, 0.0005, 0.002, 0.02, 0.1, 0.16, 0.5, 0.84, 0.98, 0.9995, 1]
)
def test_an_independent_reader_finds_the_same_masks(path, kept):
    model = wrapped(
        nn.Linear(200, 300), Bernoulli(0.3), kept, bias=True, targets=["weight"]
    )
    if kept == 0.5:  # exactly
        masktorch.set_masks(
            model,
            {
                "weight": torch.arange(60_000).view(300, 200) % 2 == 0,
                "bias": torch.arange(300) % 3 != 0,
            },
        )
    save_masks(model, path)
    masks, header = slowly(path)
    assert same(masks, masktorch.masks(model))
    weight = header["tensors"][0]
    assert weight["name"] == "weight"
    assert eval(weight["estimator"]) == Bernoulli(0.3)
    assert weight["rescale"] is False
    under = model.parametrizations.weight.original.detach().numpy()
    sha = hashlib.sha256(b"torch.float32 [300, 200]\n" + under.tobytes())
    assert weight["fingerprint"] == sha.hexdigest()[:32]
    assert header["masktorch"] == masktorch.__version__
    load_masks(
        masktorch.set_masks(model, {n: ~m for n, m in masks.items()})
        if 0 < kept < 1
        else model,
        path,
    )
    assert same(masktorch.masks(model), masks)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 32), nn.Linear(32, 8)
        self.head.weight = self.embed.weight
        with torch.no_grad():
            self.head.weight.copy_(torch.arange(256.0).view(8, 32))
            self.head.bias.copy_(torch.arange(8.0))


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_earlier_formats_load(version):
    """Real ones. Format 1 has the first names of tied tensors and codes all by gaps."""
    tied = {1: TIED_OF_FORMAT_1, 2: TIED_OF_FORMAT_2}[version]
    weight = torch.arange(256).view(8, 32) % 3 == 0
    weight[5:] = False
    masks = {"embed.weight": weight, "head.bias": torch.arange(8) != 5}
    assert same(masktorch.read_masks(io.BytesIO(tied)), masks)
    for model in (Tied(), masktorch.wrap(Tied(), targets=["head.weight", "head.bias"])):
        load_masks(model, io.BytesIO(tied))
        assert same(masktorch.masks(model), masks)
        assert torch.equal(
            model.eval().head.weight != 0, weight & (model.head.weight != 0)
        )
    with pytest.raises(ValueError, match="expected fingerprint "):  # not the dtype
        load_masks(Tied().double(), io.BytesIO(tied))

    content = {1: FORMAT_1, 2: FORMAT_2}[version]
    damage = Damage(content)
    assert damage.loads(content)
    assert damage.reads(content)


TIED_OF_FORMAT_1 = base64.b64decode(
    """UEsDBC0AAAAIAAAAIQBYaa7k//////////8KABQAaGVhZGVyLm5weQEAEAAfAgAAAAAAACYBAAAAAAAA
    pY+/TsMwEMbLylNYXtJKURQ7/yuxsoEYYECoqs7xuYnaxJXtFqGSp+CFsctAERvcdPfdp/t+93H/dPfw
    fDU7zk6RRNuaaEmi9wOLYhIpbZyBca2NxKDfws6i120He/TzPGdFvIjJRP5c1yfqUwZwdEnoAHbrtGk7
    EjpLY0KPaGyvR79l8YUhuNOEJWnwOBytNtZrLyc6woBhi4NAmbxiv+lcMJ2Zg6WOScZXXtniPqQWue+N
    /xx2Ya++fqRoXe+xtAnHHjtv6PROzh0cbtKkWIST4s1hSOWpH1Q/btDsTT+eX2FQtyW2JVcix1LlaYO8
    lFDIslGVrFo6xeQbtkOQiejB/iS9oKz+C5n9ZuSMlyoTgnEASFleV20moGi4BNnUIqfTavoEUEsDBC0A
    AAAIAAAAIQCWJ7tD//////////8JABQAbWFza3MubnB5AQAQAJcAAAAAAAAAWQAAAAAAAACb7BfqGxDJ
    yFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGxjqaOgq1CuQD
    LtaDjJwMDAwNCz78f2HCAAYGyawMAFBLAwQtAAAACAAAACEAC9n6Cv//////////CgAUAGRpZ2VzdC5u
    cHkBABAAoAAAAAAAAABmAAAAAAAAAJvsF+obEMnIUMZQrZ6SWpxcpG6loF5Taqiuo6Cell9UUpSYF59f
    lJIKEndLzClOBYoXZyQWpAL5GsZGOpo6CrUK5AOuQ5bfzd65cWsI+19l/l1R1Cju3eimsJ8zf5E128vT
    rb4xAFBLAQItAy0AAAAIAAAAIQBYaa7kJgEAAB8CAAAKAAAAAAAAAAAAAACAAQAAAABoZWFkZXIubnB5
    UEsBAi0DLQAAAAgAAAAhAJYnu0NZAAAAlwAAAAkAAAAAAAAAAAAAAIABYgEAAG1hc2tzLm5weVBLAQIt
    Ay0AAAAIAAAAIQAL2foKZgAAAKAAAAAKAAAAAAAAAAAAAACAAfYBAABkaWdlc3QubnB5UEsFBgAAAAAD
    AAMApwAAAJgCAAAAAA=="""
)

TIED_OF_FORMAT_2 = base64.b64decode(
    """UEsDBBQAAAAIAAAAIQBjK7xoOgEAAEYCAAAKAAAAaGVhZGVyLm5weaWQzU7DMBCEy5WniHxJK1lR4qb5
    k7hyA3GAA0IVWsfrxmp+KtstQiVPwQuz6aFFPYJP3pmR9xt/P748PL3ezA6zY6jQ1TasgvBrn4Q8CPVg
    vYX+fbAKJ/0eWoekuwZ2SPM8XaV8wYMx+PO5PTLa0oFnFevAbf1g6yaYbo5xdkDrzNCzSvCLS8k4SqKY
    fI+9G6xj1duR9dAhWdhJVNEHmk3jp4RBRTZrEM7qmrNTA9ILvhQ0bnFHAFSGWfoCaMnSp64MnTdEN1h6
    +rkhtxlaNfewv4uj1YIW1IMy/YZchboFjyqQxk/s8tMjkSUxZ5oSaHfW9FPNBIo6wzoTWqaY6TQuUWQK
    Viorda7ymo383OaELQ24S5Xf9Gf0/D/kV8DXvCIRmV5KmQgAiJO0yOulhFUpFKiykCkb1+MPUEsDBBQA
    AAAIAAAAIQAZ+R8nUQAAAIsAAAAJAAAAbWFza3MubnB5m+wX6hsQychQxlCtnpJanFykbqWgXlNqqK6j
    oJ6WX1RSlJgXn1+UkgoSd0vMKU4FihdnJBakAvkahoY6mjoKtQrkA67ZT1YaccoaKjAy/AYAUEsDBBQA
    AAAIAAAAIQDrYmcEZwAAAKAAAAAKAAAAZGlnZXN0Lm5weZvsF+obEMnIUMZQrZ6SWpxcpG6loF5Taqiu
    o6Cell9UUpSYF59flJIKEndLzClOBYoXZyQWpAL5GsZGOpo6CrUK5AMuhZPaXS/ZHl5vXvrl8UfO+EyJ
    RO0tyx5W/PyvcYdL0uW/KQBQSwECFAMUAAAACAAAACEAYyu8aDoBAABGAgAACgAAAAAAAAAAAAAAgAEA
    AAAAaGVhZGVyLm5weVBLAQIUAxQAAAAIAAAAIQAZ+R8nUQAAAIsAAAAJAAAAAAAAAAAAAACAAWIBAABt
    YXNrcy5ucHlQSwECFAMUAAAACAAAACEA62JnBGcAAACgAAAACgAAAAAAAAAAAAAAgAHaAQAAZGlnZXN0
    Lm5weVBLBQYAAAAAAwADAKcAAABpAgAAAAA="""
)
