"""ANN head: asymmetric fusion of the last two maps, then asymmetric pyramid attention.

Paper: Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019, section 3.4,
https://arxiv.org/abs/1908.07678
Official code consulted: MendelXu/ANN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segvid.attention.context.asymmetric import AsymmetricFusion, AsymmetricPyramidNonLocal
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class ANNHead(SegmentationHead):
    """AFNB of the last map with the one before, conv3x3, APNB, concatenation with its input, conv1x1, classifier.

    In training the 1x1 cells are pooled after the batch norm: a batch of one works.

    Args:
        in_channels: channels of the backbone's maps, finest first; at least two.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        inner_channels: channels of query, key and value in both; each its paper's when None.
        bins: cells along each axis of the pooled grids.
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
        inner_channels: int | None = None,
        bins: Sequence[int] = (1, 3, 6, 8),
        dropout: float = 0.05,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if len(in_channels) < 2:
            raise ValueError("ANNHead fuses the last two maps of the backbone, which gives only one.")
        width = default_channels(channels, in_channels[-1])
        self.fusion = AsymmetricFusion(in_channels[-1], in_channels[-2], inner_channels=inner_channels, bins=bins)
        self.in_conv = conv_bn_relu(in_channels[-1], width, 3)
        self.context = AsymmetricPyramidNonLocal(width, inner_channels=inner_channels, bins=bins)
        self.bottleneck = conv_bn_relu(2 * width, width)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.in_conv(self.fusion(features[-1], features[-2]))
        logits: Tensor = self.classifier(self.bottleneck(torch.cat([self.context(x), x], dim=1)))
        return logits
