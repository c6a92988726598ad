"""LatentGNN head: latent graph kernels inside the common context frame.

Paper: Zhang et al., "LatentGNN: Learning Efficient Non-local Relations for Visual Recognition", ICML 2019,
https://arxiv.org/abs/1905.11634
The paper has no segmentation head (or none was published): this is the frame of the other blocks here.
"""

from collections.abc import Sequence

from segvid.attention.context.latent_gnn import LatentGNN
from segvid.segmentation.heads.base import ContextHead, default_channels


class LatentGNNHead(ContextHead):
    """conv3x3, latent graph kernels, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        latent: latent nodes of each kernel.
        reduction: the kernels work on channels / reduction.
        symmetric: one set of features and weights for both directions.
        passing: message passing between the latent nodes.
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
        latent: Sequence[int] = (100, 100),
        reduction: int = 4,
        symmetric: bool = False,
        passing: bool = True,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = LatentGNN(width, latent=latent, reduction=reduction, symmetric=symmetric, passing=passing)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
