"""Learnable weight masks for PyTorch."""

from masktorch import budget, functional, init
from masktorch._density import expected_density, set_density, set_estimator
from masktorch._files.save_load import load_masks, read_masks, save_masks
from masktorch._masks import masks, sample_masks, set_masks, using
from masktorch._match_checkpoint import match_checkpoint
from masktorch._methods.bernoulli import Bernoulli
from masktorch._methods.blocks import Blocks
from masktorch._methods.concrete import Concrete
from masktorch._methods.concrete_n_of_m import ConcreteNOfM
from masktorch._methods.hard_concrete import HardConcrete
from masktorch._methods.intermediate_sampling import IntermediateSampling
from masktorch._methods.n_of_m import NOfM
from masktorch._methods.piggyback import Piggyback
from masktorch._methods.protocol import Estimator
from masktorch._methods.threshold import Threshold
from masktorch._methods.top_k import TopK
from masktorch._phases import (
    freeze_mask,
    freeze_weights,
    mask_parameters,
    named_mask_parameters,
)
from masktorch._reporting import Report, report
from masktorch._selection import keep_largest, regrow
from masktorch._wrapping import unwrap, wrap

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Blocks",
    "Concrete",
    "ConcreteNOfM",
    "Estimator",
    "HardConcrete",
    "IntermediateSampling",
    "NOfM",
    "Piggyback",
    "Report",
    "Threshold",
    "TopK",
    "budget",
    "expected_density",
    "freeze_mask",
    "freeze_weights",
    "functional",
    "init",
    "keep_largest",
    "load_masks",
    "mask_parameters",
    "masks",
    "match_checkpoint",
    "named_mask_parameters",
    "read_masks",
    "regrow",
    "report",
    "sample_masks",
    "save_masks",
    "set_density",
    "set_estimator",
    "set_masks",
    "unwrap",
    "using",
    "wrap",
]
