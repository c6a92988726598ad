"""Self-attention head: one block with a choice of attention space inside the common context frame.

For the sources of the spaces see `GridSelfAttention`; global is Wang et al., "Non-local Neural Networks", CVPR 2018.
"""

from collections.abc import Sequence
from typing import Literal

from segvid.attention.context.self_attention import GridSelfAttention
from segvid.segmentation.heads.base import ContextHead, default_channels


class SelfAttentionHead(ContextHead):
    """conv3x3, self-attention, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        space: what a position looks at.
        window: side of the local window, odd.
        stride: distance of the atrous positions.
        inner_channels: channels of query, key and value; channels / 2 when None.
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
        space: Literal["global", "local", "atrous", "sparse", "row", "column", "row_column"] = "global",
        window: int = 7,
        stride: int = 8,
        inner_channels: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = GridSelfAttention(width, space=space, window=window, stride=stride, inner_channels=inner_channels)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
