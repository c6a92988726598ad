"""CARAFE: upsampling whose kernel is predicted from the content, position by position.

Paper: Wang, Chen, Xu, Liu, Loy, Lin, "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, section 3,
https://arxiv.org/abs/1905.02188
Official code consulted: open-mmlab/mmcv (ops/carafe.py and its naive kernel). In plain torch: the window is visited
place by place at low resolution, nothing is unfolded.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import window_sum


class CARAFE(nn.Module):
    """`y(s i + a, s j + b) = sum_k softmax_k(W(i, j)_(a, b)) x((i, j) + k)` over a window, W predicted from x.

    Outside the image x is 0 and the weights are not normalised again: the border is darker, as released.

    Args:
        channels: C of the input.
        scale: s, how many times larger the result is.
        kernel_size: side of the window, odd.
        encoder_kernel: kernel of the convolution that predicts the weights.
        compressed_channels: channels that it reads.
        groups: channel groups with weights of their own.

    Shape:
        (B, C, H, W) -> (B, C, s H, s W).
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: int = 2,
        kernel_size: int = 5,
        encoder_kernel: int = 3,
        compressed_channels: int = 64,
        groups: int = 1,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0 or encoder_kernel % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} and encoder_kernel {encoder_kernel} must be odd.")
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups.")
        self.scale = scale
        self.kernel_size = kernel_size
        self.groups = groups
        self.area = kernel_size**2
        self.subpixels = scale**2
        self.compress = nn.Conv2d(channels, compressed_channels, 1)
        predicted = scale**2 * kernel_size**2 * groups
        self.encode = nn.Conv2d(compressed_channels, predicted, encoder_kernel, padding=encoder_kernel // 2)
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=0.001)
        for conv in (self.compress, self.encode):
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)  # (B, G, window^2, s^2, H, W)
        y = window_sum(weights, x, self.kernel_size)  # (B, G, c, s^2, H, W)
        return F.pixel_shuffle(y.flatten(1, 3), self.scale)

    def weights(self, x: Tensor) -> Tensor:
        """The kernel of each of the s^2 new pixels of each position, summing to 1, (B, G, window^2, s^2, H, W)."""
        predicted = self.encode(self.compress(x))
        # Channel order ((g, k), s^2): the same as pixel shuffle followed by a softmax over k.
        kernels = predicted.unflatten(1, (self.groups, self.area, self.subpixels))
        return torch.softmax(kernels, dim=2)
