"""Bilateral filter and mean shift as attention: weights fall with the distance of features and of positions.

Papers: Tomasi, Manduchi, "Bilateral Filtering for Gray and Color Images", ICCV 1998; Comaniciu, Meer, "Mean Shift: A
Robust Approach Toward Feature Space Analysis", TPAMI 2002. Over the whole image one step is a Gaussian non-local
block that knows positions; on features of equal length the range term alone is softmax attention.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.context.local_relation import paste_window
from segvid.attention.functional import (
    matmul_float32,
    position_index,
    shifted,
    softmax_attention,
    summed_product,
    window_sum,
)
from segvid.attention.layers import zero_norm


class BilateralFilter(nn.Module):
    """`BN(W y) + x`, y after T steps of `y_i = sum_j w_ij f_j / sum_j w_ij`, with two learned bandwidths.

    `w_ij = exp(-|y_i - f_j|^2 / (2 sr^2) - |p_i - p_j|^2 / (2 ss^2))`; p are pixel centres over the longer side.

    Args:
        channels: C of the input.
        window: side of the window, odd; the whole image when None.
        iterations: T; 1 is the bilateral filter.
        blurring: True replaces the data f by the result after each step (blurring mean shift); False keeps the data
            and moves the queries alone (mean shift).

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, window: int | None = None, iterations: int = 1, blurring: bool = True) -> None:
        super().__init__()
        if window is not None and window % 2 == 0:
            raise ValueError(f"window is {window}; a window with a centre has an odd side.")
        self.window = window or 0  # 0: the whole image
        self.iterations = iterations
        self.blurring = blurring
        # softplus of these: sqrt(C), the distance of features one apart in every channel, and a quarter of the image.
        self.range_bandwidth = nn.Parameter(inverse_softplus(channels**0.5))
        self.space_bandwidth = nn.Parameter(inverse_softplus(0.25))
        self.out = nn.Conv1d(channels, channels, 1, bias=False)
        self.norm = zero_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for _ in range(self.iterations):
            data = y if self.blurring else x
            y = self.window_step(y, data) if self.window > 0 else self.step(y, data)
        z: Tensor = self.norm(self.out(y.flatten(2))).reshape(x.shape)
        return z + x

    def step(self, y: Tensor, data: Tensor) -> Tensor:
        """One step over the whole image, (B, C, H, W) twice -> (B, C, H, W)."""
        query, key = self.embedded(y, data)
        value = data.flatten(2).transpose(1, 2).to(query.dtype)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            average = softmax_attention(query, key, value)
        else:  # exponents are small differences of large products: not in half precision (matmul_float32 says the rest)
            with torch.autocast(data.device.type, enabled=False):
                average = softmax_attention(query, key, value)
        return average.transpose(1, 2).reshape(data.shape).to(data.dtype)

    def embedded(self, y: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors whose products are the exponents, up to a term of the query alone: (B, N, C + 3) each.

        -|a - b|^2 / 2 = a . b - |b|^2 / 2 - |a|^2 / 2, and the last cancels in the softmax.
        """
        if data.dtype != torch.float64:  # squares of many channels: too large for half precision
            y, data = y.float(), data.float()
        places = self.places(data)
        points = torch.cat([data.flatten(2) / F.softplus(self.range_bandwidth), places], dim=1)
        queries = torch.cat([y.flatten(2) / F.softplus(self.range_bandwidth), places], dim=1)  # (B, C + 2, N)
        length = -0.5 * points.square().sum(dim=1, keepdim=True)
        key = torch.cat([points, length], dim=1)
        query = torch.cat([queries, torch.ones_like(length)], dim=1)
        return query.transpose(1, 2), key.transpose(1, 2)

    def places(self, x: Tensor) -> Tensor:
        """Row and column of each position in units of the spatial bandwidth, (B, 2, N)."""
        height, width = x.shape[2], x.shape[3]
        rows = torch.arange(height, device=x.device, dtype=x.dtype).unsqueeze(1).expand(height, width)
        columns = torch.arange(width, device=x.device, dtype=x.dtype).unsqueeze(0).expand(height, width)
        places = torch.stack([rows, columns]).flatten(1)
        places = places / (places.max() + 1) / F.softplus(self.space_bandwidth)  # the longer side, as a tensor
        return places.unsqueeze(0).expand(x.shape[0], -1, -1)

    def window_step(self, y: Tensor, data: Tensor) -> Tensor:
        """One step inside the window, (B, C, H, W) twice -> (B, C, H, W)."""
        weights = self.window_weights(y, data).to(data.dtype)
        return window_sum(weights[:, None, :, None], data, self.window).reshape(data.shape)

    def window_weights(self, y: Tensor, data: Tensor) -> Tensor:
        """The weight of each place of the window for each position, (B, window^2, H, W)."""
        if data.dtype != torch.float64:  # as in `embedded`
            y, data = y.float(), data.float()
        reach = self.window // 2
        longer = (
            torch.arange(data.shape[2], device=data.device)
            .max()
            .maximum(torch.arange(data.shape[3], device=data.device).max())
        )
        places = torch.arange(-reach, reach + 1, device=data.device, dtype=data.dtype) / (longer + 1)
        space = (places.unsqueeze(1) ** 2 + places.unsqueeze(0) ** 2).reshape(1, -1, 1, 1)
        distances = []
        for moved in shifted(data, self.window):
            difference = y - moved
            distances.append(summed_product(difference, difference, 1))
        energy = -0.5 * torch.stack(distances, dim=1) / F.softplus(self.range_bandwidth) ** 2
        energy = energy - 0.5 * space / F.softplus(self.space_bandwidth) ** 2
        inside = torch.stack(shifted(torch.ones_like(data[:1, :1]), self.window), dim=2)[:, 0]
        return torch.softmax(energy.masked_fill(inside == 0, float("-inf")), dim=1)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions in the first step for the one at `position`, (B, H, W)."""
        index = position_index(x.shape[2:], position)
        if self.window > 0:
            weights = self.window_weights(x, x)[:, :, position[0], position[1]]
            return paste_window(weights, self.window, position, x)
        query, key = self.embedded(x, x)
        energy = matmul_float32(query[:, index : index + 1], key.transpose(1, 2))
        return torch.softmax(energy, dim=2).reshape(-1, *x.shape[2:])


def inverse_softplus(value: float) -> Tensor:
    """The number whose softplus is `value`."""
    return torch.tensor(value).expm1().log()
