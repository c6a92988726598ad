"""Local relation head: one local relation layer inside the common context frame.

Paper: Hu et al., "Local Relation Networks for Image Recognition", ICCV 2019, https://arxiv.org/abs/1904.11491
The paper has no segmentation head (or none was published): this is the frame of the other blocks here.
"""

from collections.abc import Sequence
from typing import Literal

from segvid.attention.context.local_relation import LocalRelation
from segvid.segmentation.heads.base import ContextHead, default_channels


class LocalRelationHead(ContextHead):
    """conv3x3, local relation layer, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        window: side of the window, odd.
        channels_per_group: channels that share one scalar query, key and geometry prior.
        composability: how query and key go together.
        geometry_prior: learn from the relative position too.
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
        window: int = 7,
        channels_per_group: int = 8,
        composability: Literal["squared_difference", "absolute_difference", "product"] = "squared_difference",
        geometry_prior: bool = True,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = LocalRelation(
            width,
            window=window,
            channels_per_group=channels_per_group,
            composability=composability,
            geometry_prior=geometry_prior,
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
