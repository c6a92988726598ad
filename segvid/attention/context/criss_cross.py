"""Criss-cross attention: each position attends to its row and its column; applied twice it reaches every position.

Paper: Huang, Wang, Huang, Huang, Wei, Liu, "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019,
section 3, https://arxiv.org/abs/1811.11721
Official code consulted: speedinghzl/CCNet (pure Python version).
"""

import torch
from torch import Tensor, nn

from segvid.attention.functional import matmul_float32


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
            x = self.gamma * self.criss_cross(x) + x
        return x

    def criss_cross(self, x: Tensor) -> Tensor:
        """The weighted average over the row and the column of every position, (B, C, H, W) -> (B, C, H, W)."""
        height = x.shape[2]
        # Rows: batch of (B, H) problems of length W. Columns: batch of (B, W) problems of length H.
        query, key, value = self.query(x), self.key(x), self.value(x)
        # The paper does not scale the dot product: in float16 it overflows, so it is taken in float32.
        row_query = query.permute(0, 2, 3, 1)  # (B, H, W, d)
        row_energy = matmul_float32(row_query, key.permute(0, 2, 1, 3))  # (B, H, W, W)
        column_query = query.permute(0, 3, 2, 1)  # (B, W, H, d)
        column_energy = matmul_float32(column_query, key.permute(0, 3, 1, 2))  # (B, W, H, H)
        itself = torch.eye(height, dtype=torch.bool, device=x.device)
        column_energy = column_energy.masked_fill(itself, float("-inf")).transpose(1, 2)  # (B, H, W, H)
        affinity = torch.softmax(torch.cat([column_energy, row_energy], dim=-1), dim=-1)  # (B, H, W, H + W)
        affinity = affinity.to(value.dtype)
        column_affinity = affinity[..., :height].transpose(1, 2)  # (B, W, H, H)
        row_affinity = affinity[..., height:]  # (B, H, W, W)
        columns = torch.matmul(column_affinity, value.permute(0, 3, 2, 1))  # (B, W, H, C)
        rows = torch.matmul(row_affinity, value.permute(0, 2, 3, 1))  # (B, H, W, C)
        return (rows + columns.transpose(1, 2)).permute(0, 3, 1, 2)
