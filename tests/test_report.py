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
        ("0.weight", (2, 1000), 2000, 1000, 0.5, True),
        ("2.weight", (3, 2), 6, 1, 1 / 6, False),
    )
    assert (report.size, report.masked, report.masked_fraction) == (2006, 1001, 1001 / 2006)
    assert str(report).splitlines() == [
        "tensor    shape    size  masked  fraction  mask",
        "0.weight  2x1000  2,000   1,000    0.5000  trains",
        "2.weight  3x2         6       1    0.1667  frozen",
        "total             2,006   1,001    0.4990",
    ]
