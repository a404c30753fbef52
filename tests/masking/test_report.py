import pickle

import torch
from torch import nn

import masktorch


def test_report_counts_and_prints():
    model = nn.Sequential(nn.Linear(1000, 2), nn.ReLU(), nn.Linear(2, 3))
    masktorch.wrap(model)
    first = torch.ones(2, 1000, dtype=torch.bool)
    first[0] = False
    second = torch.tensor([[True, True], [True, False], [True, True]])
    masktorch.set_masks(model, {"0.weight": first, "2.weight": second})
    masktorch.freeze_mask(model[2])

    report = masktorch.report(model)
    assert report.rows == (
        ("0.weight", (2, 1000), 2000, 1000, 1000, 0.5, 0.5, True, False),
        ("2.weight", (3, 2), 6, 5, 1, 5 / 6, 1 / 6, False, False),
    )
    assert (report.kept, report.density) == (1005, 1005 / 2006)
    assert (report.parameters, report.share) == (
        2011,
        2006 / 2011,
    )  # five biases are left
    assert (report.size, report.masked, report.masked_fraction) == (
        2006,
        1001,
        1001 / 2006,
    )
    assert str(report).splitlines() == [
        "tensor    shape    size   kept  density  masked  fraction  mask    weights",
        "0.weight  2x1000  2,000  1,000   0.5000   1,000    0.5000  trains  frozen",
        "2.weight  3x2         6      5   0.8333       1    0.1667  frozen  frozen",
        "total             2,006  1,005   0.5010   1,001    0.4990",
        "under masks: 2,006 of 2,011 parameters (99.8%)",
    ]


def test_rows_say_whether_scores_train():
    model = masktorch.wrap(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)))
    assert [row.trains for row in masktorch.report(model).rows] == [True, True]
    model[0].requires_grad_(False)
    assert [row.trains for row in masktorch.report(model).rows] == [False, True]
    with masktorch.using(model, None):
        assert not any(row.trains for row in masktorch.report(model).rows)


def test_the_class_of_a_row_has_a_public_name():
    report = masktorch.report(masktorch.wrap(nn.Linear(3, 2)))
    assert type(report.rows[0]) is masktorch.Report.Row
    assert pickle.loads(pickle.dumps(report)) == report


def test_a_fresh_model_says_that_nothing_is_masked_yet():
    lines = str(masktorch.report(masktorch.wrap(nn.Linear(3, 2)))).splitlines()
    assert lines[-1] == "nothing is masked yet: every entry is kept"


def test_parameters_are_counted_once_and_without_scores():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    report = masktorch.report(masktorch.wrap(model))
    assert (report.size, report.parameters) == (9, 15)
