"""Atrous spatial pyramid pooling: convolutions at several dilation rates beside a global average.

Paper: Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation" (DeepLabV3),
2017, section 3.3, https://arxiv.org/abs/1706.05587
Official code consulted: tensorflow/models research/deeplab.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.layers import conv_bn_relu


class ASPP(nn.Module):
    """`ReLU(BN(W concat(global average, 1x1, 3x3 at each rate)))`, every branch a convolution, batch norm and ReLU.

    Args:
        channels: C of the input.
        out_channels: channels of every branch and of the output.
        rates: dilations; the paper's (6, 12, 18) at output stride 16, doubled at output stride 8 (the default here).

    Shape:
        (B, C, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, channels: int, *, out_channels: int = 256, rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.image_pool = conv_bn_relu(channels, out_channels)
        self.branches = nn.ModuleList([conv_bn_relu(channels, out_channels)])
        self.branches.extend(conv_bn_relu(channels, out_channels, 3, dilation=rate) for rate in rates)
        self.project = conv_bn_relu((2 + len(rates)) * out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.image_pool(x.mean(dim=(2, 3), keepdim=True))  # (B, out_channels, 1, 1)
        maps = [pooled.expand(-1, -1, x.shape[2], x.shape[3])]
        for branch in self.branches:
            maps.append(branch(x))
        out: Tensor = self.project(torch.cat(maps, dim=1))
        return out
