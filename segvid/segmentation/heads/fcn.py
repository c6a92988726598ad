"""FCN head: plain convolutions, no context. The baseline of every comparison, and the auxiliary head.

Paper: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
https://arxiv.org/abs/1411.4038. This is the dilated form that the context papers compare with (mmsegmentation's
FCNHead), so that a context head differs from it by its context alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class FCNHead(SegmentationHead):
    """`num_convs` 3x3 convolutions, a further one on the concatenation with the input, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        num_convs: 3x3 convolutions before the concatenation.
        concat_input: concatenate the input and fuse with one more 3x3 convolution.
        dropout: channel dropout before the classifier.
        in_index: which of the backbone's maps the head reads.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_j, W_j) with j = in_index.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int | None = None,
        num_convs: int = 2,
        concat_input: bool = True,
        dropout: float = 0.1,
        in_index: int = -1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if num_convs < 1:
            raise ValueError(f"num_convs is {num_convs}; FCNHead needs at least one convolution.")
        self.in_index = in_index
        self.concat_input = concat_input
        inputs = in_channels[in_index]
        width = default_channels(channels, inputs)
        self.convs = nn.Sequential(*(conv_bn_relu(width if i else inputs, width, 3) for i in range(num_convs)))
        self.bottleneck = conv_bn_relu(inputs + width, width, 3) if concat_input else nn.Identity()
        self.classifier = classifier(width, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[self.in_index]
        y = self.convs(x)
        if self.concat_input:
            y = self.bottleneck(torch.cat([x, y], dim=1))
        logits: Tensor = self.classifier(y)
        return logits
