"""Naive float64 versions of the mechanisms: definitions spelled out as loops, to hold the fast ones against.

Nothing here is shared with `segvid`. Weights are arguments: a convolution is `(weight, bias)` or `(weight,)`, a batch
norm `(weight, bias, mean, variance)`, where mean and variance None stand for the batch's own (training). `tools` holds
what the formula tests share.
"""

from tests.reference.layers import (
    Convolution,
    Norm,
    adaptive_avg_pool2d,
    batch_norm,
    conv3x3,
    conv_bn_relu,
    pointwise,
    resize_bilinear,
)
from tests.reference.mechanisms import (
    atrous_spatial_pyramid_pooling,
    attend,
    attend_everywhere,
    channel_attention,
    criss_cross_attention,
    expectation_maximization,
    expectation_maximization_attention,
    non_local,
    position_attention,
    pyramid_pooling,
)
from tests.reference.tools import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    permute_positions,
    random_input,
    randomise,
)

__all__ = [
    "Convolution",
    "Norm",
    "adaptive_avg_pool2d",
    "assert_same_with_gradients",
    "atrous_spatial_pyramid_pooling",
    "attend",
    "attend_everywhere",
    "batch_norm",
    "channel_attention",
    "conv3x3",
    "conv_bn_relu",
    "conv_weights",
    "criss_cross_attention",
    "expectation_maximization",
    "expectation_maximization_attention",
    "non_local",
    "norm_weights",
    "permutation_gap",
    "permute_positions",
    "pointwise",
    "position_attention",
    "pyramid_pooling",
    "random_input",
    "randomise",
    "resize_bilinear",
]
