"""CGNL head: the compact generalised non-local block inside the common context frame.

Paper: Yue et al., "Compact Generalized Non-local Network", NeurIPS 2018, https://arxiv.org/abs/1810.13125
The paper has no segmentation head (or none was published): this is the frame of the other blocks here.
"""

from collections.abc import Sequence
from typing import Literal

from segvid.attention.context.cgnl import CompactGeneralizedNonLocal
from segvid.segmentation.heads.base import ContextHead, default_channels


class CGNLHead(ContextHead):
    """conv3x3, compact generalised non-local block, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        groups: channel groups, each with an affinity of its own.
        kernel: dot product, Gaussian by Taylor series, or the sign of the dot product.
        order: highest power of the Taylor series.
        gamma: inverse width of the Gaussian.
        norm: norm behind the block.
        scale: divide the affinity by the root of the number of its terms.
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
        groups: int = 8,
        kernel: Literal["dot", "rbf", "sign"] = "dot",
        order: int = 3,
        gamma: float = 1e-4,
        norm: Literal["group", "batch", "none"] = "group",
        scale: bool = False,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = CompactGeneralizedNonLocal(
            width, groups=groups, kernel=kernel, order=order, gamma=gamma, norm=norm, scale=scale
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
