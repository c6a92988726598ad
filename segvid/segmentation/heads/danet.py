"""DANet head: position attention beside channel attention, three supervised maps.

Paper: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, sections 3.1 and 3.4,
https://arxiv.org/abs/1809.02983
Official code consulted: junfu1115/DANet.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segvid.attention.context.dual import ChannelAttention, PositionAttention
from segvid.attention.layers import conv_bn_relu
from segvid.segmentation.heads.base import SegmentationHead, classifier, default_channels


class DANetHead(SegmentationHead):
    """Two branches conv3x3, attention, conv3x3; the logits come from their sum.

    In training each branch is classified and supervised as well, all three maps with weight 1.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        channels: width of the branches; in_channels / 4, at least 64, when None.
        attention: "both", or "position" or "channel" alone (then one supervised map).
        reduction: query and key of the position attention have channels / reduction channels.
        channel_affinity: sign of the channel attention's affinity, "minus" as released or "plus" as in the paper.
        dropout: channel dropout before each classifier.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_last, W_last).
    """

    loss_weights = (1.0, 1.0, 1.0)

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int | None = None,
        attention: Literal["both", "position", "channel"] = "both",
        reduction: int = 8,
        channel_affinity: Literal["minus", "plus"] = "minus",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if attention not in ("both", "position", "channel"):
            raise ValueError(f"attention is {attention!r}; use 'both', 'position' or 'channel'.")
        inputs = in_channels[-1]
        width = default_channels(channels, inputs)
        # An absent branch is None: TorchScript then leaves its lines out.
        self.position: nn.Module | None = None
        self.channel: nn.Module | None = None
        if attention != "channel":
            self.position_in = conv_bn_relu(inputs, width, 3)
            self.position = PositionAttention(width, reduction=reduction)
            self.position_out = conv_bn_relu(width, width, 3)
        if attention != "position":
            self.channel_in = conv_bn_relu(inputs, width, 3)
            self.channel = ChannelAttention(width, affinity=channel_affinity)
            self.channel_out = conv_bn_relu(width, width, 3)
        if attention == "both":
            self.position_classifier = classifier(width, num_classes, dropout)
            self.channel_classifier = classifier(width, num_classes, dropout)
        else:
            self.loss_weights = (1.0,)  # type: ignore[assignment]
        self.classifier = classifier(width, num_classes, dropout)

    def branches(self, x: Tensor) -> list[Tensor]:
        """The position and the channel branch, as far as they exist, each (B, channels, H, W)."""
        maps = []
        if self.position is not None:
            maps.append(self.position_out(self.position(self.position_in(x))))
        if self.channel is not None:
            maps.append(self.channel_out(self.channel(self.channel_in(x))))
        return maps

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classifier(sum_maps(self.branches(features[-1])))
        return logits

    @torch.jit.unused
    def supervised(self, features: list[Tensor]) -> list[Tensor]:
        """Logits of the sum, of the position branch and of the channel branch; of one branch alone its logits."""
        maps = self.branches(features[-1])
        logits = [self.classifier(sum_maps(maps))]
        if len(maps) == 2:
            logits += [self.position_classifier(maps[0]), self.channel_classifier(maps[1])]
        return logits


def sum_maps(maps: list[Tensor]) -> Tensor:
    """The sum of one or two maps."""
    return maps[0] + maps[1] if len(maps) == 2 else maps[0]
