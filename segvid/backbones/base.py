"""What every backbone has in common: channels and strides that are measured, not believed."""

import torch
from torch import Tensor, nn

from segvid.errors import UserError
from segvid.recorded import Recorded


class Backbone(Recorded, nn.Module):
    """Image to a list of feature maps, finest first. A subclass calls `measure` at the end of its `__init__`.

    Attributes:
        channels: channels of every map.
        strides: image size over map size of every map.

    Shape:
        (B, in_channels, H, W) -> list of (B, channels[i], H / strides[i], W / strides[i]). What is no whole number is
        rounded up by ResNets and `ConvNet`, rounded down by some others (see `SMPEncoder`). Heads take both.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    __jit_ignored_attributes__ = ["channels", "strides", "made_with"]  # noqa: RUF012 - the name TorchScript looks for

    def forward(self, image: Tensor) -> list[Tensor]:
        """The feature maps, finest first."""
        raise NotImplementedError

    def measure(self, in_channels: int = 3, output_stride: int | None = None) -> None:
        """Sets `channels` and `strides` from a forward of an empty 64 x 64 image.

        Raises:
            UserError: the forward gives no list of maps, or the last one has not the `output_stride` asked for.
        """
        training = self.training
        self.eval()
        with torch.no_grad():
            maps = self(torch.zeros(1, in_channels, 64, 64))
        self.train(training)
        if not isinstance(maps, list | tuple) or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
            raise UserError(
                f"{type(self).__name__}.forward gives no list of maps (B, C, H, W), finest first: for a single map "
                "write return [x]."
            )
        self.channels = tuple(int(m.shape[1]) for m in maps)
        self.strides = tuple(64 // int(m.shape[2]) for m in maps)
        if output_stride is not None and self.strides[-1] != output_stride:
            raise UserError(
                f"{type(self).__name__} was asked for output_stride {output_stride}, but its last map has stride "
                f"{self.strides[-1]}. Choose an encoder that can be dilated, or output_stride {self.strides[-1]}."
            )
