"""Errors say what does not fit and what to call instead; the model is unchanged."""

import io
import os
import re

import numpy as np
import pytest
import torch
from torch import nn

import masktorch
from masktorch import load_masks, read_masks, save_masks
from tools.maskfile_mutants import (
    Net,
    header,
    plain,
    rewritten,
    same,
    snapshot,
    unchanged,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


def saved(model):
    save_masks(model, file := io.BytesIO())
    return io.BytesIO(file.getvalue())


def refused(model, file, message, error=ValueError, **options):
    """Check that a file is refused with this message, and the model left as it was."""
    before = snapshot(model)
    with pytest.raises(error, match=re.escape(message)) as raised:
        load_masks(model, file, **options)
    assert unchanged(model, before)
    return str(raised.value)


def layers():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


class Deeper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": inner})


# Dtypes


@pytest.mark.parametrize("onto", [plain, lambda model: wrapped(plain(model))])
@pytest.mark.parametrize(
    ("was", "now"),
    [("float32", "bfloat16"), ("float16", "float32"), ("float32", "float64")],
)
def test_another_dtype_is_named(onto, was, now):
    model = wrapped(Net().to(getattr(torch, was)))
    file = saved(model)
    other = onto(model).to(getattr(torch, now))
    message = refused(
        other,
        file,
        f"expected dtype {now} for 'scale', found {was} in the file: saved over {was}, "
        f"here {now}. Load the weights that the masks were saved over or, if these are "
        "meant, load_masks(model, path, any_weights=True).",
    )
    assert "fingerprint" not in message
    file.seek(0)
    load_masks(other, file, any_weights=True)
    assert same(masktorch.masks(other), masktorch.masks(model))


def test_the_header_names_the_dtype_of_the_weights():
    """Not that of the scores, which may be wider."""
    with np.load(saved(wrapped(Net().half()))) as file:
        assert file["header"].tobytes().count(b'"dtype":"float16"') == 6


# Names


@pytest.mark.parametrize("wrap", [lambda model: model, masktorch.wrap])
def test_a_prefix_that_the_file_lacks(wrap):
    inner = layers()
    file = saved(masktorch.wrap(layers()))
    model = wrap(Deeper(inner))
    message = refused(model, file, "2 in the file only ['0.weight', '2.weight']")
    assert message.endswith(
        "Every name in the file lacks the prefix 'encoder.layers.': load the masks "
        "into model.get_submodule('encoder.layers')."
    )
    file.seek(0)
    load_masks(model.get_submodule("encoder.layers"), file, any_weights=True)


@pytest.mark.parametrize("wrap", [lambda model: model, masktorch.wrap])
def test_a_prefix_that_the_model_lacks(wrap):
    file = saved(masktorch.wrap(Deeper(layers())))
    model = wrap(layers())
    message = refused(
        model, file, "'encoder.layers.0.weight', 'encoder.layers.2.weight'"
    )
    advice = (
        "masktorch.set_masks(model, {name.removeprefix('encoder.layers.'): mask for "
        "name, mask in masktorch.read_masks(path).items()})."
    )
    assert "has the prefix 'encoder.layers.', which this model lacks" in message
    assert message.endswith(advice)
    path = io.BytesIO(file.getvalue())
    eval(
        advice.removesuffix("."), {"masktorch": masktorch, "model": model, "path": path}
    )
    file.seek(0)
    assert next(iter(masktorch.masks(model).values())).equal(
        next(iter(read_masks(file).values()))
    )


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (nn.Linear(2, 2), "Build the model that the masks were saved from."),
        (masktorch.wrap(nn.Linear(2, 2)), "or load them into a plain model."),
        # One of the names would have the prefix, another would not.
        (
            nn.ModuleDict({"a": nn.ModuleDict({"0": nn.Linear(4, 3)})}),
            "were saved from.",
        ),
    ],
)
def test_other_names_than_a_prefix(model, advice):
    file = saved(masktorch.wrap(layers()))
    message = refused(model, file, "2 in the file only ['0.weight', '2.weight']")
    assert message.endswith(advice)
    assert "prefix" not in message


def test_names_of_any_length_are_cut():
    rename = header(lambda h: h["tensors"][0].update(name="x" * 500_000))
    content = rewritten(saved(masktorch.wrap(layers())).getvalue(), header=rename)
    assert len(refused(layers(), io.BytesIO(content), "1 in the file only")) < 1000


# Files of another kind, damaged, newer


def test_another_kind_of_file_is_not_called_damaged(tmp_path):
    path = tmp_path / "file"
    torch.save(layers().state_dict(), path)
    message = refused(
        layers(), path, "found a PyTorch checkpoint: read it with torch.load"
    )
    assert "damage" not in message
    np.savez(path, weight=np.ones(3))  # at file.npz
    message = refused(layers(), f"{path}.npz", "found a zip archive of ['weight.npy']")
    assert "damage" not in message
    path.write_text("hello world")
    message = refused(layers(), path, "found 11 bytes that start with b'hello wo'")
    assert "damage" not in message


@pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
def test_a_part_of_a_file_is_called_damaged(tmp_path, part):
    content = saved(masktorch.wrap(layers())).getvalue()
    (tmp_path / "file").write_bytes(content[: int(part * len(content))])
    message = refused(layers(), tmp_path / "file", "the mask file is damaged: its ")
    assert message.endswith(
        "Copy it again, or save it again with masktorch.save_masks."
    )


def test_a_newer_version_is_not_called_damaged():
    newer = header(lambda h: h.update(version=99, tensors="in some other way"))
    content = rewritten(saved(masktorch.wrap(layers())).getvalue(), header=newer)
    message = refused(
        layers(),
        io.BytesIO(content),
        "expected a mask file of format version 3 or older, found version 99, which a "
        "newer masktorch wrote: upgrade masktorch.",
    )
    assert "damage" not in message


# Folders


def test_a_folder_is_not_a_file(tmp_path):
    model = wrapped()
    refused(
        model,
        tmp_path,
        "expected a mask file, found a folder: name a file in it",
        IsADirectoryError,
    )
    with pytest.raises(IsADirectoryError, match="found a folder"):
        read_masks(str(tmp_path))
    with pytest.raises(
        IsADirectoryError,
        match=r"save_masks\(\) expected the path of a file, found a folder",
    ):
        save_masks(model, tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_does_not_exist(tmp_path):
    folder = tmp_path / "runs" / "1"
    message = (
        rf"save_masks\(\) found no folder '{folder}': call os.makedirs for it first"
    )
    with pytest.raises(FileNotFoundError, match=message):
        save_masks(wrapped(), folder / "masks.npz")
    os.makedirs(folder)
    save_masks(wrapped(), folder / "masks.npz")
    with pytest.raises(NotADirectoryError):
        save_masks(wrapped(), folder / "masks.npz" / "masks.npz")


def test_nothing_is_computed_for_a_path_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("masktorch._files.save_load.encode", None)
    for path in (tmp_path, tmp_path / "no folder" / "masks.npz"):
        with pytest.raises(OSError, match="folder"):
            save_masks(wrapped(), path)
    with pytest.raises(TypeError, match="open it with mode 'wb'"):
        save_masks(wrapped(), io.StringIO())
