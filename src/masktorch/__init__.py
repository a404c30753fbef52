"""Learnable weight masks for PyTorch."""

from masktorch import functional
from masktorch.estimators import Bernoulli, Estimator, IntermediateSampling, Threshold
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
    "Report",
    "Threshold",
    "freeze_mask",
    "freeze_weights",
    "functional",
    "load_masks",
    "mask_parameters",
    "masks",
    "report",
    "save_masks",
    "set_masks",
    "unwrap",
    "wrap",
]
