"""docs/reproduction.md: the answers to the blog's question, from the committed results.

To add the section of a study: a function that computes what it prints, an entry in
`context`, and a template in templates/reproduction that reproduction.md includes.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiment.arms import CONTROL
from benchmarks.experiment.results import (
    RESULTS,
    Groups,
    group_by_seed,
    read_results,
)
from benchmarks.files import write_text
from benchmarks.pages import (
    blog_question,
    encoder,
    figures,
    mask_studies,
    sparse_training,
)
from benchmarks.pages.comparison import Difference, Experiment, read_experiments
from benchmarks.pages.render import DOCS, render
from benchmarks.pages.toy import read_toy

ANSWERING = ("blog", "blog-small")  # the studies whose results answer the question
SUPERSEDED = ("reduced", "wrn-28-1")  # and those that did before them
MOST_CURVES = 6  # panels of the figure


def write(results: Path = RESULTS, docs: Path = DOCS) -> Path:
    """Write docs/reproduction.md and its figures from benchmarks/results."""
    text = render("reproduction.md", **context(results, docs / "figures"))
    return write_text(text, docs / "reproduction.md")


def context(results: Path, folder: Path) -> dict[str, Any]:
    """Return all that the template prints, and draw the figures into `folder`.

    What the results don't give is empty, and the template leaves out its section.
    """
    published = json.loads(Path(__file__).with_name("published.json").read_text())
    networks = published["networks"]
    main = _experiments(results, ANSWERING)
    differences = [one for experiment in main for one in experiment.differences()]
    if main:
        _draw_main(main, differences, folder)

    def groups(study: str) -> Groups:
        return group_by_seed(read_results(results / study))

    return {
        "control": CONTROL,
        "main": main,
        "earlier": _experiments(results, SUPERSEDED),
        "experiment_name": blog_question.experiment_name,
        "table_rows": blog_question.table_rows,
        "answer": blog_question.answer(main, differences),
        "second_phases": list(blog_question.second_phases(main)),
        "layer_kinds": list(blog_question.LAYER_KINDS),
        "masked_by_kind": list(blog_question.masked_by_kind(main)),
        "estimators": mask_studies.estimators(groups("which-estimator"), folder),
        "supermasks": mask_studies.settings(groups("supermasks"), networks),
        "literature": mask_studies.settings(groups("literature"), networks),
        "about_published": published["about"],
        "tickets": mask_studies.tickets(groups("tickets"), folder),
        "ticket_arms": mask_studies.TICKET_ARMS,
        "final_accuracies": mask_studies.final_accuracies,
        "sparse_training": sparse_training.sparse_training(groups("dynamic"), folder),
        "half_precision": sparse_training.half_precision(groups("bfloat16")),
        "encoder": encoder.encoder(results / "encoder", folder),
        "toy": read_toy(results / "categorical" / "categorical.json", folder),
    }


def _experiments(results: Path, studies: Iterable[str]) -> list[Experiment]:
    return [one for study in studies for one in read_experiments(results / study)]


def _draw_main(
    main: Sequence[Experiment], differences: Sequence[Difference], folder: Path
) -> None:
    phases = [phase for experiment in main for phase in experiment.phases()]
    figures.save(figures.forest(differences), folder / "differences.png")
    figures.save(figures.curves(phases[:MOST_CURVES]), folder / "curves.png")
