"""Mask files: what is saved comes back, small, onto what it was saved from, or one error says why
not."""

import copy
import hashlib
import io
import json
import math
import os
import random
import re
import stat
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
from torch.nn.parameter import is_lazy

import masktorch
from masktorch import Bernoulli, IntermediateSampling, Threshold
from masktorch.maskfile import _decode, _encode, load_masks, save_masks

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")

ESTIMATORS = [Threshold(), Bernoulli(), IntermediateSampling()]

# The 29 convolutions and linear layers of the WRN-28-8 of the blog post: their entries.
BLOCKS = [(16, 128), (128, 256), (256, 512)]
WRN = [448, 5130]
for before, after in BLOCKS:
    WRN += [before * after * 9 + after, *[after * after * 9 + after] * 7, before * after + after]


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


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[n], others[n]) for n in some)


def snapshot(model):
    """All that a failed load must leave alone."""
    tensors = model.state_dict(keep_vars=True).items()
    state = {n: t.detach().clone() for n, t in tensors if not (is_lazy(t) or t.is_meta)}
    flags = [(n, id(p), p.requires_grad) for n, p in model.named_parameters()]
    return str(model), [type(m) for m in model.modules()], flags, state


def unchanged(model, before):
    after = snapshot(model)
    return after[:3] == before[:3] and same(after[3], before[3])


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
@pytest.mark.parametrize("frozen", [False, True])
def test_masks_come_back_onto_a_plain_and_onto_a_wrapped_model(path, estimator, dtype, frozen):
    model = wrapped(Net().to(dtype), estimator, kept=0.3)
    masktorch.freeze_mask(model, frozen)
    masks = masktorch.masks(model)
    save_masks(model, path)
    assert os.listdir(os.path.dirname(path)) == ["some masks"]  # nothing is appended to the path

    loaded = plain(model)
    trains = [(n, p.requires_grad) for n, p in loaded.named_parameters()]
    assert load_masks(loaded, path) is loaded
    assert same(masktorch.masks(loaded), masks)
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == trains
    assert list(masktorch.mask_parameters(loaded)) == []
    assert torch.equal(loaded.conv.weight, model.eval().conv.weight)
    assert loaded.head.weight.data_ptr() != loaded.embed.weight.data_ptr()  # computed, from
    assert torch.equal(loaded.head.weight, loaded.embed.weight)  # one tensor under one mask

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
        rest = {name: tensor for name, tensor in state.items() if not name.endswith("scores")}
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
    for again in (compiled(Net()), masktorch.wrap(compiled(Net()), targets=list(masks))):
        assert same(masktorch.masks(load_masks(again, path, any_weights=True)), masks)


def test_any_order(tmp_path):
    first, second, third = (str(tmp_path / f"{i}.npz") for i in range(3))
    model = wrapped()
    masks = masktorch.masks(model)
    save_masks(model, first)  # learning
    masktorch.freeze_mask(model)
    save_masks(model, second)  # frozen
    assert Path(first).read_bytes() == Path(second).read_bytes()  # nothing but what they say
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
    assert not any(t.is_contiguous() for t in (last.conv.weight, last.head.bias, last.embed.weight))
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
    for tensor in [values, wide[..., 0], values.mT.contiguous().mT if len(shape) > 1 else values]:
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
        assert all(file[name].dtype == np.uint8 and file[name].ndim == 1 for name in file.files)
        text, coded, digest = (file[name].tobytes() for name in ("header", "masks", "digest"))
    assert hashlib.sha256(text + coded).digest() == digest
    header = json.loads(text)
    assert (header["format"], header["version"]) == ("masktorch masks", 1)
    masks = {}
    for row in header["tensors"]:
        size = math.prod(row["shape"])
        rare_is_kept = row["kept"] <= size - row["kept"]
        mask, at = [not rare_is_kept] * size, -1
        for byte in zlib.decompress(coded[: row["bytes"]], wbits=-15):
            at += 255 if byte == 255 else byte + 1
            if byte != 255:
                mask[at] = rare_is_kept
        assert sum(mask) == row["kept"]
        coded = coded[row["bytes"] :]
        masks[row["name"]] = torch.tensor(mask, dtype=torch.bool).view(row["shape"])
    assert not coded
    return masks, header


@pytest.mark.parametrize("kept", [0, 0.0005, 0.002, 0.02, 0.1, 0.16, 0.5, 0.84, 0.98, 0.9995, 1])
def test_an_independent_reader_finds_the_same(path, kept):
    model = wrapped(nn.Linear(200, 300), Bernoulli(0.3), kept, bias=True, targets=["weight"])
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


@pytest.mark.parametrize("gap", [0, 1, 253, 254, 255, 256, 509, 510, 511, 765, 5000])
@pytest.mark.parametrize("after", [0, 1, 254, 255, 256, 600])
@pytest.mark.parametrize("kept", [False, True])
def test_gaps_around_the_byte_that_passes(gap, after, kept):
    mask = np.full(gap + 1 + gap + 1 + after, not kept)
    mask[[gap, gap + 1 + gap]] = kept
    code = _encode(mask)
    assert np.array_equal(_decode(code, int(mask.sum()), mask.size), mask)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 700)), max_size=30))
def test_any_mask_is_its_code(runs):
    mask = np.array([kind for kind, length in runs for _ in range(length)], dtype=bool)
    assert np.array_equal(_decode(_encode(mask), int(mask.sum()), mask.size), mask)


@pytest.mark.parametrize("kept", [0.7, 0.00002, 0.99998])
def test_masks_of_many_pieces(kept):
    mask = torch.rand(1_000_003).numpy() < kept
    assert np.array_equal(_decode(_encode(mask), int(mask.sum()), mask.size), mask)


def deflated(steps):
    deflate = zlib.compressobj(wbits=-15)
    return deflate.compress(bytes(steps)) + deflate.flush()


def test_a_code_is_the_code_of_a_mask_or_none():
    steps = [2, 255, 0, 3]  # entries 2, 258 and 262
    mask = _decode(deflated(steps), 3, 263)
    assert np.flatnonzero(mask).tolist() == [2, 258, 262]
    assert np.flatnonzero(~_decode(deflated(steps), 597, 600)).tolist() == [2, 258, 262]
    for code, kept, size in [
        (deflated(steps), 3, 262),  # beyond the end
        (deflated(steps), 2, 263),  # too many
        (deflated(steps), 4, 263),  # too few
        (deflated(steps), -3, 263),
        (deflated(steps) + b"x", 3, 263),
        (deflated(steps)[:-1], 3, 263),
        (b"", 0, 263),
    ]:
        with pytest.raises(ValueError, match=f"not of a mask with {kept} of {size} entries kept"):
            _decode(code, kept, size)


# Size


@pytest.mark.parametrize("sizes", [[sum(WRN) // 8], [n // 8 for n in WRN]], ids=["one", "wrn"])
def test_size_is_about_the_entropy(path, sizes):
    model = nn.ParameterDict({f"block{i}/conv": torch.randn(n) for i, n in enumerate(sizes)})
    masktorch.wrap(model, targets=list(model))
    for masked in [0, 0.0003, 0.001, 0.02, 0.1, 0.16, 0.5, 0.84, 0.98, 1]:
        masks = {n: torch.rand(p.shape) >= masked for n, p in masktorch.masks(model).items()}
        save_masks(masktorch.set_masks(model, masks), path)
        assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096, masked


def test_the_masks_of_a_wide_residual_network(path):
    """23 million entries in 29 tensors."""
    assert (len(WRN), sum(WRN)) == (29, 23_348_554)
    model = nn.ParameterDict({f"group/block/{i}": torch.randn(n) for i, n in enumerate(WRN)})
    load_onto = copy.deepcopy(model)
    masktorch.wrap(model, targets=list(load_onto))
    masks = {n: torch.rand(p.shape) >= 0.16 for n, p in masktorch.masks(model).items()}
    save_masks(masktorch.set_masks(model, masks), path)
    assert os.path.getsize(path) <= 1.05 * entropy(masks) + 4096
    assert same(masktorch.masks(load_masks(load_onto, path)), masks)


@pytest.mark.parametrize("kept", [0.0001, 0.0005, 0.9999])
def test_the_code_of_few_entries_is_not_all_passes(kept):
    mask = torch.rand(8_000_000) < kept
    assert len(_encode(mask.numpy())) < 1.4 * entropy({"mask": mask})


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


@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failed_save_leaves_the_old_file_and_no_other(path, monkeypatch, where, failure):
    model = wrapped()
    save_masks(model, path)
    before = Path(path).read_bytes()

    def fail(*args, **options):
        raise failure

    def write_half(file, **arrays):
        file.write(before[: len(before) // 2])
        raise failure

    if where == "write":
        monkeypatch.setattr(np, "savez_compressed", write_half)
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
    with pytest.raises(ValueError, match=r"save_masks\(\) .* 'weight': it has no values yet"):
        save_masks(meta, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        save_masks(wrapped(), tmp_path / "no folder" / "x")
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        save_masks(wrapped(), tmp_path)  # a folder
    with pytest.raises(TypeError):
        save_masks(wrapped(), io.BytesIO())
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
    model.head.bias = nn.Parameter(model.head.bias.detach().view(torch.int32).view(torch.float32))
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
    (trained, "expected the weights that the masks were saved over, found others in 2 of 6 "
     "tensors: 'embed.weight', 'head.bias' (fingerprint "),
    (trained, "accept these with load_masks(model, path, any_weights=True)."),
    (other_dtype, "found others in 1 of 6 tensors: 'scale' (fingerprint "),
    (reshaped, "expected shape (4, 3, 5, 5) for 'conv.weight', found (4, 3, 3, 3) in the file. "
     "Build the model"),
    (without_scale, "expected parameters by the names in the file. In the file only: 'scale'. "
     "Build the model that the masks were saved from."),
    (untied_name, "In the file only: 'conv.weight', 'conv.bias'. Build the model"),
    (lambda model: nn.Linear(2, 2), "In the file only: 'scale', 'none', 'conv.weight', ... (6 in "
     "all)."),
    (lazy, "'conv.weight' needs its weights: it has no values yet (a lazy module or the meta"),
    (lambda model: model.to("meta"), "'scale' needs its weights: it has no values yet"),
    (lambda model: wrapped(model, targets=EVERYTHING[1:]), "expected its masked tensors by the "
     "names in the file. In the file only: 'conv.weight'. Wrap the same tensors (targets=[...]), "
     "or unwrap the model first."),
    (lambda model: wrapped(model, rescale=True), "expected rescale=True for 'scale', found "
     "rescale=False in the file, with which the layer computes something else. Wrap the model "
     "with rescale=False."),
    (lambda model: trained(wrapped(model)), "found others in"),
]  # fmt: skip


@pytest.mark.parametrize(("onto", "message"), UNFIT, ids=range(len(UNFIT)))
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_model_that_does_not_fit(path, onto, message):
    model = wrapped()
    save_masks(model, path)
    model = onto(plain(model))
    before = snapshot(model)
    start = f"load_masks() can't put the masks of {path!r} on this model: "
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_masks(model, path)
    assert str(raised.value).startswith(start)
    assert unchanged(model, before)
    if "any_weights" not in str(raised.value):  # then this error remains
        with pytest.raises(ValueError, match=re.escape(message)):
            load_masks(model, path, any_weights=True)
        assert unchanged(model, before)


def test_more_masked_in_the_model_than_in_the_file(path):
    model = wrapped(targets=EVERYTHING[2:])
    save_masks(model, path)
    model = wrapped(plain(model))
    before = snapshot(model)
    message = (
        "expected its masked tensors by the names in the file. Masked in the model only: "
        "'conv.weight', 'conv.bias'. Wrap the same tensors (targets=[...]), or unwrap"
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
    with pytest.raises(ValueError, match=r"In the file only: 'head.weight'. Build the model"):
        load_masks(tied, path)


@pytest.mark.parametrize("onto", [nn.Linear(6, 4), masktorch.wrap(nn.Linear(6, 4))])
def test_as_many_entries_in_another_shape(path, onto):
    save_masks(wrapped(nn.Linear(4, 6), targets=["weight"]), path)
    message = r"expected shape \(4, 6\) for 'weight', found \(6, 4\) in the file"
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
    with pytest.raises(ValueError, match="found others in 2 of 6 tensors"):
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
    with pytest.raises(ValueError, match=r"masks of '.*some masks' on .* can't give 'weight'"):
        load_masks(model, path)
    assert unchanged(model, before)


def test_a_missing_file_and_no_model(path):
    with pytest.raises(FileNotFoundError):
        load_masks(Net(), path)
    save_masks(wrapped(), path)
    with pytest.raises(TypeError, match=r"load_masks\(\) expected a torch.nn.Module, found list"):
        load_masks([], path)


# Files that are none, or no longer


def rewritten(content, names=None, redigest=True, **changed):
    """The bytes of a mask file with arrays changed, by a function of their bytes, entries renamed,
    and (`redigest`) the digest made right again."""
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name].tobytes() for name in ["header", "masks", "digest"]}
    for name, change in changed.items():
        arrays[name] = change(arrays[name])
    if redigest:
        arrays["digest"] = hashlib.sha256(arrays["header"] + arrays["masks"]).digest()
    out = io.BytesIO()
    entries = {
        (names or {}).get(k, k): np.frombuffer(v, np.uint8)
        for k, v in arrays.items()
        if (names or {}).get(k, k)
    }
    np.savez(out, **entries)
    return out.getvalue()


def header(edit):
    """A change of the header, for `rewritten`."""

    def change(text):
        described = json.loads(text)
        edit(described)
        return json.dumps(described).encode()

    return change


def row(field, value):
    return header(lambda h: h["tensors"][2].update({field: value}))


def zipped(**entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def checkpoint(content):
    out = io.BytesIO()
    torch.save({"weight": torch.ones(2)}, out)
    return out.getvalue()


def other_npz(content):
    out = io.BytesIO()
    np.savez(out, mask=np.ones(3))
    return out.getvalue()


# (what becomes of the bytes of a file, words of the error)
UNREADABLE = [
    (lambda b: b"", "found BadZipFile: File is not a zip file"),
    (lambda b: b"\x93NUMPY" * 99, "found BadZipFile: File is not a zip file"),
    (lambda b: b[: len(b) // 2], "found BadZipFile: File is not a zip file"),
    (lambda b: b[:-1], "found BadZipFile"),
    (checkpoint, "found ValueError: the entries 'archive/data.pkl', "),
    (other_npz, "found ValueError: the entries 'mask.npy' in place of 'header.npy', 'masks.npy', "
     "'digest.npy'"),
    (lambda b: rewritten(b, {"masks": "weights"}), "found ValueError: the entries 'header.npy', "
     "'weights.npy', 'digest.npy' in place of"),
    (lambda b: rewritten(b, {"digest": None}), "found ValueError: the entries"),
    (lambda b: rewritten(b, {"masks": "header", "header": "masks"}), "found JSONDecodeError"),
    (lambda b: rewritten(b, {"masks": "digest", "digest": "masks"}), "found a digest that is not "
     "that of its contents"),
    (lambda b: rewritten(b, header=lambda h: b"{"), "found JSONDecodeError"),
    (lambda b: rewritten(b, header=lambda h: b"[" * 100_000), "found RecursionError"),
    (lambda b: rewritten(b, header=lambda h: b"[" + h + b"]"), "found a header that does not say "
     "format='masktorch masks'"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(format="masks"))), "found a header "
     "that does not say format='masktorch masks'"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(version="1"))), "found a header "
     "without a format version"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(version=0))), "found a header "
     "without a format version"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(masktorch="9")), redigest=False),
     "found a digest that is not that of its contents"),
    (lambda b: rewritten(b, redigest=False, header=row("kept", 12)), "found a digest that is not"),
    (lambda b: rewritten(b, redigest=False, masks=lambda m: m[::-1]), "found a digest that is not"),
    (lambda b: rewritten(b, redigest=False, masks=lambda m: m + b"\0"), "found a digest that is"),
    (lambda b: rewritten(b, masks=lambda m: m + b"\0"), "bytes of masks, not the "),
    (lambda b: rewritten(b, header=header(lambda h: h.pop("tensors"))), "found a header"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(tensors=3))), "of other fields"),
    (lambda b: rewritten(b, header=header(lambda h: h.update(tensors=h["tensors"] * 2))),
     "found two tensors of one name in its header"),
    (lambda b: rewritten(b, header=row("sparsity", 0.5)), "of other fields: "),
    (lambda b: rewritten(b, header=header(lambda h: h["tensors"][2].clear())), "'kept'"),
    (lambda b: rewritten(b, header=row("kept", True)), "found a field of the wrong kind "
     "in its header for tensor 2"),
    (lambda b: rewritten(b, header=row("shape", [4, 3, 3, 3.0])), "of the wrong kind"),
    (lambda b: rewritten(b, header=row("shape", [-4, 3, -3, 3])), "of the wrong kind"),
    (lambda b: rewritten(b, header=row("bytes", -1)), "of the wrong kind"),
    (lambda b: rewritten(b, header=row("kept", 50)), "for 'conv.weight' a code that is not of a "
     "mask with 50 of 108 entries kept"),
    (lambda b: rewritten(b, header=row("kept", 109)), "with 109 of 108 entries kept"),
    (lambda b: rewritten(b, masks=lambda m: b"\xff" * len(m)), "found for 'scale' Error -3 while "
     "decompressing data"),
    (lambda b: zipped(header=b"", masks=b"", digest=b""), "found ValueError: EOF"),
    (lambda b: zipped(header=npy(np.array([None])), masks=b"", digest=b""), "found ValueError: an "
     "entry 'header.npy' of object"),
    (lambda b: zipped(header=npy(np.ones(3, bool)), masks=b"", digest=b""), "of bool and shape "
     "(3,)"),
    (lambda b: zipped(header=npy(np.ones((3, 1), np.uint8)), masks=b"", digest=b""), "of uint8 and "
     "shape (3, 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
@pytest.mark.parametrize("onto", [plain, lambda model: wrapped(plain(model))], ids=["plain", "on"])
def test_a_file_that_cannot_be_read(path, damage, message, onto):
    model = wrapped()
    save_masks(model, path)
    Path(path).write_bytes(damage(Path(path).read_bytes()))
    model = onto(model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load_masks(model, path)
    assert str(raised.value).startswith(
        f"load_masks() can't read {path!r}: expected a file that masktorch.save_masks wrote, found "
    )
    assert str(raised.value).endswith("If it was one, it is damaged: copy or save it again.")
    assert unchanged(model, before)


@pytest.mark.parametrize("digest", [False, True])
def test_a_newer_format(path, digest):
    model = wrapped()
    save_masks(model, path)
    newer = header(lambda h: h.update(version=2, tensors=None))
    Path(path).write_bytes(rewritten(Path(path).read_bytes(), header=newer, redigest=digest))
    message = (
        f"load_masks() can't read {path!r}: expected format version 1, found version 2, of a newer "
        "masktorch. Upgrade masktorch."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_masks(plain(model), path)


def test_what_a_file_claims_is_not_allocated(path):
    model = wrapped(Net(), Bernoulli())
    save_masks(model, path)
    content, huge = Path(path).read_bytes(), 200_000_000

    deflate = zlib.compressobj(1, wbits=-15)
    code = deflate.compress(bytes(huge)) + deflate.flush()
    claims = npy(np.zeros(0, np.uint8)).replace(b"(0,), }             ", b"(%d,), }" % 10**13)

    def all_is_code(h):
        h["tensors"] = [{**t, "bytes": len(code) * (i == 0)} for i, t in enumerate(h["tensors"])]

    bombs = [
        zipped(header=bytes(huge), masks=b"", digest=b""),
        zipped(header=claims, masks=claims, digest=claims),
        rewritten(content, header=row("shape", [10**15])),
        rewritten(content, header=row("bytes", 10**15)),
        rewritten(content, header=row("kept", 10**15)),
        rewritten(content, masks=lambda _: code, header=header(all_is_code)),
    ]
    for damaged in bombs:
        Path(path).write_bytes(damaged)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=r"load_masks\(\) can't"):
                load_masks(model, path)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()


class Damage:
    """A model, its file, and the question what a damaged file does to a model."""

    def __init__(self, folder):
        torch.manual_seed(0)
        self.path = os.path.join(folder, "masks.npz")
        start = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(70, 10))
        targets = ["0.weight", "1.weight", "2.weight"]
        model = wrapped(start, kept=0.3, targets=targets)
        save_masks(model, self.path)
        self.content = Path(self.path).read_bytes()
        self.masks = masktorch.masks(model)
        self.before = {n: ~m for n, m in self.masks.items()}
        self.onto = masktorch.set_masks(model, self.before)

    def loads(self, content, exactly=True):
        """Whether it loads: then exactly what was saved; else the model is as it was."""
        Path(self.path).write_bytes(content)
        try:
            load_masks(self.onto, self.path)
        except ValueError as error:
            message = str(error)
        else:
            message = ""
        if message:
            assert message.startswith("load_masks() can't ")
            assert repr(self.path) in message
            assert same(masktorch.masks(self.onto), self.before)
            return False
        if exactly:
            assert same(masktorch.masks(self.onto), self.masks)
        masktorch.set_masks(self.onto, self.before)
        return True


@pytest.fixture(scope="module")
def damage(tmp_path_factory):
    return Damage(tmp_path_factory.mktemp("damage"))


def test_an_undamaged_file_loads(damage):
    assert damage.loads(damage.content)
    assert damage.loads(rewritten(damage.content))


def test_every_truncation_is_found(damage):
    assert not any(damage.loads(damage.content[:n]) for n in range(len(damage.content)))


def test_every_byte_of_the_arrays_counts(damage):
    """Bits flipped in the arrays, the zip written anew and right: never loads."""
    for name, size in [("header", 200), ("masks", 200), ("digest", 32)]:
        for at in range(size):

            def flip(array, at=at, size=size):
                at = at * len(array) // size
                return array[:at] + bytes([array[at] ^ 1 << at % 8]) + array[at + 1 :]

            assert not damage.loads(rewritten(damage.content, redigest=False, **{name: flip}))


def test_thousands_of_damages(damage):
    rng, loaded = random.Random(0), 0
    for _ in range(2000):
        content = bytearray(damage.content)
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            at = rng.randrange(len(content))
            kind = rng.randrange(5)
            if kind < 2:
                content[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                length = rng.choice([1, 2, 4, 30])
                content[at : at + length] = rng.randbytes(length)
            elif kind == 3:
                del content[at : at + rng.choice([1, 4, 100])]
            else:
                other = rng.randrange(len(content))
                content[at:at] = content[other : other + rng.choice([1, 4, 100])]
            content = content or bytearray(b"?")
        loaded += damage.loads(bytes(content))
    assert loaded < 600  # what does no harm: dates and permissions in the zip, bytes before it


BAD = [None, -1, 0, 1, 2, 10**30, 1.5, True, "", "x", [], {}, [[]], [-1], [10**30], [8, 9], [72],
       "0.weight", "1.weight"]  # fmt: skip


@pytest.mark.parametrize("digest", [False, True])
def test_every_field_of_the_header_edited(damage, digest):
    described = json.loads(np.load(io.BytesIO(damage.content))["header"].tobytes())
    for value in BAD:
        for field in described:
            edit = header(lambda h, f=field, v=value: h.update({f: v}))
            changed = described[field] != value
            loads = damage.loads(rewritten(damage.content, header=edit, redigest=digest))
            assert not (loads and changed and not (digest and field == "masktorch"))
        for i, described_row in enumerate(described["tensors"]):
            for field in described_row:
                edit = header(lambda h, i=i, f=field, v=value: h["tensors"][i].update({f: v}))
                changed = described_row[field] != value
                # A right digest makes another kept count another file, not a damaged one.
                loads = damage.loads(
                    rewritten(damage.content, header=edit, redigest=digest),
                    exactly=not (digest and field == "kept"),
                )
                assert not (loads and changed and not (digest and field in ["estimator", "kept"]))


def test_rows_swapped_renamed_and_removed(damage):
    def swap(h):
        h["tensors"][0], h["tensors"][1] = h["tensors"][1], h["tensors"][0]

    def rename(h):
        h["tensors"][0]["name"], h["tensors"][1]["name"] = "1.weight", "0.weight"

    for edit in [swap, rename, lambda h: h["tensors"].pop(), lambda h: h["tensors"].pop(0)]:
        for digest in [False, True]:
            assert not damage.loads(rewritten(damage.content, header=header(edit), redigest=digest))


@settings(
    max_examples=400,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.binary(max_size=40)), max_size=4
    )
)
def test_any_damage(damage, edits):
    """Bytes anywhere replaced by others, fewer or more."""
    content = damage.content
    for at, length, new in edits:
        at %= len(content) + 1
        content = content[:at] + new + content[at + length :]
    damage.loads(content)


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(max_size=200), st.integers(0, 40), st.integers(0, 3000))
def test_any_bytes_as_code(code, kept, size):
    """Either a mask with as many kept as it should have, or one of the two errors caught."""
    try:
        mask = _decode(code, kept, size)
    except (ValueError, zlib.error):
        return
    assert (mask.size, mask.sum()) == (size, kept)
