"""Disentangled non-local block: whitened pairwise attention plus a unary term of its own.

Paper: Yin, Yao, Cao, Li, Zhang, Lin, Hu, "Disentangled Non-Local Neural Networks", ECCV 2020, section 4,
https://arxiv.org/abs/2006.06668
Official code consulted: yinmh17/DNL-Semantic-Segmentation. As in `NonLocal` the initial weights are wider than its
N(0, 0.01) in narrow blocks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segvid.attention.functional import position_index, softmax_attention


class DisentangledNonLocal(nn.Module):
    """`x_i + gamma sum_j softmax_j((q_i - mean q) . (k_j - mean k) / (sqrt(d) T)) v_j + sum_j softmax_j(m_j) v_j`.

    gamma starts at 0; the unary term, with its own key m, is not gated. (Subtracting the keys' mean changes nothing but
    the numerical range: it adds the same number to all energies of a query.)

    Args:
        channels: C of the input.
        inner_channels: d of query and key; C / 2 when None.
        temperature: T; 1 as released, mmsegmentation uses 0.05.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(self, channels: int, *, inner_channels: int | None = None, temperature: float = 1.0) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 2, 1)
        self.scale = inner**-0.5 / temperature
        self.query = nn.Conv1d(channels, inner, 1)
        self.key = nn.Conv1d(channels, inner, 1)
        self.value = nn.Conv1d(channels, channels, 1, bias=False)
        self.mask = nn.Conv1d(channels, 1, 1)
        self.gamma = nn.Parameter(torch.zeros(()))
        for conv in (self.query, self.key, self.value, self.mask):
            nn.init.normal_(conv.weight, std=max(0.01, (0.05 / channels) ** 0.5))
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        query, key = self.whitened(tokens)
        value = self.value(tokens).transpose(1, 2)  # (B, N, C)
        pairwise = softmax_attention(query, key, value, self.scale)
        unary = torch.matmul(torch.softmax(self.mask(tokens), dim=2), value)  # (B, 1, C)
        return x + (self.gamma * pairwise + unary).transpose(1, 2).reshape(x.shape)

    def whitened(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Query and key less their means over the positions, (B, N, d)."""
        query, key = self.query(tokens), self.key(tokens)
        query = query - query.mean(dim=2, keepdim=True)
        key = key - key.mean(dim=2, keepdim=True)
        return query.transpose(1, 2), key.transpose(1, 2)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """gamma times the pairwise weights of `position` plus the unary weights, (B, *grid)."""
        tokens = x.flatten(2)
        index = position_index(x.shape[2:], position)
        query, key = self.whitened(tokens)
        energy = torch.matmul(query[:, index : index + 1] * self.scale, key.transpose(1, 2))
        weights = self.gamma * torch.softmax(energy, dim=2) + torch.softmax(self.mask(tokens), dim=2)
        return weights.reshape(x.shape[0], *x.shape[2:])
