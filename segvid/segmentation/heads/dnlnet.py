"""DNLNet head: one disentangled non-local block inside the common context frame.

Paper: Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020, https://arxiv.org/abs/2006.06668
Official code consulted: yinmh17/DNL-Semantic-Segmentation.
"""

from collections.abc import Sequence

from segvid.attention.context.disentangled import DisentangledNonLocal
from segvid.segmentation.heads.base import ContextHead, default_channels


class DNLNetHead(ContextHead):
    """conv3x3, disentangled non-local block, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        inner_channels: channels of query and key; channels / 2 when None.
        temperature: of the pairwise softmax; 1 as released, mmsegmentation uses 0.05.
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
        temperature: float = 1.0,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = DisentangledNonLocal(width, inner_channels=inner_channels, temperature=temperature)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
