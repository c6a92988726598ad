"""DeepLabV3 and DeepLabV3+ heads: atrous spatial pyramid pooling, with and without a decoder.

Papers: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, section 3.3,
https://arxiv.org/abs/1706.05587; Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018, section 3.1, https://arxiv.org/abs/1802.02611
Official code consulted: tensorflow/models research/deeplab. Deliberate: bilinear upsampling with align_corners=False.
Not here: the depthwise separable 3x3 convolutions that the second paper puts into ASPP and decoder; both heads have
dense ones, with more parameters and operations than the published DeepLabV3+.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.context.aspp import ASPP
from segvid.attention.context.carafe import CARAFE
from segvid.attention.functional import crop
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

    All 3x3 are dense, where the paper's are depthwise separable. With `context`, conv3x3, the mechanism and conv1x1
    stand in the place of ASPP.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: channels of ASPP and decoder; in_channels / 8, at least 64, when None (256 on 2048).
        low_channels: channels that the first map is reduced to.
        rates: dilation rates of ASPP; (12, 24, 36) suits output stride 8, (6, 12, 18) output stride 16.
        context: makes any mechanism of `segvid.attention.context` from its number of channels; ASPP when None.
        upsampler: "bilinear", or "carafe" for content-aware upsampling of the context to the first map.
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
        context: Callable[[int], nn.Module] | None = None,
        upsampler: Literal["bilinear", "carafe"] = "bilinear",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if upsampler not in ("bilinear", "carafe"):
            raise ValueError(f"upsampler is {upsampler!r}; use 'bilinear' or 'carafe'.")
        width = default_channels(channels, in_channels[-1], division=8)
        if context is None:
            self.context: nn.Module = ASPP(in_channels[-1], out_channels=width, rates=rates)
        else:
            mechanism = context(width)
            self.context = nn.Sequential(
                conv_bn_relu(in_channels[-1], width, 3),
                mechanism,
                conv_bn_relu(int(getattr(mechanism, "out_channels", width)), width),
            )
        # Output stride 8 to 4. CARAFE knows whole factors only.
        self.upsample: nn.Module = CARAFE(width, scale=2) if upsampler == "carafe" else nn.Identity()
        self.carafe = upsampler == "carafe"
        self.low = conv_bn_relu(in_channels[0], low_channels)
        self.decoder = nn.Sequential(conv_bn_relu(width + low_channels, width, 3), conv_bn_relu(width, width, 3))
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        low = self.low(features[0])  # (B, low_channels, H_first, W_first)
        high = self.context(features[-1])
        if self.carafe:
            # Of an odd number of rows the last is half a row of the coarser map: cut, or repeated where a backbone
            # rounds down.
            high = F.pad(self.upsample(high), (0, 1, 0, 1), mode="replicate")
            high = crop(high, 0, low.shape[2], 0, low.shape[3])
        else:
            high = F.interpolate(high, size=low.shape[2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.classifier(self.decoder(torch.cat([high, low], dim=1)))
        return logits
