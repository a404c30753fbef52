"""DDP and FSDP2 on two gloo processes; tools/distributed_worker.py has the checks."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint

import masktorch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_gloo_available(), reason="torch has no gloo"
    ),
]
WORKER = Path(__file__).parents[1] / "tools" / "distributed_worker.py"
PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
SCRIPTS = re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)

# DDP and FSDP models are reference cycles that keep gloo's threads running past
# destroy_process_group. If such a thread releases a tensor while Python shuts down,
# the process aborts (seen once). So a finished process exits without shutting down.
EXIT = "\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"

spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


def torchrun(*arguments, cwd, timeout):
    """Run a program in two processes; return the exit code and what they printed."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    process = subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:  # with torchrun its workers, too
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return process.returncode, output


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Run all checks in one launch; after a failed check, the rest in another."""
    folder, names = tmp_path_factory.mktemp("ranks"), list(worker.CHECKS)
    while names:
        code, output = torchrun(WORKER, folder, *names, cwd=folder, timeout=240)
        if code == 0:
            break
        done = [
            n
            for n in names
            if (folder / f"{n}.0").exists() or (folder / f"{n}.1").exists()
        ]
        if not done:  # not even the first check was reached
            pytest.fail(output)
        names = names[names.index(done[-1]) + 1 :]
    return folder


@pytest.mark.parametrize("name", worker.CHECKS)
def test_checks_on_two_ranks(launched, name):
    for rank in (0, 1):
        result = launched / f"{name}.{rank}"
        assert result.exists(), f"rank {rank} did not finish"
        assert result.read_text() == ""


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_one_process_loads_what_fsdp_saved(launched):
    saved = torch.load(launched / "one.pt")
    for source in ("the checkpoint itself", "the gathered state dict"):
        model = worker.network()
        if source == "the checkpoint itself":
            state = {"model": model.state_dict()}
            checkpoint.load(state, checkpoint_id=launched / "one", no_dist=True)
        else:
            state = {"model": saved["state"]}
        model.load_state_dict(state["model"])
        worker.assert_equal(masktorch.masks(model), saved["masks"])
        assert not all(mask.all() for mask in saved["masks"].values())
        x = worker.batches()[0][0]
        torch.testing.assert_close(model.eval()(x), saved["output"])
        torch.testing.assert_close(masktorch.unwrap(model)(x), saved["output"])


def test_the_page_has_two_scripts():
    assert ["fully_shard(model)" in script for script in SCRIPTS] == [False, True]


@pytest.mark.parametrize("script", SCRIPTS, ids=["ddp", "fsdp"])
def test_the_scripts_of_the_page_run(script, tmp_path):
    (tmp_path / "train.py").write_text(script)
    (tmp_path / "launch.py").write_text(
        f"import runpy\nrunpy.run_path('train.py'){EXIT}"
    )
    code, output = torchrun("launch.py", cwd=tmp_path, timeout=120)
    assert code == 0, output
    assert output.count("total") == 1, output  # the report, of one rank
    masks = tmp_path / "masks.npz"
    assert masks.stat().st_size > 0
    assert (tmp_path / "checkpoint" / ".metadata").exists()
