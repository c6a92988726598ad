"""A2-Net head: double attention inside the common context frame.

Paper: Chen et al., "A^2-Nets: Double Attention Networks", NeurIPS 2018, https://arxiv.org/abs/1810.11579
The paper has no segmentation head (or none was published): this is the frame of the other blocks here.
"""

from collections.abc import Sequence

from segvid.attention.context.double import DoubleAttention
from segvid.segmentation.heads.base import ContextHead, default_channels


class A2NetHead(ContextHead):
    """conv3x3, double attention, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        inner_channels: channels of a descriptor; channels / 4 when None.
        nodes: number of descriptors; channels / 4 when None.
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
        nodes: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = DoubleAttention(width, inner_channels=inner_channels, nodes=nodes)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
