"""Layers from their definitions: convolution, batch norm, pooling, resizing."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Convolution = Sequence[Tensor]
Norm = Sequence[Tensor | None]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution: the same linear map at every position, (B, C, *grid) -> (B, O, *grid)."""
    y = torch.einsum("oc,bcn->bon", weight.flatten(1), x.flatten(2))
    if bias is not None:
        y = y + bias[None, :, None]
    return y.reshape(x.shape[0], -1, *x.shape[2:])


def conv3x3(x: Tensor, weight: Tensor, rate: int = 1) -> Tensor:
    """3x3 convolution with dilation `rate`, zeros outside the map: tap (i, j) reads (i - 1, j - 1) * rate away."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + 2 * rate, width + 2 * rate)
    padded[:, :, rate : rate + height, rate : rate + width] = x
    total = x.new_zeros(())
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i * rate : i * rate + height, j * rate : j * rate + width]
            total = total + pointwise(seen, weight[:, :, i, j])
    return total


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """Ioffe and Szegedy 2015, algorithm 1: (x - mean) / sqrt(variance + 1e-5) * weight + bias for each channel."""
    channels = []
    for c in range(x.shape[1]):
        values = x[:, c]
        centre = values.mean() if mean is None else mean[c]
        spread = ((values - values.mean()) ** 2).mean() if variance is None else variance[c]
        channels.append((values - centre) / torch.sqrt(spread + 1e-5) * weight[c] + bias[c])
    return torch.stack(channels, dim=1)


def conv_bn_relu(x: Tensor, weight: Tensor, norm: Norm, rate: int = 1) -> Tensor:
    """1x1 or 3x3 convolution without bias, batch norm, ReLU."""
    y = pointwise(x, weight) if weight.shape[-1] == 1 else conv3x3(x, weight, rate)
    return batch_norm(y, *norm).clamp(min=0)


def adaptive_avg_pool2d(x: Tensor, bins: int) -> Tensor:
    """Cell i covers the positions floor(i * size / bins) to ceil((i + 1) * size / bins), the last one excluded."""

    def cell(i: int, size: int) -> slice:
        return slice(math.floor(i * size / bins), math.ceil((i + 1) * size / bins))

    height, width = x.shape[2:]
    rows = []
    for i in range(bins):
        means = [x[:, :, cell(i, height), cell(j, width)].mean(dim=(2, 3)) for j in range(bins)]
        rows.append(torch.stack(means, dim=-1))
    return torch.stack(rows, dim=-2)


def resize_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear interpolation between pixel centres (align_corners=False), the border repeated."""

    def neighbours(i: int, size: int, new_size: int) -> tuple[int, int, float]:
        position = max((i + 0.5) * size / new_size - 0.5, 0.0)
        low = min(math.floor(position), size - 1)
        return low, min(low + 1, size - 1), position - low

    rows = []
    for i in range(height):
        top, bottom, down = neighbours(i, x.shape[2], height)
        line = []
        for j in range(width):
            left, right, across = neighbours(j, x.shape[3], width)
            upper = (1 - across) * x[:, :, top, left] + across * x[:, :, top, right]
            lower = (1 - across) * x[:, :, bottom, left] + across * x[:, :, bottom, right]
            line.append((1 - down) * upper + down * lower)
        rows.append(torch.stack(line, dim=-1))
    return torch.stack(rows, dim=-2)
