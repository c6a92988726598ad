"""EMANet head: expectation-maximisation attention between two convolutions.

Paper: Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, section 3.4,
https://arxiv.org/abs/1907.13426
Official code consulted: XiaLiPKU/EMANet. (mmsegmentation's EMAHead adds a concatenation with the input; the paper has
none and neither has this.)
"""

from collections.abc import Sequence

from torch import Tensor

from segvid.attention.context.expectation_maximization import ExpectationMaximizationAttention
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class EMANetHead(SegmentationHead):
    """conv3x3, EM attention unit, conv3x3 to half the width, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the attention unit; in_channels / 4, at least 64, when None.
        bases: number of bases K.
        iterations: EM steps T.
        momentum: how much of the old bases is kept at each training step.
        em_grad: let gradients flow through EM.
        learned_bases: learn the starting bases by gradient; needs `em_grad`.
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
        bases: int = 64,
        iterations: int = 3,
        momentum: float = 0.9,
        em_grad: bool = False,
        learned_bases: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        width = default_channels(channels, in_channels[-1])
        self.in_conv = conv_bn_relu(in_channels[-1], width, 3)
        self.attention = ExpectationMaximizationAttention(
            width,
            bases=bases,
            iterations=iterations,
            momentum=momentum,
            em_grad=em_grad,
            learned_bases=learned_bases,
        )
        self.out_conv = conv_bn_relu(width, max(width // 2, 1), 3)
        self.classifier = classifier(max(width // 2, 1), num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(self.out_conv(self.attention(self.in_conv(features[-1]))))
        return logits
