"""Non-local head: one non-local block inside the common context frame.

Paper: Wang et al., "Non-local Neural Networks", CVPR 2018, https://arxiv.org/abs/1711.07971. The paper has no
segmentation head; this is the frame that mmsegmentation and the later papers use for it.
"""

from collections.abc import Sequence
from typing import Literal

from segvid.attention.context.non_local import NonLocal
from segvid.segmentation.heads.base import ContextHead, default_channels


class NonLocalHead(ContextHead):
    """conv3x3, non-local block, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        inner_channels: channels of query, key and value; channels / 2 when None.
        affinity: how two positions are compared, see `NonLocal`.
        scale: divide the dot product by sqrt(inner_channels); None as the official code.
        shared_query_key: one projection for query and key.
        value_projection: False averages the features themselves.
        pool: sub-sample keys and values by 2, before or after their projections.
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
        affinity: Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"] = "embedded_gaussian",
        scale: bool | None = None,
        shared_query_key: bool = False,
        value_projection: bool = True,
        pool: Literal["none", "first", "after"] = "none",
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = NonLocal(
            width,
            inner_channels=inner_channels,
            affinity=affinity,
            scale=scale,
            shared_query_key=shared_query_key,
            value_projection=value_projection,
            pool=pool,
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
