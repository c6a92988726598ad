"""Segmentation heads: feature maps of a backbone to logits. One family a file."""

from segvid.segmentation.heads.a2net import A2NetHead
from segvid.segmentation.heads.ann import ANNHead
from segvid.segmentation.heads.apcnet import APCNetHead
from segvid.segmentation.heads.beyond_grids import BeyondGridsHead
from segvid.segmentation.heads.bilateral import BilateralHead
from segvid.segmentation.heads.carafe import CARAFEHead
from segvid.segmentation.heads.ccnet import CCNetHead
from segvid.segmentation.heads.cgnl import CGNLHead
from segvid.segmentation.heads.danet import DANetHead
from segvid.segmentation.heads.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from segvid.segmentation.heads.dgmn import DGMNHead
from segvid.segmentation.heads.dnlnet import DNLNetHead
from segvid.segmentation.heads.emanet import EMANetHead
from segvid.segmentation.heads.fcn import FCNHead
from segvid.segmentation.heads.gcnet import GCNetHead
from segvid.segmentation.heads.glore import GloReHead
from segvid.segmentation.heads.isanet import ISANetHead
from segvid.segmentation.heads.latent_gnn import LatentGNNHead
from segvid.segmentation.heads.local_relation import LocalRelationHead
from segvid.segmentation.heads.non_local import NonLocalHead
from segvid.segmentation.heads.ocnet import OCNetHead
from segvid.segmentation.heads.psanet import PSANetHead
from segvid.segmentation.heads.pspnet import PSPNetHead
from segvid.segmentation.heads.self_attention import SelfAttentionHead
from segvid.segmentation.heads.sgr import SGRHead

__all__ = [
    "A2NetHead",
    "ANNHead",
    "APCNetHead",
    "BeyondGridsHead",
    "BilateralHead",
    "CARAFEHead",
    "CCNetHead",
    "CGNLHead",
    "DANetHead",
    "DGMNHead",
    "DNLNetHead",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "EMANetHead",
    "FCNHead",
    "GCNetHead",
    "GloReHead",
    "ISANetHead",
    "LatentGNNHead",
    "LocalRelationHead",
    "NonLocalHead",
    "OCNetHead",
    "PSANetHead",
    "PSPNetHead",
    "SGRHead",
    "SelfAttentionHead",
]
