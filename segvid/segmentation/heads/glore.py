"""GloRe head: one global reasoning unit inside the common context frame.

Paper: Chen et al., "Graph-Based Global Reasoning Networks", CVPR 2019, https://arxiv.org/abs/1811.12814
Its segmentation code is not in its repository: this is the frame of the other blocks here.
"""

from collections.abc import Sequence
from typing import Literal

from segvid.attention.context.glore import GlobalReasoning
from segvid.segmentation.heads.base import ContextHead, default_channels


class GloReHead(ContextHead):
    """conv3x3, global reasoning unit, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        nodes: number of nodes; channels / 4 when None.
        states: channels of a node; 2 * nodes when None.
        graph: which parts of the graph step.
        tied: the reprojection is the projection.
        normalize: mean over the positions instead of the sum.
        softmax_projection: softmax over the nodes.
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
        nodes: int | None = None,
        states: int | None = None,
        graph: Literal["full", "nodes", "states", "none"] = "full",
        tied: bool = True,
        normalize: bool = True,
        softmax_projection: bool = False,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = GlobalReasoning(
            width,
            nodes=nodes,
            states=states,
            graph=graph,
            tied=tied,
            normalize=normalize,
            softmax_projection=softmax_projection,
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
