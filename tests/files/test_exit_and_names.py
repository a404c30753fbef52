"""Files in unusual places: at interpreter exit, without threads, under long names."""

import concurrent.futures
import copy
import io
import os
import stat
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

import masktorch
from masktorch import Threshold, load_masks, read_masks, save_masks
from tools.maskfile_mutants import same, wrapped

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")

AT_EXIT = """
import atexit, copy
import torch, masktorch
from torch import nn

def at_exit():
    masktorch.save_masks(model, "masks")
    assert masktorch.read_masks("masks")["0.weight"].equal(mask)
    loaded = masktorch.load_masks(plain, "masks")
    assert masktorch.masks(loaded)["0.weight"].equal(mask)
    print("saved and loaded", flush=True)

atexit.register(at_exit)
torch.manual_seed(0)
plain = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20), nn.Linear(20, 10))
model = masktorch.wrap(copy.deepcopy(plain))
mask = torch.rand(30, 40) < 0.5
masks = masktorch.masks(model)
masktorch.set_masks(model, {**masks, "0.weight": mask})
"""


def test_at_interpreter_exit(tmp_path):
    """No thread can start then."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("saved and loaded\n", "")
    assert os.listdir(tmp_path) == ["masks"]


@pytest.mark.parametrize("threads", [0, 1])
def test_where_the_system_starts_no_more_threads(monkeypatch, threads):
    model = wrapped()
    save_masks(model, expected := io.BytesIO())
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) >= threads:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threading.Thread, "start", limited)
    save_masks(model, file := io.BytesIO())
    assert file.getvalue() == expected.getvalue()
    started.clear()
    assert same(read_masks(io.BytesIO(file.getvalue())), masktorch.masks(model))


def test_an_error_of_the_work_is_not_taken_for_a_lack_of_threads(monkeypatch):
    calls = []

    def fails(*arguments):
        calls.append(arguments)
        raise RuntimeError("of the work")

    monkeypatch.setattr("masktorch._files.save_load._fingerprint", fails)
    with pytest.raises(RuntimeError, match="of the work"):
        save_masks(masktorch.wrap(nn.Linear(2, 2)), io.BytesIO())
    assert len(calls) == 1


LONGEST = 255  # bytes of a name in most file systems


@pytest.mark.parametrize(
    "name",
    [
        "x" * 250,
        "x" * LONGEST,
        "é" * (LONGEST // 2),
        "маска.npz",
        "面具.npz",
        "🎭",
        " ",
        ".hidden",
    ],
    ids=range(8),
)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_any_name_that_a_file_can_have(tmp_path, name, as_bytes):
    model = wrapped()
    path = os.path.join(tmp_path, name)
    argument = os.fsencode(path) if as_bytes else path
    for _ in range(2):  # a new file, and an old one
        save_masks(model, argument)
        assert os.listdir(tmp_path) == [name]
    assert same(read_masks(argument), masktorch.masks(model))


def test_a_name_that_is_not_text(tmp_path):
    name = b"\xff\xfe.npz"
    save_masks(wrapped(), os.path.join(os.fsencode(tmp_path), name))
    assert os.listdir(os.fsencode(tmp_path)) == [name]


def test_a_path_relative_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_masks(wrapped(), "masks")
    assert os.listdir() == ["masks"]


def test_a_long_name_keeps_its_permissions_and_its_link(tmp_path):
    path = tmp_path / ("x" * 250)
    (tmp_path / "link").symlink_to(path.name)
    save_masks(wrapped(), tmp_path / "link")
    path.chmod(0o640)
    before = path.read_bytes()
    save_masks(wrapped(kept=0.9), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() != before
    assert sorted(os.listdir(tmp_path)) == ["link", path.name]


def test_the_masks_in_use_are_saved_by_any_number_of_threads():
    """`using` is per thread, and the work is done by threads of a pool."""
    model = masktorch.wrap(nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)]))
    names = masktorch.masks(model)

    def saved(seed):
        generator = torch.Generator().manual_seed(seed)
        used = {name: torch.rand(4, 4, generator=generator) < 0.5 for name in names}
        with masktorch.using(model, used):
            save_masks(model, file := io.BytesIO())
        return same(read_masks(io.BytesIO(file.getvalue())), used)

    assert saved(0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(saved, 1).result()
    assert all(mask.all() for mask in masktorch.masks(model).values())


@pytest.mark.parametrize("block", [(1, None), (None, 1), (2, 3), (None, None)])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 3)])
def test_masks_of_blocks_are_saved_in_the_shape_of_the_weight(make, block):
    """Their scores have one entry per block."""
    start = make()
    layer = masktorch.wrap(copy.deepcopy(start), masktorch.Blocks(Threshold(), block))
    scores = layer.parametrizations.weight.scores
    with torch.no_grad():
        scores.copy_(torch.arange(scores.numel()).view(scores.shape) % 2)
    save_masks(layer, file := io.BytesIO())
    (mask,) = read_masks(io.BytesIO(file.getvalue())).values()
    assert mask.shape == start.weight.shape
    assert mask.equal(masktorch.masks(layer)["weight"])
    for onto in (copy.deepcopy(start), masktorch.wrap(copy.deepcopy(start)), layer):
        load_masks(onto, io.BytesIO(file.getvalue()))
        assert masktorch.masks(onto)["weight"].equal(mask)


def test_two_parameters_over_one_memory_are_one_tensor():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model[0].weight.detach())
    masktorch.wrap(model, targets=["0.weight", "1.weight"])
    mask = torch.eye(4) > 0
    masktorch.set_masks(model, {"0.weight": mask, "1.weight": mask})
    save_masks(model, file := io.BytesIO())
    assert list(read_masks(io.BytesIO(file.getvalue()))) == ["0.weight"]
    load_masks(masktorch.unwrap(model, bake=False), io.BytesIO(file.getvalue()))
    assert masktorch.masks(model)["0.weight"].equal(mask)
    assert model[1].weight.count_nonzero() == 4
