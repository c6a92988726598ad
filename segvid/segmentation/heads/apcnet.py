"""APCNet head: adaptive context at several scales, fusion, classifier.

Paper: He et al., "Adaptive Pyramid Context Network for Semantic Segmentation", CVPR 2019, section 3
Official code consulted: Junjun2016/APCNet.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from segvid.attention.context.adaptive_context import AdaptivePyramidContext
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class APCNetHead(SegmentationHead):
    """Adaptive context of the last map at each scale, concatenation with it, conv3x3, classifier.

    In training scale 1 gives one value a sample: its batch norm needs at least two samples.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head and of every scale; in_channels / 4, at least 64, when None.
        scales: cells along each axis of the pooled grids.
        global_guidance: let the mean of the image take part in the affinities.
        affinity: "sigmoid" as published, or "softmax" over the cells.
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
        scales: Sequence[int] = (1, 2, 3, 6),
        global_guidance: bool = True,
        affinity: Literal["sigmoid", "softmax"] = "sigmoid",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.context = AdaptivePyramidContext(
            in_channels[-1], scales=scales, inner_channels=width, global_guidance=global_guidance, affinity=affinity
        )
        self.bottleneck = conv_bn_relu(self.context.out_channels, width, 3)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.bottleneck(self.context(features[-1])))
        return logits
