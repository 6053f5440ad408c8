"""Feature-interaction experts: field embeddings (B, F, D) in, one vector a row out. One file each.

Importing this package fills `EXPERTS`, the registry from a name in a configuration to its class.
"""

from dmoe.nn.experts.autoint import AutoInt
from dmoe.nn.experts.base import EXPERTS, Expert, expert_class, register
from dmoe.nn.experts.cin import CIN
from dmoe.nn.experts.crossnet import CrossNet
from dmoe.nn.experts.crossnet_mix import CrossNetMix
from dmoe.nn.experts.crossnet_v1 import CrossNetV1
from dmoe.nn.experts.dcnv2 import DCNv2
from dmoe.nn.experts.dcnv3 import DCNv3
from dmoe.nn.experts.deepfm import DeepFM
from dmoe.nn.experts.dhen import DHEN
from dmoe.nn.experts.dnn import DNN
from dmoe.nn.experts.ffm import FFM
from dmoe.nn.experts.fibinet import FiBiNET
from dmoe.nn.experts.finalmlp import FinalMLP
from dmoe.nn.experts.finalnet import FinalNet
from dmoe.nn.experts.flatdnn import FlatDNN
from dmoe.nn.experts.fm import FM
from dmoe.nn.experts.fmfm import FmFM
from dmoe.nn.experts.fwfm import FwFM
from dmoe.nn.experts.gdcn import GDCN
from dmoe.nn.experts.gwpfm import GwPFM
from dmoe.nn.experts.ipnn import IPNN
from dmoe.nn.experts.lr import LR
from dmoe.nn.experts.nfm import NFM
from dmoe.nn.experts.onn import ONN
from dmoe.nn.experts.opnn import OPNN
from dmoe.nn.experts.wukong import Wukong
from dmoe.nn.experts.xdeepfm import XDeepFM

__all__ = [
    "CIN",
    "DHEN",
    "DNN",
    "EXPERTS",
    "FFM",
    "FM",
    "GDCN",
    "IPNN",
    "LR",
    "NFM",
    "ONN",
    "OPNN",
    "AutoInt",
    "CrossNet",
    "CrossNetMix",
    "CrossNetV1",
    "DCNv2",
    "DCNv3",
    "DeepFM",
    "Expert",
    "FiBiNET",
    "FinalMLP",
    "FinalNet",
    "FlatDNN",
    "FmFM",
    "FwFM",
    "GwPFM",
    "Wukong",
    "XDeepFM",
    "expert_class",
    "register",
]
