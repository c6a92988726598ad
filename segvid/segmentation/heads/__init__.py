"""Segmentation heads: feature maps of a backbone to logits. One family a file."""

from segvid.segmentation.heads.ccnet import CCNetHead
from segvid.segmentation.heads.danet import DANetHead
from segvid.segmentation.heads.deeplab import DeepLabV3Head, DeepLabV3PlusHead
from segvid.segmentation.heads.emanet import EMANetHead
from segvid.segmentation.heads.fcn import FCNHead
from segvid.segmentation.heads.non_local import NonLocalHead
from segvid.segmentation.heads.pspnet import PSPNetHead

__all__ = [
    "CCNetHead",
    "DANetHead",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "EMANetHead",
    "FCNHead",
    "NonLocalHead",
    "PSPNetHead",
]
