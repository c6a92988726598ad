"""SGR head: one symbolic graph reasoning layer inside the common context frame.

Paper: Liang et al., "Symbolic Graph Reasoning Meets Convolutions", NeurIPS 2018
No official code: this is the frame of the other blocks here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from segvid.attention.context.sgr import SymbolicGraphReasoning
from segvid.segmentation.heads.base import ContextHead, default_channels


class SGRHead(ContextHead):
    """conv3x3, symbolic graph reasoning, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        nodes: number of nodes; of the files, else one for each class.
        adjacency: file of the graph (.csv or .pt), for instance how often classes occur together.
        embeddings: file of the nodes' word embeddings (.csv or .pt); one-hot when None.
        node_channels: channels of a node; channels / 2 when None.
        mapping: published (the same for all positions) or bilinear (content decides).
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
        adjacency: str | Path | None = None,
        embeddings: str | Path | None = None,
        node_channels: int | None = None,
        mapping: Literal["published", "bilinear"] = "published",
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        if nodes is None and adjacency is None and embeddings is None:
            nodes = num_classes
        context = SymbolicGraphReasoning(
            width, nodes=nodes, adjacency=adjacency, embeddings=embeddings, node_channels=node_channels, mapping=mapping
        )
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
