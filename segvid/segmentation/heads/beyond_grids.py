"""Beyond Grids head: graph convolution units inside the common context frame.

Paper: Li, Gupta, "Beyond Grids: Learning Graph Representations for Visual Recognition", NeurIPS 2018
No public code: this is the frame of the other blocks here.
"""

from collections.abc import Sequence

from segvid.attention.context.gcu import GraphConvolutionUnits
from segvid.segmentation.heads.base import ContextHead, default_channels


class BeyondGridsHead(ContextHead):
    """conv3x3, graphs of several sizes, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        graphs: nodes of each graph.
        graph_channels: channels that each graph contributes; channels / 2 when None.
        graph: False leaves the graph step out.
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
        graphs: Sequence[int] = (2, 4, 8, 32),
        graph_channels: int | None = None,
        graph: bool = True,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = GraphConvolutionUnits(width, graphs=graphs, graph_channels=graph_channels, graph=graph)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
