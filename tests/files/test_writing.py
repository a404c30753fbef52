"""save_masks writes whole files or none: permissions, links, pipes, failures."""

import io
import os
import re
import stat
import threading
from pathlib import Path

import pytest
from torch import nn

import masktorch
from masktorch import (
    load_masks,
    save_masks,
)
from masktorch._files import archive
from tools.maskfile_mutants import (
    Net,
    plain,
    same,
    wrapped,
)

pytestmark = pytest.mark.filterwarnings("ignore:The mask of .* keeps nothing")


def test_paths_links_and_permissions(tmp_path):
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


def test_the_file_is_complete_before_it_is_renamed(path, monkeypatch):
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


def test_masks_that_cannot_be_saved_are_refused(tmp_path):
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
