"""Learnable weight masks for PyTorch."""

from masktorch import budget, functional, init
from masktorch.budget import expected_density, keep_largest, set_density, set_estimator
from masktorch.counted import NOfM, TopK
from masktorch.estimators import (
    Bernoulli,
    Concrete,
    Estimator,
    HardConcrete,
    IntermediateSampling,
    Piggyback,
    Threshold,
)
from masktorch.maskfile import load_masks, read_masks, save_masks
from masktorch.phases import freeze_mask, freeze_weights, mask_parameters, named_mask_parameters
from masktorch.report import Report, report
from masktorch.values import masks, sample_masks, set_masks, using
from masktorch.wrapping import unwrap, wrap

__version__ = "0.1.0"

__all__ = [
    "Bernoulli", "Concrete", "Estimator", "HardConcrete", "IntermediateSampling", "NOfM",
    "Piggyback", "Report", "Threshold", "TopK", "budget", "expected_density", "freeze_mask",
    "freeze_weights", "functional", "init", "keep_largest", "load_masks", "mask_parameters",
    "masks", "named_mask_parameters", "read_masks", "report", "sample_masks", "save_masks",
    "set_density", "set_estimator", "set_masks", "unwrap", "using", "wrap",
]  # fmt: skip
