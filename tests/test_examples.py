"""The examples run from a clone, and print what their texts promise."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = re.compile(r" *(\d[\d,]*(?:\.\d+)?)")
TOLERANCE = (
    20  # for percentages: another torch or processor rounds, and so trains, differently
)


def output_of(name):
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def percentages(text):
    return [float(number) for number in re.findall(r": +(\d+\.\d)%", text)]


def numbers(text):
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.slow
def test_a_mask_over_random_weights_classifies():
    random, masked = percentages(output_of("supermask.py"))
    assert random < 30 < 90 < masked


@pytest.mark.slow
def test_a_tenth_of_a_network_is_left_and_recovers():
    text = output_of("sparse_finetune.py")
    dense, cut, tuned = percentages(text)
    assert cut < tuned - 10 < dense
    assert "1,480 of 14,800 weights are not zero" in text


@pytest.mark.slow
def test_each_task_has_its_mask():
    text = output_of("many_tasks.py")
    accuracies = percentages(text)
    assert len(accuracies) == 3
    assert min(accuracies) > 80


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_keeps(notebook):
    """Each cell runs and prints its kept output, up to a tolerance for numbers."""
    namespace = {"__name__": "__main__"}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        assert all(output["output_type"] == "stream" for output in cell["outputs"])
        kept = "".join("".join(output["text"]) for output in cell["outputs"])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), str(notebook), "exec"), namespace)
        assert NUMBER.sub("#", printed.getvalue()) == NUMBER.sub("#", kept)
        assert numbers(printed.getvalue()) == pytest.approx(
            numbers(kept), abs=TOLERANCE
        )


def test_every_example_is_in_the_index_and_in_a_test():
    index, tests = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    for path in [*EXAMPLES.glob("*.py"), *NOTEBOOKS]:
        assert f"[{path.name}]({path.name})" in index
        assert path in NOTEBOOKS or f'"{path.name}"' in tests
