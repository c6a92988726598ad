"""Criss-cross attention: each position attends to its row and its column; applied twice it reaches every position.

Paper: Huang, Wang, Huang, Huang, Wei, Liu, "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019,
section 3, https://arxiv.org/abs/1811.11721
Official code consulted: speedinghzl/CCNet (pure Python version).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.functional import matmul_float32, position_index


def criss_cross_affinity(query: Tensor, key: Tensor, scale: float = 1.0) -> Tensor:
    """Softmax over the H positions of the column and the W of the row of each position, itself once (in the row).

    Shape:
        query, key (B, d, H, W) -> (B, H, W, H + W), the column first.
    """
    # Rows: batch of (B, H) problems of length W. Columns: batch of (B, W) problems of length H.
    # The paper does not scale the dot product: in float16 it overflows, so it is taken in float32.
    height = query.shape[2]
    query = query * scale
    row_energy = matmul_float32(query.permute(0, 2, 3, 1), key.permute(0, 2, 1, 3))  # (B, H, W, W)
    column_energy = matmul_float32(query.permute(0, 3, 2, 1), key.permute(0, 3, 1, 2))  # (B, W, H, H)
    itself = torch.eye(height, dtype=torch.bool, device=query.device)
    column_energy = column_energy.masked_fill(itself, float("-inf")).transpose(1, 2)  # (B, H, W, H)
    return torch.softmax(torch.cat([column_energy, row_energy], dim=-1), dim=-1)


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor, scale: float = 1.0) -> Tensor:
    """The weighted average over the row and the column of every position.

    Shape:
        query, key (B, d, H, W), value (B, C, H, W) -> (B, C, H, W).
    """
    height = query.shape[2]
    affinity = criss_cross_affinity(query, key, scale).to(value.dtype)  # (B, H, W, H + W)
    columns = torch.matmul(affinity[..., :height].transpose(1, 2), value.permute(0, 3, 2, 1))  # (B, W, H, C)
    rows = torch.matmul(affinity[..., height:], value.permute(0, 2, 3, 1))  # (B, H, W, C)
    return (rows + columns.transpose(1, 2)).permute(0, 3, 1, 2)


class CrissCrossAttention(nn.Module):
    """`gamma * sum_j A_ij v_j + x_i`, j over the H + W - 1 positions of i's column and row, one softmax over them.

    The position itself lies on both: it is masked on the column, so that it counts once. All recurrences share their
    weights. `gamma` starts at 0, so the module starts as the identity.

    Args:
        channels: C of the input.
        recurrence: how often the module is applied; 2 is the paper's RCCA, 0 is the identity.
        reduction: query and key have C / reduction channels.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, *, recurrence: int = 2, reduction: int = 8) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.recurrence = recurrence
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.recurrence):
            x = self.gamma * criss_cross_attention(self.query(x), self.key(x), self.value(x)) + x
        return x

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Where the position looks after all recurrences: the product of their affinities, (B, H, W)."""
        affinities = []
        for _ in range(self.recurrence):
            affinities.append(criss_cross_affinity(self.query(x), self.key(x)))
            x = self.gamma * criss_cross_attention(self.query(x), self.key(x), self.value(x)) + x
        height, width = x.shape[2:]
        weights = torch.zeros(height * width, dtype=x.dtype, device=x.device)
        weights[position_index((height, width), position)] = 1.0
        weights = weights.reshape(1, height, width).expand(x.shape[0], -1, -1)
        for affinity in reversed(affinities):
            columns = torch.einsum("bhw,bhwk->bkw", weights, affinity[..., :height])
            rows = torch.einsum("bhw,bhwk->bhk", weights, affinity[..., height:])
            weights = columns + rows
        return weights
