"""CCNet head: recurrent criss-cross attention inside the common context frame.

Paper: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, section 3.1,
https://arxiv.org/abs/1811.11721
Official code consulted: speedinghzl/CCNet. Deliberate: ReLU where it has leaky ReLU(0.01) (in-place ABN).
"""

from collections.abc import Sequence

from segvid.attention.context.criss_cross import CrissCrossAttention
from segvid.segmentation.heads.base import ContextHead, default_channels


class CCNetHead(ContextHead):
    """conv3x3, criss-cross attention applied `recurrence` times, conv3x3, concatenation, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        recurrence: applications of the module, with shared weights; two reach every position.
        reduction: query and key have channels / reduction channels.
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
        recurrence: int = 2,
        reduction: int = 8,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = CrissCrossAttention(width, recurrence=recurrence, reduction=reduction)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
