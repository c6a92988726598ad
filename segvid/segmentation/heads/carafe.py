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
        kernel_size: side of the window, odd.
        encoder_kernel: kernel of the convolution that predicts the weights.
        compressed_channels: channels that it reads.
        groups: channel groups with weights of their own.

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
        kernel_size: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.head = head(in_channels, num_classes)
        self.loss_weights = self.head.loss_weights
        layers = list(self.head.classifier)  # type: ignore[arg-type]
        upsample = CARAFE(
            layers[-1].in_channels,
            scale=scale,
            kernel_size=kernel_size,
            encoder_kernel=encoder_kernel,
            compressed_channels=compressed_channels,
            groups=groups,
        )
        self.head.classifier = nn.Sequential(upsample, *layers)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(features)
        return logits

    @torch.jit.unused
    def supervised(self, features: list[Tensor]) -> list[Tensor]:
        """The maps that the head supervises."""
        return self.head.supervised(features)
