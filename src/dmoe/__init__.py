"""De-correlated mixture-of-experts click-through-rate models (arXiv 2505.17925)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmoe.decorrelation import (
        BarlowTwinsLoss,
        CorrLoss,
        CovLoss,
        CrossExpertCorrelation,
        LinearCKA,
        VICRegLoss,
        cross_expert_correlation,
    )
    from dmoe.nn.model import DMoE
    from dmoe.nn.output import DMoEOutput
    from dmoe.scoring.estimator import DMoEClassifier
    from dmoe.scoring.estimator_input import FewRowsWarning
    from dmoe.scoring.load import load
    from dmoe.tokens.unseen import UnseenValuesWarning
    from dmoe.training.callbacks import Callback, TrainingStart
    from dmoe.values.canonical import MissingWordsWarning

__all__ = [
    "BarlowTwinsLoss",
    "Callback",
    "CorrLoss",
    "CovLoss",
    "CrossExpertCorrelation",
    "DMoE",
    "DMoEClassifier",
    "DMoEOutput",
    "FewRowsWarning",
    "LinearCKA",
    "MissingWordsWarning",
    "TrainingStart",
    "UnseenValuesWarning",
    "VICRegLoss",
    "cross_expert_correlation",
    "load",
]

_HOME = {
    "BarlowTwinsLoss": "dmoe.decorrelation",
    "Callback": "dmoe.training.callbacks",
    "LinearCKA": "dmoe.decorrelation",
    "VICRegLoss": "dmoe.decorrelation",
    "CorrLoss": "dmoe.decorrelation",
    "CovLoss": "dmoe.decorrelation",
    "CrossExpertCorrelation": "dmoe.decorrelation",
    "cross_expert_correlation": "dmoe.decorrelation",
    "DMoE": "dmoe.nn.model",
    "DMoEClassifier": "dmoe.scoring.estimator",
    "DMoEOutput": "dmoe.nn.output",
    "FewRowsWarning": "dmoe.scoring.estimator_input",
    "MissingWordsWarning": "dmoe.values.canonical",
    "TrainingStart": "dmoe.training.callbacks",
    "UnseenValuesWarning": "dmoe.tokens.unseen",
    "load": "dmoe.scoring.load",
}


def __getattr__(name: str) -> object:
    # Loaded on first use: torch takes seconds to import, and `dmoe --help` needs none of it.
    if name not in _HOME:
        raise AttributeError(f"module 'dmoe' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
