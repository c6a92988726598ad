"""PSPNet head: pyramid pooling, fusion, classifier.

Paper: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, section 3, https://arxiv.org/abs/1612.01105
Official code consulted: hszhao/semseg.
"""

from collections.abc import Sequence

from torch import Tensor

from segvid.attention.context.pyramid_pooling import PyramidPooling
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class PSPNetHead(SegmentationHead):
    """Pyramid pooling of the last map, 3x3 convolution, classifier.

    In training the 1x1 bin gives one value a sample: its batch norm needs at least two samples.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head and of every pooled branch; in_channels / 4, at least 64, when None.
        bins: cells of the pooled maps.
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
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.pyramid_pooling = PyramidPooling(in_channels[-1], bins=bins, branch_channels=width)
        self.bottleneck = conv_bn_relu(self.pyramid_pooling.out_channels, width, 3)
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.bottleneck(self.pyramid_pooling(features[-1])))
        return logits
