"""Context mechanisms: every position is informed by positions far away. One paper a file."""

from segvid.attention.context.aspp import ASPP
from segvid.attention.context.criss_cross import CrissCrossAttention
from segvid.attention.context.dual import ChannelAttention, PositionAttention
from segvid.attention.context.expectation_maximization import ExpectationMaximizationAttention
from segvid.attention.context.non_local import NonLocal
from segvid.attention.context.pyramid_pooling import PyramidPooling

__all__ = [
    "ASPP",
    "ChannelAttention",
    "CrissCrossAttention",
    "ExpectationMaximizationAttention",
    "NonLocal",
    "PositionAttention",
    "PyramidPooling",
]
