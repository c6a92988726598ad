"""GCNet head: one global context block inside the common context frame.

Paper: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW 2019,
https://arxiv.org/abs/1904.11492. The frame is that of mmsegmentation.
"""

from collections.abc import Sequence

from segvid.attention.context.global_context import GlobalContext
from segvid.segmentation.heads.base import ContextHead, default_channels


class GCNetHead(ContextHead):
    """conv3x3, global context block, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        reduction: the bottleneck has channels / reduction.
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
        reduction: int = 4,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = GlobalContext(width, reduction=reduction)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
