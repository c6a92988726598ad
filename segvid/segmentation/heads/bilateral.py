"""Bilateral head: a bilateral filter or mean shift of the features inside the common context frame.

Papers: Tomasi, Manduchi, "Bilateral Filtering for Gray and Color Images", ICCV 1998; Comaniciu, Meer, "Mean Shift",
TPAMI 2002. A control for what plain distances, without projections, can do.
"""

from collections.abc import Sequence

from segvid.attention.context.bilateral import BilateralFilter
from segvid.segmentation.heads.base import ContextHead, default_channels


class BilateralHead(ContextHead):
    """conv3x3, filter, conv3x3, concatenation with the input, conv3x3, classifier.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the head; in_channels / 4, at least 64, when None.
        window: side of the window, odd; the whole image when None.
        iterations: steps; 1 is the bilateral filter, more are mean shift.
        blurring: replace the data by the result after each step.
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
        window: int | None = None,
        iterations: int = 1,
        blurring: bool = True,
        dropout: float = 0.1,
    ) -> None:
        width = default_channels(channels, in_channels[-1])
        context = BilateralFilter(width, window=window, iterations=iterations, blurring=blurring)
        super().__init__(in_channels, num_classes, context=context, channels=width, dropout=dropout)
