"""Asymmetric non-local blocks: every position attends to a few pooled tokens.

Paper: Zhu, Xu, Bai, Huang, Bai, "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019,
section 3, https://arxiv.org/abs/1908.07678
Official code consulted: MendelXu/ANN.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.functional import adaptive_avg_pool2d, position_index, softmax_attention
from segvid.attention.layers import conv_bn_relu


def pyramid_tokens(x: Tensor, bins: list[int]) -> Tensor:
    """All cells of the pooled grids as tokens, (B, C, H, W) -> (B, sum of b^2, C)."""
    cells = []
    for b in bins:
        cells.append(adaptive_avg_pool2d(x, b).flatten(2))
    return torch.cat(cells, dim=2).transpose(1, 2)


class AsymmetricPyramidNonLocal(nn.Module):
    """APNB: `W sum_s softmax_s(q_i . k_s / sqrt(d)) v_s` over the pooled cells s of several grids.

    Query and key share one projection with batch norm and ReLU. W starts at zero and there is no residual: the result
    is concatenated with the input.

    Args:
        channels: C of the input.
        inner_channels: channels of query, key and value; C / 2 when None.
        bins: cells along each axis of the pooled grids; 110 tokens in all by default.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, inner_channels: int | None = None, bins: Sequence[int] = (1, 3, 6, 8)) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 2, 1)
        self.bins = list(bins)
        self.scale = inner**-0.5
        self.key = conv_bn_relu(channels, inner)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = zero_conv(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        query = self.key(x)
        context = tokens_to(query, query, self.value(x), self.bins, self.scale)
        out: Tensor = self.out(context)
        return out

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions: each cell's, shared among its positions, summed over the grids, (B, H, W)."""
        position_index(x.shape[2:], position)
        query = self.key(x)
        keys = pyramid_tokens(query, self.bins)
        energy = torch.matmul(query[:, None, :, position[0], position[1]] * self.scale, keys.transpose(1, 2))
        weights = torch.softmax(energy, dim=2)  # (B, 1, S)
        # sum_s w_s pool_s(v) is linear in v: its gradient is the weight of each position.
        with torch.inference_mode(False), torch.enable_grad():
            value = torch.zeros_like(x[:, :1]).requires_grad_()
            total = torch.matmul(weights.detach().clone(), pyramid_tokens(value, self.bins)).sum()
            (gradient,) = torch.autograd.grad(total, value)
        return gradient[:, 0]


class AsymmetricFusion(nn.Module):
    """AFNB: the deepest map attends to the pooled cells of the one before: `BN(W concat(attention, high))`.

    Args:
        channels: channels of the deeper map, which gives the queries.
        low_channels: channels of the map before, which gives keys and values.
        inner_channels: channels of query, key and value; low_channels / 4 when None.
        bins: cells along each axis of the pooled grids.

    Shape:
        high (B, channels, H, W), low (B, low_channels, H', W') -> (B, channels, H, W).
    """

    def __init__(
        self,
        channels: int,
        low_channels: int,
        *,
        inner_channels: int | None = None,
        bins: Sequence[int] = (1, 3, 6, 8),
    ) -> None:
        super().__init__()
        inner = inner_channels or max(low_channels // 4, 1)
        self.bins = list(bins)
        self.scale = inner**-0.5
        self.query = conv_bn_relu(channels, inner)
        self.key = conv_bn_relu(low_channels, inner)
        self.value = nn.Conv2d(low_channels, inner, 1)
        self.out = zero_conv(inner, channels)
        # No ReLU behind this one.
        self.fuse = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        context = self.out(tokens_to(self.query(high), self.key(low), self.value(low), self.bins, self.scale))
        fused: Tensor = self.fuse(torch.cat([context, high], dim=1))
        return fused


def zero_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero."""
    conv = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def tokens_to(query: Tensor, key: Tensor, value: Tensor, bins: list[int], scale: float) -> Tensor:
    """Attention of every position of the query to the pooled cells of key and value.

    Shape:
        query (B, d, H, W), key (B, d, h, w), value (B, c, h, w) -> (B, c, H, W).
    """
    tokens = query.flatten(2).transpose(1, 2)  # (B, N, d)
    context = softmax_attention(tokens, pyramid_tokens(key, bins), pyramid_tokens(value, bins), scale)
    return context.transpose(1, 2).reshape(query.shape[0], -1, query.shape[2], query.shape[3])
