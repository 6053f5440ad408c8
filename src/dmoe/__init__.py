"""De-correlated mixture-of-experts click-through-rate models (arXiv 2505.17925)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmoe.classifier import DMoEClassifier
    from dmoe.classifier_input import FewRowsWarning
    from dmoe.data.canonical import MissingWordsWarning
    from dmoe.data.unseen import UnseenValuesWarning
    from dmoe.decorrelation import (
        BarlowTwinsLoss,
        CorrLoss,
        CovLoss,
        CrossExpertCorrelation,
        LinearCKA,
        VICRegLoss,
        cross_expert_correlation,
    )
    from dmoe.nn.model import DMoE, DMoEOutput
    from dmoe.scoring import load

__all__ = [
    "BarlowTwinsLoss",
    "CorrLoss",
    "CovLoss",
    "CrossExpertCorrelation",
    "DMoE",
    "DMoEClassifier",
    "DMoEOutput",
    "FewRowsWarning",
    "LinearCKA",
    "MissingWordsWarning",
    "UnseenValuesWarning",
    "VICRegLoss",
    "cross_expert_correlation",
    "load",
]

_HOME = {
    "BarlowTwinsLoss": "dmoe.decorrelation",
    "LinearCKA": "dmoe.decorrelation",
    "VICRegLoss": "dmoe.decorrelation",
    "CorrLoss": "dmoe.decorrelation",
    "CovLoss": "dmoe.decorrelation",
    "CrossExpertCorrelation": "dmoe.decorrelation",
    "cross_expert_correlation": "dmoe.decorrelation",
    "DMoE": "dmoe.nn.model",
    "DMoEClassifier": "dmoe.classifier",
    "DMoEOutput": "dmoe.nn.model",
    "FewRowsWarning": "dmoe.classifier_input",
    "MissingWordsWarning": "dmoe.data.canonical",
    "UnseenValuesWarning": "dmoe.data.unseen",
    "load": "dmoe.scoring",
}


def __getattr__(name: str) -> object:
    # Loaded on first use: torch takes seconds to import, and `dmoe --help` needs none of it.
    if name not in _HOME:
        raise AttributeError(f"module 'dmoe' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
