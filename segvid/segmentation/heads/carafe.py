"""Any head with CARAFE in front of its classifier: finer logits from content-aware upsampling.

Paper: Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, https://arxiv.org/abs/1905.02188
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segvid.attention.context.carafe import CARAFE
from segvid.segmentation.heads.base import SegmentationHead
from segvid.segmentation.heads.fcn import FCNHead


class CARAFEHead(SegmentationHead):
    """The logits of `head`, its last features upsampled by CARAFE before they are classified.

    Further supervised maps of the head stay at its own size.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        head: makes the head from the first two arguments; any head here.
        scale: how many times finer the logits become.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, scale * H_j, scale * W_j), j the map of the head's logits.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        head: Callable[[Sequence[int], int], SegmentationHead] = FCNHead,
        scale: int = 2,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.head = head(in_channels, num_classes)
        self.loss_weights = self.head.loss_weights
        layers = list(self.head.classifier)  # type: ignore[arg-type]
        self.head.classifier = nn.Sequential(CARAFE(layers[-1].in_channels, scale=scale), *layers)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    @torch.jit.unused
    def supervised(self, features: list[Tensor]) -> list[Tensor]:
        """The maps that the head supervises."""
        return self.head.supervised(features)
