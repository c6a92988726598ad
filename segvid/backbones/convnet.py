"""A small plain convolutional net whose receptive field is limited: made for diagnosis on a CPU, not for accuracy."""

from collections.abc import Sequence

from torch import Tensor, nn

from segvid.backbones.base import Backbone


class ConvNet(Backbone):
    """3x3 convolutions with batch norm and ReLU: the first two halve the size, the others keep it (stride 4).

    With four widths a position sees 23 x 23 pixels, so whatever a head knows of the rest of the image comes from the
    head's own context. A deep ResNet sees the whole of a small image by itself and hides the difference.

    Args:
        widths: channels of each convolution, at least three; the first two have strides 2 and 4.
        in_channels: channels of the image.

    Shape:
        (B, in_channels, H, W) -> list of len(widths) - 1 maps, all of stride 4.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64), in_channels: int = 3) -> None:
        super().__init__()
        if len(widths) < 3:
            raise ValueError(f"ConvNet needs at least three widths, got {list(widths)}.")
        inputs = (in_channels, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 3, stride=2 if index < 2 else 1, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for index, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.measure(in_channels, output_stride=4)

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[1:]
