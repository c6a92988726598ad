"""DeepLabV3 and DeepLabV3+ heads: atrous spatial pyramid pooling, with and without a decoder.

Papers: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3,
https://arxiv.org/abs/1706.05587; Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018, section 3.1, https://arxiv.org/abs/1802.02611
Official code consulted: tensorflow/models research/deeplab. Deliberate: bilinear upsampling with align_corners=False.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.context.aspp import ASPP
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class DeepLabV3Head(SegmentationHead):
    """ASPP on the last map, classifier.

    In training the image pooling gives one value a sample: its batch norm needs at least two samples.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: channels of every ASPP branch; in_channels / 8, at least 64, when None (256 on 2048).
        rates: dilation rates; (12, 24, 36) suits output stride 8, (6, 12, 18) output stride 16.
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
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1], division=8)
        self.aspp = ASPP(in_channels[-1], out_channels=width, rates=rates)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.aspp(features[-1]))
        return logits


class DeepLabV3PlusHead(SegmentationHead):
    """ASPP on the last map, upsampled and refined with the first: 1x1 to 48 channels, concatenation, two 3x3.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: channels of ASPP and decoder; in_channels / 8, at least 64, when None (256 on 2048).
        low_channels: channels that the first map is reduced to.
        rates: dilation rates; (12, 24, 36) suits output stride 8, (6, 12, 18) output stride 16.
        dropout: channel dropout before the classifier.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_first, W_first).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int | None = None,
        low_channels: int = 48,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1], division=8)
        self.aspp = ASPP(in_channels[-1], out_channels=width, rates=rates)
        self.low = conv_bn_relu(in_channels[0], low_channels)
        self.decoder = nn.Sequential(conv_bn_relu(width + low_channels, width, 3), conv_bn_relu(width, width, 3))
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.low(features[0])  # (B, low_channels, H_first, W_first)
        high = F.interpolate(self.aspp(features[-1]), size=low.shape[2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(self.decoder(torch.cat([high, low], dim=1)))
        return logits
