"""Pyramid pooling: averages over a 1x1, 2x2, 3x3 and 6x6 grid, brought back to every position.

Paper: Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network", CVPR 2017, section 3.2, https://arxiv.org/abs/1612.01105
Official code consulted: hszhao/semseg. Deliberate: bilinear upsampling with align_corners=False, as everywhere here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import adaptive_avg_pool2d
from segvid.attention.layers import conv_bn_relu


class PyramidPooling(nn.Module):
    """`concat(x, up(ReLU(BN(W_b pool_b(x)))) for b in bins)`.

    Args:
        channels: C of the input.
        bins: pooled maps of b x b cells.
        branch_channels: channels of each pooled branch; the paper's C / number of bins when None.

    Shape:
        (B, C, H, W) -> (B, out_channels, H, W) with out_channels = C + len(bins) * branch_channels.
    """

    def __init__(
        self, channels: int, *, bins: Sequence[int] = (1, 2, 3, 6), branch_channels: int | None = None
    ) -> None:
        super().__init__()
        branch_channels = branch_channels or max(channels // len(bins), 1)
        self.bins = tuple(bins)
        self.out_channels = channels + len(self.bins) * branch_channels
        self.branches = nn.ModuleList(conv_bn_relu(channels, branch_channels) for _ in self.bins)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for index, branch in enumerate(self.branches):
            pooled = branch(adaptive_avg_pool2d(x, self.bins[index]))  # (B, branch_channels, b, b)
            maps.append(F.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False))
        return torch.cat(maps, dim=1)
