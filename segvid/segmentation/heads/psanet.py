"""PSANet head: point-wise spatial attention beside the backbone's map.

Paper: Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV 2018, section 3.3
Official code consulted: hszhao/semseg.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from segvid.attention.context.psa import PointwiseSpatialAttention
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class PSANetHead(SegmentationHead):
    """Point-wise spatial attention, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head and of the attention; in_channels / 4, at least 64, when None.
        mask_size: height and width of the predicted attention map; 2 h - 1 covers a shrunk map of height h.
        direction: collect, distribute or both.
        compact: predict absolute positions (one image size only) instead of offsets.
        shrink: attention works on the map reduced by this factor.
        normalization: divisor of the average; the number of mask elements when None.
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
        mask_size: tuple[int, int] = (97, 97),
        direction: Literal["both", "collect", "distribute"] = "both",
        compact: bool = False,
        shrink: int = 2,
        normalization: float | None = 1.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.attention = PointwiseSpatialAttention(
            in_channels[-1],
            inner_channels=width,
            mask_size=mask_size,
            direction=direction,
            compact=compact,
            shrink=shrink,
            normalization=normalization,
        )
        self.bottleneck = conv_bn_relu(2 * in_channels[-1], width, 3)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        logits: Tensor = self.classifier(self.bottleneck(torch.cat([x, self.attention(x)], dim=1)))
        return logits
