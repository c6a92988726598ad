"""Non-local block: every position is a weighted average of all positions.

Paper: Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018, section 3, https://arxiv.org/abs/1711.07971
Official code consulted: facebookresearch/video-nonlocal-net. As there, and unlike the text, the dot product of the
embedded Gaussian is scaled by `d ** -0.5`. Deliberate: its initial weights N(0, 0.01) are wider in blocks of less than
500 channels, where the output would be so small beside the last batch norm's epsilon that nothing is learned; pooling
rounds up, so that a thin map keeps a key.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import position_index, softmax_attention
from segvid.attention.layers import zero_norm


class NonLocal(nn.Module):
    """`z = BN(W_z y) + x` with `y_i = sum_j w_ij g(x_j)`; query, key and value are the paper's theta, phi and g.

    The weights w, by `affinity`, with M keys:
    "embedded_gaussian" `softmax_j(q_i . k_j / sqrt(d))`; "gaussian" the same with q = k = x, unscaled;
    "dot_product" `q_i . k_j / M`; "concatenation" `ReLU(w . [q_i, k_j]) / M`.
    The last batch norm starts at zero, so the block starts as the identity.

    Args:
        channels: C of the input.
        inner_channels: d of query, key and value; the paper's C / 2 when None.
        affinity: one of the four above.
        scale: divide the dot product by sqrt(d); None does as the official code, for the embedded Gaussian alone.
        shared_query_key: the query's projection serves for the keys too, the affinity becomes symmetric.
        value_projection: False averages x itself; the output projection remains.
        pool: max pooling by 2 over the last two axes (never time) of keys and values, of x before the projections
            ("first", official) or of the projections ("after", as most others do: not the same).

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        affinity: Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"] = "embedded_gaussian",
        scale: bool | None = None,
        shared_query_key: bool = False,
        value_projection: bool = True,
        pool: Literal["none", "first", "after"] = "none",
    ) -> None:
        super().__init__()
        if affinity not in ("embedded_gaussian", "gaussian", "dot_product", "concatenation"):
            raise ValueError(
                f"affinity is {affinity!r}; use 'embedded_gaussian', 'gaussian', 'dot_product' or 'concatenation'."
            )
        if pool not in ("none", "first", "after"):
            raise ValueError(f"pool is {pool!r}; use 'none', 'first' or 'after'.")
        if affinity == "gaussian" and shared_query_key:
            raise ValueError("affinity 'gaussian' has no query and key projections that shared_query_key could share.")
        inner = inner_channels or max(channels // 2, 1)
        self.affinity = affinity
        self.shared = shared_query_key or affinity == "gaussian"
        self.pool = pool
        scaled = affinity == "embedded_gaussian" if scale is None else scale
        self.scale = (channels if affinity == "gaussian" else inner) ** -0.5 if scaled else 1.0
        # With shared projections the query's module serves for the keys.
        self.query = nn.Identity() if affinity == "gaussian" else nn.Conv1d(channels, inner, 1)
        self.key = nn.Identity() if self.shared else nn.Conv1d(channels, inner, 1)
        self.value = nn.Conv1d(channels, inner, 1) if value_projection else nn.Identity()
        self.concat = nn.Conv1d(2 * inner, 1, 1, bias=False) if affinity == "concatenation" else None
        self.out = nn.Conv1d(inner if value_projection else channels, channels, 1)
        self.norm = zero_norm(channels)
        for conv in self.modules():
            if isinstance(conv, nn.Conv1d):
                nn.init.normal_(conv.weight, std=max(0.01, (0.05 / channels) ** 0.5))
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x)
        if self.affinity == "dot_product":  # (q k^T) v = q (k^T v): linear in N
            y = torch.matmul(query * self.scale, torch.matmul(key.transpose(1, 2), value) / key.shape[1])
        elif self.concat is not None:
            y = torch.matmul(self.weights(query, key), value)
        else:
            y = softmax_attention(query, key, value, self.scale)  # (B, N, d)
        z: Tensor = self.norm(self.out(y.transpose(1, 2))).reshape(x.shape)
        return z + x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, N, d), key (B, M, d) and value (B, M, c)."""
        tokens = x.flatten(2)  # (B, C, N)
        pooled = x if x.dim() > 3 else x.unsqueeze(2)
        source = half(pooled).flatten(2) if self.pool == "first" else tokens  # (B, C, M)
        query = self.query(tokens)
        key = self.query(source) if self.shared else self.key(source)
        value = self.value(source)
        if self.pool == "after":
            key = half(key.unflatten(2, pooled.shape[2:])).flatten(2)
            value = half(value.unflatten(2, pooled.shape[2:])).flatten(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)

    def weights(self, query: Tensor, key: Tensor) -> Tensor:
        """The affinities themselves, (B, N, d), (B, M, d) -> (B, N, M)."""
        if self.concat is not None:  # w . [q, k] is a sum of two terms: no (N, M, 2d) tensor
            own, other = self.concat.weight.flatten().chunk(2)
            sums = torch.matmul(query, own.unsqueeze(1)) + torch.matmul(key, other.unsqueeze(1)).transpose(1, 2)
            return F.relu(sums) * self.scale / key.shape[1]
        energy = torch.matmul(query * self.scale, key.transpose(1, 2))
        return energy / key.shape[1] if self.affinity == "dot_product" else torch.softmax(energy, dim=-1)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of all positions for the query at `position`, (B, *grid); of pooled keys each has its cell's."""
        grid = x.shape[2:]
        index = position_index(grid, position)
        query, key, _ = self.project(x)
        weights = self.weights(query[:, index : index + 1], key)
        if self.pool == "none":
            return weights.reshape(x.shape[0], *grid)
        rows, columns = (grid[-2] if len(grid) > 1 else 1), grid[-1]
        coarse = weights.reshape(x.shape[0], -1, (rows + 1) // 2, (columns + 1) // 2)
        fine = coarse.repeat_interleave(2, dim=2)[:, :, :rows].repeat_interleave(2, dim=3)[..., :columns]
        return fine.reshape(x.shape[0], *grid)


def half(x: Tensor) -> Tensor:
    """Max pooling by 2 over the last two axes, (B, C, *grid, H, W) -> (B, C, *grid, ceil(H / 2), ceil(W / 2))."""
    maps = x.reshape(x.shape[0], -1, x.shape[-2], x.shape[-1])
    pooled = F.max_pool2d(maps, 2, ceil_mode=True)
    if x.dim() == 4:
        return pooled
    return pooled.reshape(x.shape[0], x.shape[1], -1, pooled.shape[2], pooled.shape[3])
