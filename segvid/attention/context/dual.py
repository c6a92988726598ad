"""Dual attention: position attention (over pixels) and channel attention (over feature maps).

Paper: Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR 2019, sections 3.2, 3.3,
https://arxiv.org/abs/1809.02983
Official code consulted: junfu1115/DANet. Deliberate: the sign of the channel affinity is an option, because the
released code and the paper disagree (see `ChannelAttention`).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segvid.attention.functional import matmul_float32, position_index, softmax_attention


class PositionAttention(nn.Module):
    """`gamma * sum_j softmax_j(q_i . k_j) v_j + x_i`: the paper's B, C, D are query, key, value; no scaling.

    `gamma` starts at 0, so the module starts as the identity.

    Args:
        channels: C of the input.
        reduction: query and key have C / reduction channels.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, reduction: int = 8) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.query = nn.Conv1d(channels, inner, 1)
        self.key = nn.Conv1d(channels, inner, 1)
        self.value = nn.Conv1d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        query = self.query(tokens).transpose(1, 2)  # (B, N, C / reduction)
        key = self.key(tokens).transpose(1, 2)
        value = self.value(tokens).transpose(1, 2)
        context = softmax_attention(query, key, value).transpose(1, 2).reshape(x.shape)
        return self.gamma * context + x

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions for the query at `position`, (B, *grid)."""
        tokens = x.flatten(2)
        index = position_index(x.shape[2:], position)
        energy = torch.matmul(self.query(tokens)[:, None, :, index], self.key(tokens))  # (B, 1, N)
        return torch.softmax(energy, dim=2).reshape(x.shape[0], *x.shape[2:])


class ChannelAttention(nn.Module):
    """`gamma * sum_d A_cd x_d + x_c`, A from the Gram matrix `E = X X^T` of the channels; no projections.

    The paper writes `A = softmax(E)`. The released code computes `softmax(max(E) - E)`: that is not a stabilised form
    of the same thing but `softmax(-E)`, so every channel attends to the channels *least* like it. E is a sum over all
    positions and is kept in float32 under autocast: float16 overflows.

    Args:
        channels: C of the input (unused: the module has a single parameter).
        affinity: "minus" as released, "plus" as in the paper.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, affinity: Literal["minus", "plus"] = "minus") -> None:
        super().__init__()
        if affinity not in ("minus", "plus"):
            raise ValueError(f"affinity is {affinity!r}; use 'minus' (released code) or 'plus' (paper).")
        self.sign = -1.0 if affinity == "minus" else 1.0
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        energy = matmul_float32(tokens, tokens.transpose(1, 2))  # (B, C, C)
        affinity = torch.softmax(self.sign * energy, dim=-1).to(x.dtype)
        context = torch.matmul(affinity, tokens).reshape(x.shape)
        return self.gamma * context + x
