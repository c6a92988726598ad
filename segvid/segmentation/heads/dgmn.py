"""DGMN head: dynamic graph message passing inside the common context frame.

Paper: Zhang et al., "Dynamic Graph Message Passing Networks", CVPR 2020, https://arxiv.org/abs/1908.06955
The paper has no segmentation head (or none was published): this is the frame of the other blocks here.
"""

from collections.abc import Sequence

from segvid.attention.context.dgmn import DynamicGraphMessagePassing
from segvid.segmentation.heads.base import ContextHead, default_channels


class DGMNHead(ContextHead):
    """conv3x3, messages from sampled neighbours, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        dilations: distances of the nine sampled neighbours, one set each.
        groups: channel groups with filters of their own.
        dynamic_sampling: let each position move its neighbours; False is the static control.
        dynamic_weights: filters predicted from the neighbours.
        dynamic_affinity: affinities predicted from the neighbours.
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
        dilations: Sequence[int] = (1, 4, 8, 12),
        groups: int = 1,
        dynamic_sampling: bool = True,
        dynamic_weights: bool = True,
        dynamic_affinity: bool = True,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = DynamicGraphMessagePassing(
            width,
            dilations=dilations,
            groups=groups,
            dynamic_sampling=dynamic_sampling,
            dynamic_weights=dynamic_weights,
            dynamic_affinity=dynamic_affinity,
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
