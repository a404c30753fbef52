"""Learnable weight masks for PyTorch."""

from masktorch import budget, functional, init
from masktorch.budget import keep_largest
from masktorch.estimators import (
    Bernoulli,
    Estimator,
    IntermediateSampling,
    NOfM,
    Threshold,
    TopK,
)
from masktorch.maskfile import load_masks, save_masks
from masktorch.phases import freeze_mask, freeze_weights, mask_parameters
from masktorch.report import Report, report
from masktorch.values import masks, set_masks
from masktorch.wrapping import unwrap, wrap

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Estimator",
    "IntermediateSampling",
    "NOfM",
    "Report",
    "Threshold",
    "TopK",
    "budget",
    "freeze_mask",
    "freeze_weights",
    "functional",
    "init",
    "keep_largest",
    "load_masks",
    "mask_parameters",
    "masks",
    "report",
    "save_masks",
    "set_masks",
    "unwrap",
    "wrap",
]
