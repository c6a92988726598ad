"""What every head has in common: the contract, the classifier, and the frame that most context papers share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segvid.attention.layers import conv_bn_relu
from segvid.errors import UserError


class SegmentationHead(nn.Module):
    """Feature maps to logits. `forward` gives one map, in training and in evaluation alike.

    A paper that supervises more maps overrides `supervised`, which the task calls in training, and sets
    `loss_weights` to one weight for each of them. A head knows no loss, device, logger or label.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.

    Shape:
        features: list of (B, in_channels[i], H_i, W_i) -> logits (B, num_classes, H_j, W_j) at the size of one of them.
    """

    loss_weights: tuple[float, ...] = (1.0,)
    __jit_ignored_attributes__ = ["loss_weights"]  # noqa: RUF012 - the name TorchScript looks for

    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        if isinstance(in_channels, int):
            raise UserError(
                f"in_channels is {in_channels}; {type(self).__name__} takes the channels of every map of the backbone, "
                f"[{in_channels}] for a single one."
            )
        if not in_channels:
            raise ValueError(f"{type(self).__name__} needs the channels of at least one feature map.")
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a head needs at least one class.")
        self.num_classes = num_classes

    def __call__(self, features: list[Tensor]) -> Any:
        """Logits at feature resolution; one tensor is an error, whose samples would be taken for maps."""
        if isinstance(features, Tensor):
            raise UserError(
                f"{type(self).__name__} takes a list of feature maps, finest first, and not one tensor: [x]."
            )
        return super().__call__(features)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits at feature resolution."""
        raise NotImplementedError

    @torch.jit.unused
    def supervised(self, features: list[Tensor]) -> list[Tensor]:
        """Every map that the paper supervises; the first is what `forward` gives."""
        return [self(features)]


def classifier(channels: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Channel dropout and a 1x1 convolution, N(0, 0.01) as DeepLab and mmsegmentation initialise it."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return nn.Sequential(nn.Dropout2d(dropout), conv)


def default_channels(channels: int | None, in_channels: int, division: int = 4) -> int:
    """The head's width: as asked, or the papers' in_channels / 4 (512 on the 2048 channels of a ResNet-50).

    On a small backbone not below 64 (or its own width): attention on a dozen channels does not learn.
    """
    if channels is not None and channels < 1:
        raise ValueError(f"channels is {channels}; a head needs at least one (head.init_args.channels).")
    return max(in_channels // division, min(in_channels, 64)) if channels is None else channels


class ContextHead(SegmentationHead):
    """conv3x3, context, conv3x3, concatenation with the input, conv3x3, classifier.

    The frame of CCNet's head, which mmsegmentation puts around Non-local and other blocks too.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        num_classes: channels of the logits.
        context: a mechanism of `channels` channels that keeps the shape.
        channels: width of the head.
        dropout: channel dropout before the classifier.
        in_index: which of the backbone's maps the head reads.

    Shape:
        list of (B, C_i, H_i, W_i) -> (B, num_classes, H_j, W_j) with j = in_index.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        context: nn.Module,
        channels: int,
        dropout: float = 0.1,
        in_index: int = -1,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.in_index = in_index
        self.in_conv = conv_bn_relu(in_channels[in_index], channels, 3)
        self.context = context
        self.out_conv = conv_bn_relu(channels, channels, 3)
        self.bottleneck = conv_bn_relu(in_channels[in_index] + channels, channels, 3)
        self.classifier = classifier(channels, num_classes, dropout)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[self.in_index]
        y = self.out_conv(self.context(self.in_conv(x)))
        logits: Tensor = self.classifier(self.bottleneck(torch.cat([x, y], dim=1)))
        return logits
