"""Context mechanisms: every position is informed by positions far away. One paper a file; read in this order:

1. fixed regions: pyramid_pooling, aspp (averages and strides chosen beforehand), adaptive_context (weights chosen by
   the content), psa (weights predicted for each offset), carafe (the same inside a small window, to upsample);
2. all pairs: non_local and its relatives object_context, dual, disentangled, global_context (one map for all queries),
   bilateral (weights by distance);
3. fewer keys: criss_cross, interlaced, self_attention (all spaces side by side), local_relation, dgmn (keys that move),
   asymmetric (pooled keys);
4. few nodes: double, expectation_maximization, cgnl, glore, sgr, gcu, latent_gnn: gather to K nodes, perhaps reason
   among them, distribute. Attention whose affinity has rank K.

A mechanism is made of its number of channels and maps (B, C, H, W) to (B, C, H, W), except seven: ASPP, PyramidPooling,
PyramidObjectContext and AdaptivePyramidContext give another number of channels (their `out_channels`), CARAFE a finer
map; AdaptiveContext, one scale of the last of those, has to be told its scale and gives a quarter of the channels;
AsymmetricFusion takes two maps.
"""

from segvid.attention.context.adaptive_context import AdaptiveContext, AdaptivePyramidContext
from segvid.attention.context.aspp import ASPP
from segvid.attention.context.asymmetric import AsymmetricFusion, AsymmetricPyramidNonLocal
from segvid.attention.context.bilateral import BilateralFilter
from segvid.attention.context.carafe import CARAFE
from segvid.attention.context.cgnl import CompactGeneralizedNonLocal
from segvid.attention.context.criss_cross import CrissCrossAttention
from segvid.attention.context.dgmn import DynamicGraphMessagePassing
from segvid.attention.context.disentangled import DisentangledNonLocal
from segvid.attention.context.double import DoubleAttention
from segvid.attention.context.dual import ChannelAttention, PositionAttention
from segvid.attention.context.expectation_maximization import ExpectationMaximizationAttention
from segvid.attention.context.gcu import GraphConvolutionUnits
from segvid.attention.context.global_context import GlobalContext
from segvid.attention.context.glore import GlobalReasoning
from segvid.attention.context.interlaced import InterlacedAttention
from segvid.attention.context.latent_gnn import LatentGNN
from segvid.attention.context.local_relation import LocalRelation
from segvid.attention.context.non_local import NonLocal
from segvid.attention.context.object_context import ASPObjectContext, ObjectContext, PyramidObjectContext
from segvid.attention.context.psa import PointwiseSpatialAttention
from segvid.attention.context.pyramid_pooling import PyramidPooling
from segvid.attention.context.self_attention import GridSelfAttention
from segvid.attention.context.sgr import SymbolicGraphReasoning

__all__ = [
    "ASPP",
    "CARAFE",
    "ASPObjectContext",
    "AdaptiveContext",
    "AdaptivePyramidContext",
    "AsymmetricFusion",
    "AsymmetricPyramidNonLocal",
    "BilateralFilter",
    "ChannelAttention",
    "CompactGeneralizedNonLocal",
    "CrissCrossAttention",
    "DisentangledNonLocal",
    "DoubleAttention",
    "DynamicGraphMessagePassing",
    "ExpectationMaximizationAttention",
    "GlobalContext",
    "GlobalReasoning",
    "GraphConvolutionUnits",
    "GridSelfAttention",
    "InterlacedAttention",
    "LatentGNN",
    "LocalRelation",
    "NonLocal",
    "ObjectContext",
    "PointwiseSpatialAttention",
    "PositionAttention",
    "PyramidObjectContext",
    "PyramidPooling",
    "SymbolicGraphReasoning",
]
