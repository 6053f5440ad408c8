"""Feature-interaction experts: field embeddings (B, F, D) in, one vector a row out. One file each.

Importing this package fills `EXPERTS`, the registry from a name in a configuration to its class.
"""

from dmoe.nn.experts.base import EXPERTS, Expert, expert_class, register
from dmoe.nn.experts.cin import CIN
from dmoe.nn.experts.crossnet import CrossNet
from dmoe.nn.experts.dcnv2 import DCNv2
from dmoe.nn.experts.deepfm import DeepFM
from dmoe.nn.experts.dnn import DNN
from dmoe.nn.experts.fm import FM
from dmoe.nn.experts.nfm import NFM
from dmoe.nn.experts.xdeepfm import XDeepFM

__all__ = [
    "CIN",
    "DNN",
    "EXPERTS",
    "FM",
    "NFM",
    "CrossNet",
    "DCNv2",
    "DeepFM",
    "Expert",
    "XDeepFM",
    "expert_class",
    "register",
]
