"""Mask files: what is saved comes back, small, onto what it was saved from, or one error says why
not."""

import base64
import copy
import hashlib
import io
import json
import math
import os
import re
import stat
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import (
    Bernoulli,
    Concrete,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
    load_masks,
    save_masks,
)
from masktorch._files import archive
from tools.maskfile_mutants import (
    EVERYTHING,
    FORMAT_1,
    Damage,
    Net,
    plain,
    same,
    snapshot,
    unchanged,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")

ESTIMATORS = [
    Threshold(),
    Bernoulli(),
    IntermediateSampling(),
    Piggyback(),
    HardConcrete(),
    Concrete(),
]

# The 29 convolutions and linear layers of the WRN-28-8 of the blog post: their entries.
BLOCKS = [(16, 128), (128, 256), (256, 512)]
WRN = [448, 5130]
for before, after in BLOCKS:
    WRN += [
        before * after * 9 + after,
        *[after * after * 9 + after] * 7,
        before * after + after,
    ]


def entropy(masks):
    """Bytes: the sum over tensors of n * H(masked fraction) / 8."""
    total = 0.0
    for mask in masks.values():
        n, kept = mask.numel(), int(mask.sum())
        for k in (kept, n - kept):
            total -= k * math.log2(k / n) / 8 if k else 0
    return total


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "some masks")


# Round trips


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("frozen", [False, True])
def test_masks_come_back_onto_a_plain_and_onto_a_wrapped_model(
    path, estimator, dtype, frozen
):
    model = wrapped(Net().to(dtype), estimator, kept=0.3)
    masktorch.freeze_mask(model, frozen)
    masks = masktorch.masks(model)
    save_masks(model, path)
    assert os.listdir(os.path.dirname(path)) == [
        "some masks"
    ]  # nothing is appended to the path

    loaded = plain(model)
    trains = [(n, p.requires_grad) for n, p in loaded.named_parameters()]
    assert load_masks(loaded, path) is loaded
    assert same(masktorch.masks(loaded), masks)
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == trains
    assert list(masktorch.mask_parameters(loaded)) == []
    assert torch.equal(loaded.conv.weight, model.eval().conv.weight)
    assert (
        loaded.head.weight.data_ptr() != loaded.embed.weight.data_ptr()
    )  # computed, from
    assert torch.equal(
        loaded.head.weight, loaded.embed.weight
    )  # one tensor under one mask

    other = wrapped(plain(model), estimator, kept=0.9)
    masktorch.freeze_mask(other, frozen)
    assert not same(masktorch.masks(other), masks)
    assert load_masks(other, path) is other
    assert same(masktorch.masks(other), masks)
    assert all(s.requires_grad != frozen for s in masktorch.mask_parameters(other))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
def test_scores_are_not_loaded_as_a_mask_nor_a_mask_as_scores(path, strict, assign):
    """Cast to bool, every score but zero would be kept."""
    learning = wrapped(Net(), kept=0.3)
    save_masks(learning, path)
    given = load_masks(plain(learning), path)
    for onto, state, words in (
        (given, learning.state_dict(), "expected a mask, found scores (torch.float32)"),
        (learning, given.state_dict(), "expected scores, found a mask (torch.bool)"),
    ):
        masks = masktorch.masks(onto)
        with pytest.raises(RuntimeError, match=re.escape(words)):
            onto.load_state_dict(state, strict=strict, assign=assign)
        assert same(masktorch.masks(onto), masks)
        rest = {
            name: tensor
            for name, tensor in state.items()
            if not name.endswith("scores")
        }
        onto.load_state_dict(rest, strict=False)
    fresh = load_masks(Net(), path, any_weights=True)
    fresh.load_state_dict(given.state_dict())  # of one kind
    assert same(fresh.state_dict(), given.state_dict())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.* is deprecated")
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_model_has_the_names_of_the_model_itself(path, inside):
    def compiled(model):
        if inside:
            model.conv = torch.compile(model.conv)
            return model
        return torch.compile(model)

    model = wrapped(Net(), kept=0.3)
    masks, handle = masktorch.masks(model), compiled(model)
    assert same(masktorch.masks(handle), masks)
    save_masks(handle, path)
    loaded = load_masks(Net(), path, any_weights=True)
    assert same(masktorch.masks(loaded), masks)
    for again in (
        compiled(Net()),
        masktorch.wrap(compiled(Net()), targets=list(masks)),
    ):
        assert same(masktorch.masks(load_masks(again, path, any_weights=True)), masks)


def test_any_order(tmp_path):
    first, second, third = (str(tmp_path / f"{i}.npz") for i in range(3))
    model = wrapped()
    masks = masktorch.masks(model)
    save_masks(model, first)  # learning
    masktorch.freeze_mask(model)
    save_masks(model, second)  # frozen
    assert (
        Path(first).read_bytes() == Path(second).read_bytes()
    )  # nothing but what they say
    given_masks = load_masks(plain(model), second)
    save_masks(given_masks, third)  # given
    assert same(masktorch.masks(load_masks(plain(model), third)), masks)

    others = wrapped(plain(model), Bernoulli())  # another estimator: a mask is a mask
    save_masks(others, first)
    load_masks(given_masks, first)  # given masks are switched by loading
    assert same(masktorch.masks(given_masks), masktorch.masks(others))
    load_masks(given_masks, second)
    assert same(masktorch.masks(given_masks), masks)
    assert same(masktorch.masks(load_masks(others, third)), masks)


def test_learning_goes_on_from_a_loaded_mask(path, small, batch):
    start = copy.deepcopy(small)
    save_masks(wrapped(small, targets=["head.weight"]), path)
    model = masktorch.wrap(start, targets=["head.weight"])
    (scores,) = masktorch.mask_parameters(load_masks(model, path))
    optimiser = torch.optim.Adam([scores], lr=5.0)
    model(batch[0]).sum().backward()
    optimiser.step()
    assert not same(masktorch.masks(model), masktorch.masks(small))


def test_rescale_and_subsets_belong_to_the_file(path):
    model = wrapped(targets=["conv.weight", "head.bias"], rescale=True)
    save_masks(model, path)
    loaded = load_masks(plain(model), path)
    assert list(masktorch.masks(loaded)) == ["conv.weight", "head.bias"]
    assert loaded.conv.parametrizations.weight.rescale
    assert torch.equal(loaded.conv.weight, model.eval().conv.weight)


def test_the_memory_format_does_not_matter(path):
    model = wrapped()
    save_masks(model, path)
    masks = masktorch.masks(model)
    last = plain(model).to(memory_format=torch.channels_last)
    last.head.bias = nn.Parameter(torch.stack([last.head.bias.detach()] * 2, 1)[:, 0])
    last.embed.weight = nn.Parameter(last.embed.weight.detach().t().contiguous().t())
    last.head.weight = last.embed.weight
    assert not any(
        t.is_contiguous() for t in (last.conv.weight, last.head.bias, last.embed.weight)
    )
    assert same(masktorch.masks(load_masks(copy.deepcopy(last), path)), masks)
    relaid = wrapped(last)
    load_masks(relaid, path)
    assert same(masktorch.masks(relaid), masks)
    before = Path(path).read_bytes()
    save_masks(relaid, path)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (1, 1), (3, 4), (0, 3), (2, 3, 4)])
def test_the_fingerprint_is_of_the_values_in_row_major_order(path, shape, dtype):
    values = torch.randn(shape, dtype=dtype)
    wide = torch.stack([values, values + 1], -1)
    for tensor in [
        values,
        wide[..., 0],
        values.mT.contiguous().mT if len(shape) > 1 else values,
    ]:
        model = wrapped(nn.ParameterDict({"a": tensor}), targets=["a"])
        save_masks(model, path)
        content = b"".join(value.view(torch.uint8).numpy().tobytes() for value in
                           values.reshape(-1, 1).clone())  # fmt: skip
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
    assert (header["format"], header["version"]) == ("masktorch masks", 2)
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
def test_an_independent_reader_finds_the_same(path, kept):
    model = wrapped(
        nn.Linear(200, 300), Bernoulli(0.3), kept, bias=True, targets=["weight"]
    )
    if kept == 0.5:  # exactly
        masktorch.set_masks(model, {"weight": torch.arange(60_000).view(300, 200) % 2 == 0,
                                    "bias": torch.arange(300) % 3 != 0})  # fmt: skip
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
    load_masks(masktorch.set_masks(model, {n: ~m for n, m in masks.items()})
            if 0 < kept < 1 else model, path)  # fmt: skip
    assert same(masktorch.masks(model), masks)


# Size


@pytest.mark.parametrize(
    "sizes", [[sum(WRN) // 8], [n // 8 for n in WRN]], ids=["one", "wrn"]
)
def test_size_is_about_the_entropy(path, sizes):
    model = nn.ParameterDict(
        {f"block{i}/conv": torch.randn(n) for i, n in enumerate(sizes)}
    )
    masktorch.wrap(model, targets=list(model))
    for masked in [0, 0.0003, 0.001, 0.02, 0.1, 0.16, 0.5, 0.84, 0.98, 1]:
        masks = {
            n: torch.rand(p.shape) >= masked for n, p in masktorch.masks(model).items()
        }
        save_masks(masktorch.set_masks(model, masks), path)
        assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096, masked


def test_the_masks_of_a_wide_residual_network(path):
    """23 million entries in 29 tensors."""
    assert (len(WRN), sum(WRN)) == (29, 23_348_554)
    model = nn.ParameterDict(
        {f"group/block/{i}": torch.randn(n) for i, n in enumerate(WRN)}
    )
    load_onto = copy.deepcopy(model)
    masktorch.wrap(model, targets=list(load_onto))
    masks = {n: torch.rand(p.shape) >= 0.16 for n, p in masktorch.masks(model).items()}
    save_masks(masktorch.set_masks(model, masks), path)
    assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096
    assert same(masktorch.masks(load_masks(load_onto, path)), masks)


def test_nothing_but_tensors_without_entries(path):
    model = wrapped(nn.ParameterDict({"a": torch.empty(0), "b": torch.empty(2, 0)}),
                    targets=["a", "b"])  # fmt: skip
    save_masks(model, path)
    assert os.path.getsize(path) <= 4096
    assert same(masktorch.masks(load_masks(plain(model), path)), masktorch.masks(model))


# Writing


def test_paths_and_permissions(tmp_path):
    model = wrapped()
    umask = os.umask(0o022)
    try:
        save_masks(model, tmp_path / "a.npz")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a.npz").stat().st_mode) == 0o644
    (tmp_path / "link").symlink_to("a.npz")
    save_masks(wrapped(plain(model)), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert same(
        masktorch.masks(load_masks(plain(model), str(tmp_path / "link"))),
        masktorch.masks(load_masks(plain(model), tmp_path / "a.npz")),
    )
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "link"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_permissions_of_the_old_file_stay(path, mode, monkeypatch):
    umask, replace = os.umask(0o022), os.replace

    def replaced(
        source, target
    ):  # never readable by more, not even under its temporary name
        assert stat.S_IMODE(os.stat(source).st_mode) == mode
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    try:
        Path(path).touch()
        os.chmod(path, mode)
        save_masks(wrapped(), path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert masktorch.read_masks(path)


def test_a_hard_link_keeps_the_old_file(tmp_path):
    save_masks(wrapped(), tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    os.link(tmp_path / "a", tmp_path / "b")
    save_masks(wrapped(), tmp_path / "a")
    assert (tmp_path / "b").read_bytes() == before != (tmp_path / "a").read_bytes()


def test_a_pipe_is_written_to_and_read_from(path):
    os.mkfifo(path)
    model = wrapped()
    read = []
    reader = threading.Thread(
        target=lambda: read.append(masktorch.read_masks(path)), daemon=True
    )
    reader.start()
    save_masks(model, path)
    reader.join(timeout=60)
    assert same(*read, masktorch.masks(model))
    assert stat.S_ISFIFO(os.stat(path).st_mode)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    save_masks(model, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
@pytest.mark.parametrize(
    "failure", [OSError("disk full"), KeyboardInterrupt()], ids=repr
)
def test_a_failed_save_leaves_the_old_file_and_no_other(
    path, monkeypatch, where, failure
):
    model = wrapped()
    save_masks(model, path)
    before = Path(path).read_bytes()

    def fail(*args, **options):
        raise failure

    class Half(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise failure

    if where == "write":
        monkeypatch.setattr(
            archive, "open", lambda *args, **_: Half(*args), raising=False
        )
    else:
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(type(failure)):
        save_masks(wrapped(), path)
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]
    assert Path(path).read_bytes() == before


def test_the_file_is_whole_before_it_has_its_name(path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        calls.append(os.fstat(handle).st_size)
        fsync(handle)

    def replaced(source, target):
        calls.append((os.path.dirname(source), os.path.getsize(source), target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    save_masks(wrapped(), path)
    size = os.path.getsize(path)
    assert calls == [size, (os.path.dirname(path), size, path)]


def test_where_nothing_can_be_saved(tmp_path):
    with pytest.raises(ValueError, match=r"save_masks\(\) expected a wrapped model"):
        save_masks(Net(), tmp_path / "x")
    meta = masktorch.wrap(nn.Linear(2, 2, device="meta"))
    with pytest.raises(
        ValueError, match=r"save_masks\(\) needs all values of 'weight'"
    ):
        save_masks(meta, tmp_path / "x")
    missing = str(tmp_path / "no folder" / "x")
    with pytest.raises(FileNotFoundError, match=re.escape(missing)):
        save_masks(wrapped(), missing)
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        save_masks(wrapped(), tmp_path)
    with pytest.raises(
        TypeError, match=r"expected str, bytes or os.PathLike object, not list"
    ):
        save_masks(wrapped(), [])
    assert os.listdir(tmp_path) == []


# Loading where it does not fit: (what is loaded onto, the file's options, words of the error)


def trained(model):
    with torch.no_grad():
        for name in ["head.bias", "embed.weight"]:
            dict(model.named_parameters())[name][-1] += 1
    return model


def reshaped(model):
    model.conv = nn.Conv2d(3, 4, 5)
    return model


def without_scale(model):
    del model.scale
    return model


def other_dtype(model):
    model.head.bias = nn.Parameter(
        model.head.bias.detach().view(torch.int32).view(torch.float32)
    )
    model.scale = nn.Parameter(model.scale.detach().double())
    return model


def lazy(model):
    model.conv = nn.LazyConv2d(4, 3)
    return model


def untied_name(model):
    model.last = model.conv
    del model.conv
    return model


UNFIT = [
    (trained, r"expected fingerprint \w{32} for 'embed.weight', found \w{32} in the file. Build,"),
    (trained, r"weights alone are to be others, load_masks\(model, path, any_weights=True\)"),
    (other_dtype, r"expected fingerprint \w{32} for 'scale', found \w{32} in the file"),
    (reshaped, r"expected shape \[4, 3, 5, 5\] for 'conv.weight', found \[4, 3, 3, 3\] in the file."
     " Build, wrap and load the model as when the masks were saved"),
    (without_scale, r"expected the names of its parameters, found 1 in the file only \['scale'\], 0"
     r" masked in the model only \[\]. Build the model, and wrap the tensors, that the masks were"),
    (untied_name, r"found 2 in the file only \['conv.weight', 'conv.bias'\], 0 masked"),
    (lambda model: nn.Linear(2, 2), r"7 in the file only \['scale', 'none', 'conv.weight'\], 0 m"),
    (lazy, r"needs all values of 'conv.weight', found none \(a lazy module, the meta device\)"),
    (lambda model: model.to("meta"), "needs all values of 'scale', found none"),
    (lambda model: wrapped(model, targets=EVERYTHING[1:]), "expected the names of its masked "
     r"tensors, found 1 in the file only \['conv.weight'\], 0 masked in the model only \[\]."),
    (lambda model: wrapped(model, rescale=True), "expected rescale True for 'scale', found False in"
     " the file. Build, wrap and load the model as when the masks were saved"),
    (lambda model: trained(wrapped(model)), "expected fingerprint "),
]  # fmt: skip


@pytest.mark.parametrize(("onto", "message"), UNFIT, ids=range(len(UNFIT)))
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_does_not_fit(path, onto, message):
    model = wrapped()
    save_masks(model, path)
    model = onto(plain(model))
    before = snapshot(model)
    with pytest.raises(ValueError, match=message) as raised:
        load_masks(model, path)
    assert str(raised.value).startswith(f"load_masks() can't load {path!r}: ")
    assert unchanged(model, before)
    if "fingerprint" not in str(raised.value):  # then this error remains
        with pytest.raises(ValueError, match=message):
            load_masks(model, path, any_weights=True)
        assert unchanged(model, before)


def test_more_masked_in_the_model_than_in_the_file(path):
    model = wrapped(targets=EVERYTHING[2:])
    save_masks(model, path)
    model = wrapped(plain(model))
    before = snapshot(model)
    message = (
        "expected the names of its masked tensors, found 0 in the file only [], 2 masked in the "
        "model only ['conv.weight', 'conv.bias']. Build the model, and wrap the tensors, that"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(model, path)
    assert unchanged(model, before)


def test_a_tensor_that_goes_by_another_name_here(path):
    untied = Net()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    save_masks(wrapped(untied, targets=["head.weight"]), path)
    tied = plain(untied)
    tied.embed.weight = tied.head.weight  # so its name is that of the first place
    message = (
        "expected one mask for ['embed.weight', 'head.weight'], the same tensor in this model "
        "(tied weights), found two, or none for one of the names. Untie them, as when the masks"
    )
    before = snapshot(tied)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(tied, path)
    assert unchanged(tied, before)


class Two(nn.Module):
    """Two layers, or one in two places, or two with one weight."""

    def __init__(self, tie):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.load_state_dict(self.first.state_dict())
        if tie == "weight":
            self.second.weight = self.first.weight
        if tie == "layer":
            self.second = self.first


@pytest.mark.parametrize("saved", ["weight", "layer"])
@pytest.mark.parametrize("present", ["weight", "layer", None])
@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_a_tied_tensor_is_masked_wherever_it_is(path, saved, present, onto):
    model = wrapped(Two(saved), targets=["first.weight"])
    save_masks(model, path)
    masks = masktorch.masks(model)
    assert same(masktorch.read_masks(path), masks)
    loaded = Two(present)
    loaded.load_state_dict(plain(model).state_dict())
    load_masks(onto(loaded), path).eval()
    assert not masks["first.weight"].all()
    for layer in (loaded.first, loaded.second):
        assert torch.equal(layer.weight, model.eval().first.weight)


@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_two_masks_are_not_put_on_one_tensor(path, onto):
    model = wrapped(Two(None), targets=["first.weight", "second.weight"])
    save_masks(model, path)
    tied = onto(Two("weight"))
    tied.load_state_dict(plain(model).state_dict(), strict=False)
    before = snapshot(tied)
    message = (
        "expected one mask for ['first.weight', 'second.weight'], the same tensor in this model "
        "(tied weights), found two, or none"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_masks(tied, path)
    assert unchanged(tied, before)
    alike = masktorch.set_masks(
        model, dict.fromkeys(masktorch.masks(model), torch.eye(4) > 0)
    )
    masktorch.set_masks(
        alike, {"first.weight": torch.eye(4) > 0, "second.weight": torch.eye(4) > 0}
    )
    save_masks(alike, path)  # two that are the same
    load_masks(tied, path)
    assert same(masktorch.masks(tied), {"first.weight": torch.eye(4) > 0})


def test_a_tie_that_broke_under_its_mask(path):
    model = wrapped(Two("weight"), targets=["first.weight"])
    weight = model.first.parametrizations.weight.original.detach() + 1
    model.second.weight = nn.Parameter(weight, requires_grad=False)
    masks = masktorch.masks(model)
    save_masks(model, path)
    fits = masktorch.unwrap(copy.deepcopy(model), bake=False)
    assert not torch.equal(fits.first.weight, fits.second.weight)
    load_masks(fits, path)  # each place with weights of its own
    assert torch.equal(fits.second.weight, model.eval().second.weight)
    masktorch.set_masks(model, {"first.weight": ~masks["first.weight"]})
    assert same(masktorch.masks(load_masks(model, path)), masks)


def test_a_name_of_a_tie_that_the_model_lacks(path):
    save_masks(wrapped(Two("weight"), targets=["first.weight"]), path)
    model = Two("weight")
    del model.second
    with pytest.raises(
        ValueError, match=r"found 1 in the file only \['second.weight'\]"
    ):
        load_masks(model, path, any_weights=True)


@pytest.mark.parametrize(
    "onto", [lambda model: model, masktorch.wrap], ids=["plain", "wrapped"]
)
def test_a_model_one_level_deeper_or_higher(path, onto):
    layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    save_masks(wrapped(copy.deepcopy(layers), targets=["0.weight", "1.weight"]), path)
    deeper = onto(nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers})}))
    wraps = onto is masktorch.wrap
    extra = "2 masked in the model only ['encoder.layers.0.weight', 'encoder.layers.1.weight']"
    message = f"found 2 in the file only ['0.weight', '1.weight'], {extra if wraps else '0 masked'}"
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_masks(deeper, path)
    assert "or load them into that part of the model, model.get_submodule(" in str(
        raised.value
    )
    load_masks(deeper.get_submodule("encoder.layers"), path)
    save_masks(deeper, path)
    with pytest.raises(
        ValueError, match=r"in the file only \['encoder.layers.0.weight', "
    ):
        load_masks(deeper.get_submodule("encoder.layers") if wraps else
                   masktorch.unwrap(deeper).get_submodule("encoder.layers"), path)  # fmt: skip


def test_files_of_the_first_format():
    """Real ones, of the first names of tied tensors; masks of any density coded by gaps."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(8, 32), nn.Linear(32, 8)
            self.head.weight = self.embed.weight
            with torch.no_grad():
                self.head.weight.copy_(torch.arange(256.0).view(8, 32))
                self.head.bias.copy_(torch.arange(8.0))

    weight = torch.arange(256).view(8, 32) % 3 == 0
    weight[5:] = False
    masks = {"embed.weight": weight, "head.bias": torch.arange(8) != 5}
    assert same(masktorch.read_masks(io.BytesIO(TIED_OF_FORMAT_1)), masks)
    for model in (Tied(), masktorch.wrap(Tied(), targets=["head.weight", "head.bias"])):
        load_masks(model, io.BytesIO(TIED_OF_FORMAT_1))
        assert same(masktorch.masks(model), masks)
        assert torch.equal(
            model.eval().head.weight != 0, weight & (model.head.weight != 0)
        )

    damage = Damage(FORMAT_1)
    assert damage.loads(FORMAT_1)
    assert damage.reads(FORMAT_1)


TIED_OF_FORMAT_1 = base64.b64decode(
    """UEsDBC0AAAAIAAAAIQBYaa7k//////////8KABQAaGVhZGVyLm5weQEAEAAfAgAAAAAAACYBAAAAAAAApY+/TsMwEMbL
    ylNYXtJKURQ7/yuxsoEYYECoqs7xuYnaxJXtFqGSp+CFsctAERvcdPfdp/t+93H/dPfwfDU7zk6RRNuaaEmi9wOLYhIp
    bZyBca2NxKDfws6i120He/TzPGdFvIjJRP5c1yfqUwZwdEnoAHbrtGk7EjpLY0KPaGyvR79l8YUhuNOEJWnwOBytNtZr
    Lyc6woBhi4NAmbxiv+lcMJ2Zg6WOScZXXtniPqQWue+N/xx2Ya++fqRoXe+xtAnHHjtv6PROzh0cbtKkWIST4s1hSOWp
    H1Q/btDsTT+eX2FQtyW2JVcix1LlaYO8lFDIslGVrFo6xeQbtkOQiejB/iS9oKz+C5n9ZuSMlyoTgnEASFleV20moGi4
    BNnUIqfTavoEUEsDBC0AAAAIAAAAIQCWJ7tD//////////8JABQAbWFza3MubnB5AQAQAJcAAAAAAAAAWQAAAAAAAACb
    7BfqGxDJyFDGUK2eklqcXKRupaBeU2qorqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGxjqaOgq1CuQDLtaD
    jJwMDAwNCz78f2HCAAYGyawMAFBLAwQtAAAACAAAACEAC9n6Cv//////////CgAUAGRpZ2VzdC5ucHkBABAAoAAAAAAA
    AABmAAAAAAAAAJvsF+obEMnIUMZQrZ6SWpxcpG6loF5Taqiuo6Cell9UUpSYF59flJIKEndLzClOBYoXZyQWpAL5GsZG
    Opo6CrUK5AOuQ5bfzd65cWsI+19l/l1R1Cju3eimsJ8zf5E128vTrb4xAFBLAQItAy0AAAAIAAAAIQBYaa7kJgEAAB8C
    AAAKAAAAAAAAAAAAAACAAQAAAABoZWFkZXIubnB5UEsBAi0DLQAAAAgAAAAhAJYnu0NZAAAAlwAAAAkAAAAAAAAAAAAA
    AIABYgEAAG1hc2tzLm5weVBLAQItAy0AAAAIAAAAIQAL2foKZgAAAKAAAAAKAAAAAAAAAAAAAACAAfYBAABkaWdlc3Qu
    bnB5UEsFBgAAAAADAAMApwAAAJgCAAAAAA=="""
)


@pytest.mark.parametrize("onto", [nn.Linear(6, 4), masktorch.wrap(nn.Linear(6, 4))])
def test_as_many_entries_in_another_shape(path, onto):
    save_masks(wrapped(nn.Linear(4, 6), targets=["weight"]), path)
    message = r"expected shape \[4, 6\] for 'weight', found \[6, 4\] in the file"
    with pytest.raises(ValueError, match=message):
        load_masks(onto, path, any_weights=True)


def test_other_weights_accepted_knowingly(path):
    model = wrapped()
    save_masks(model, path)
    masks = masktorch.masks(model)
    other = load_masks(trained(plain(model)), path, any_weights=True)
    assert same(masktorch.masks(other), masks)
    other = load_masks(wrapped(trained(plain(model)).double()), path, any_weights=True)
    assert same(masktorch.masks(other), masks)

    weights_trained = trained(masktorch.freeze_mask(model))
    with pytest.raises(
        ValueError, match=r"expected fingerprint .* for 'embed.weight', found"
    ):
        load_masks(weights_trained, path)
    save_masks(weights_trained, path)
    load_masks(weights_trained, path)


def test_a_mask_that_the_estimator_cannot_express(path):
    class AllOrNone:
        """Keeps all entries or none."""

        def __call__(self, scores):
            return self.mode(scores).to(scores.dtype)

        def mode(self, scores):
            return (scores[0, 0] > 0).expand_as(scores)

    layer = masktorch.wrap(nn.Linear(2, 2))
    masktorch.set_masks(layer, {"weight": torch.eye(2, dtype=torch.bool)})
    save_masks(layer, path)
    model = masktorch.wrap(plain(layer), AllOrNone())
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"can't load '.*some masks': .* cannot give 'weight'"
    ):
        load_masks(model, path)
    assert unchanged(model, before)


def test_a_missing_file_and_no_model(path):
    with pytest.raises(FileNotFoundError):
        load_masks(Net(), path)
    save_masks(wrapped(), path)
    with pytest.raises(
        TypeError, match=r"load_masks\(\) expected a torch.nn.Module, found list"
    ):
        load_masks([], path)
