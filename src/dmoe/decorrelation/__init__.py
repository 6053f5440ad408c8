"""De-correlation of experts: the losses (eq. 8, 15-17) and the metric (eq. 13, 14) of arXiv 2505.17925, and the like.

Needs torch alone, and works on the layers of any model.
"""

from dmoe.decorrelation.checks import ProcessGroup
from dmoe.decorrelation.correlation import (
    CrossExpertCorrelation,
    ExpertCorrelation,
    cross_expert_correlation,
    noise_floor,
)
from dmoe.decorrelation.losses import (
    AlphaScales,
    BarlowTwinsLoss,
    CorrLoss,
    CorrNorm,
    CovLoss,
    CovNorm,
    Scale,
    VICRegLoss,
    scales_of_alpha,
)
from dmoe.decorrelation.similarity import ExpertSimilarity, LinearCKA

__all__ = [
    "AlphaScales",
    "BarlowTwinsLoss",
    "CorrLoss",
    "CorrNorm",
    "CovLoss",
    "CovNorm",
    "CrossExpertCorrelation",
    "ExpertCorrelation",
    "ExpertSimilarity",
    "LinearCKA",
    "ProcessGroup",
    "Scale",
    "VICRegLoss",
    "cross_expert_correlation",
    "noise_floor",
    "scales_of_alpha",
]
