"""ISANet head: interlaced sparse self-attention beside its input.

Paper: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", 2019, section 3,
https://arxiv.org/abs/1907.12273
Official code consulted: openseg-group/openseg.pytorch.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segvid.attention.context.interlaced import InterlacedAttention
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class ISANetHead(SegmentationHead):
    """conv3x3, long-range and short-range attention, concatenation with their input, conv1x1, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        block: height and width of the short range's blocks, the distance of the long range's positions.
        key_channels: channels of query and key; channels / 2 when None.
        value_channels: channels of the values; channels when None.
        order: long then short as in the paper, the reverse, or one of the two alone.
        dropout: channel dropout before the classifier.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_last, W_last).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int | None = None,
        block: tuple[int, int] = (8, 8),
        key_channels: int | None = None,
        value_channels: int | None = None,
        order: Literal["long_short", "short_long", "long", "short"] = "long_short",
        dropout: float = 0.05,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.in_conv = conv_bn_relu(in_channels[-1], width, 3)
        self.context = InterlacedAttention(
            width, block=block, key_channels=key_channels, value_channels=value_channels, order=order
        )
        self.bottleneck = conv_bn_relu(2 * width, width)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.in_conv(features[-1])
        logits: Tensor = self.classifier(self.bottleneck(torch.cat([x, self.context(x)], dim=1)))
        return logits
