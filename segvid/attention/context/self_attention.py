"""One self-attention block with a choice of what it looks at: the attention spaces of the articles side by side.

Global attention is the non-local block (Wang et al., CVPR 2018); the others are the same block with fewer keys: a
window (Ramachandran et al., "Stand-Alone Self-Attention in Vision Models", NeurIPS 2019), positions a fixed stride
apart and the union of both (Child et al., "Generating Long Sequences with Sparse Transformers", 2019, on a plane and
without causality), the row, the column, or both (Huang et al., "CCNet", ICCV 2019).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segvid.attention.context.criss_cross import criss_cross_attention
from segvid.attention.context.interlaced import block_tokens, blockwise_attention, from_blocks
from segvid.attention.functional import position_index, shifted, softmax_attention, summed_product, window_sum
from segvid.attention.layers import zero_norm

SPACES = ("global", "local", "atrous", "sparse", "row", "column", "row_column")


class GridSelfAttention(nn.Module):
    """`BN(W sum_j softmax_j(q_i . k_j / sqrt(d)) v_j) + x`, j over the attention space of i.

    With i = (y, x) and j = (y', x'): "global", all; "local", |y - y'| and |x - x'| at most window // 2; "atrous",
    y - y' and x - x' multiples of `stride`; "sparse", local or atrous; "row", y = y'; "column", x = x'; "row_column",
    either. Everything is one softmax, no key counts twice. The block starts as the identity.

    Args:
        channels: C of the input.
        space: one of the above.
        window: side of the local window, odd.
        stride: distance of the atrous positions.
        inner_channels: d of query, key and value; C / 2 when None.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        *,
        space: Literal["global", "local", "atrous", "sparse", "row", "column", "row_column"] = "global",
        window: int = 7,
        stride: int = 8,
        inner_channels: int | None = None,
    ) -> None:
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"space is {space!r}; use one of {', '.join(SPACES)}.")
        if window % 2 == 0:
            raise ValueError(f"window is {window}; a window with a centre has an odd side.")
        inner = inner_channels or max(channels // 2, 1)
        self.space = space
        self.window = window
        self.stride = stride
        self.scale = inner**-0.5
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv1d(inner, channels, 1)
        self.norm = zero_norm(channels)
        for conv in (self.query, self.key, self.value, self.out):
            nn.init.normal_(conv.weight, std=max(0.01, (0.05 / channels) ** 0.5))  # see NonLocal
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attend(self.query(x), self.key(x), self.value(x))
        z: Tensor = self.norm(self.out(y.flatten(2))).reshape(x.shape)
        return z + x

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The average over the attention space, (B, d, H, W) each -> (B, d, H, W)."""
        height, width = value.shape[2], value.shape[3]
        if self.space == "row":
            return blockwise_attention(query, key, value, (1, width), False, self.scale)
        if self.space == "column":
            return blockwise_attention(query, key, value, (height, 1), False, self.scale)
        if self.space == "row_column":
            return criss_cross_attention(query, key, value, self.scale)
        if self.space == "atrous":
            return blockwise_attention(query, key, value, (self.stride, self.stride), True, self.scale)
        if self.space == "local":
            return window_attention(query, key, value, self.window, self.scale, 0)[0]
        if self.space == "sparse":
            # One softmax over the union: each part's average, weighted by its share of the sum of exponentials.
            local, local_sum = window_attention(query, key, value, self.window, self.scale, self.stride)
            far, far_sum = atrous_attention(query, key, value, self.stride, self.scale)
            share = torch.sigmoid(local_sum - far_sum)
            return share * local + (1 - share) * far
        tokens = [t.flatten(2).transpose(1, 2) for t in (query, key, value)]
        return softmax_attention(tokens[0], tokens[1], tokens[2], self.scale).transpose(1, 2).reshape(value.shape)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions for the query at `position`, 0 outside its space, (B, H, W)."""
        height, width = x.shape[2:]
        index = position_index((height, width), position)
        energy = torch.matmul(self.query(x).flatten(2)[:, None, :, index] * self.scale, self.key(x).flatten(2))
        dy = (torch.arange(height, device=x.device) - position[0]).abs()[:, None]
        dx = (torch.arange(width, device=x.device) - position[1]).abs()[None, :]
        local = (dy <= self.window // 2) & (dx <= self.window // 2)
        atrous = (dy % self.stride == 0) & (dx % self.stride == 0)
        seen = {
            "global": dy + dx >= 0,
            "local": local,
            "atrous": atrous,
            "sparse": local | atrous,
            "row": (dy == 0).expand(-1, width),
            "column": (dx == 0).expand(height, -1),
            "row_column": (dy == 0) | (dx == 0),
        }[self.space]
        weights = torch.softmax(energy.masked_fill(~seen.reshape(-1), float("-inf")), dim=2)
        return weights.reshape(-1, height, width)


def window_attention(
    query: Tensor, key: Tensor, value: Tensor, window: int, scale: float, without_stride: int
) -> tuple[Tensor, Tensor]:
    """Attention inside a window; with the log of the sum of exponentials.

    Offsets that are multiples of `without_stride` along both axes are left out when it is not 0. Positions without
    any key get a log-sum near -10,000 and an average that means nothing.

    Shape:
        query, key (B, d, H, W), value (B, c, H, W) -> (B, c, H, W) and (B, 1, H, W).
    """
    reach = window // 2
    query = query * scale
    energies = []
    for moved in shifted(key, window):
        energies.append(summed_product(query, moved, 1))
    energy = torch.stack(energies, dim=1)  # (B, window^2, H, W)
    inside = torch.stack(shifted(torch.ones_like(key[:1, :1]), window), dim=2)[:, 0]  # (1, window^2, H, W)
    if without_stride > 0:
        offset = torch.arange(-reach, reach + 1, device=key.device) % without_stride == 0
        both = (offset.unsqueeze(1) & offset.unsqueeze(0)).reshape(1, -1, 1, 1)
        inside = inside.masked_fill(both, 0.0)
    energy = energy.masked_fill(inside == 0, -1e4)  # finite: the window may be left empty
    weights = torch.softmax(energy, dim=1).to(value.dtype)
    out = window_sum(weights[:, None, :, None], value, window).reshape(value.shape)
    return out, torch.logsumexp(energy, dim=1, keepdim=True)


def atrous_attention(query: Tensor, key: Tensor, value: Tensor, stride: int, scale: float) -> tuple[Tensor, Tensor]:
    """Attention between positions `stride` apart; with the log of the sum of exponentials.

    Shape:
        query, key (B, d, H, W), value (B, c, H, W) -> (B, c, H, W) and (B, 1, H, W).
    """
    block = (stride, stride)
    q, k, v = block_tokens(query, key, value, block, True, scale)
    energy = torch.matmul(q * scale, k.transpose(1, 2))  # (B * stride^2, n, n): small, so it is stored
    average = from_blocks(torch.matmul(torch.softmax(energy, dim=2), v), block, True, value)
    log_sum = from_blocks(torch.logsumexp(energy, dim=2, keepdim=True), block, True, value)
    return average, log_sum
