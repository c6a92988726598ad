"""Compact generalised non-local block: affinities between all (position, channel) pairs, in linear time.

Paper: Yue, Sun, Yuan, Zhou, Ding, Xu, "Compact Generalized Non-local Network", NeurIPS 2018, section 3,
https://arxiv.org/abs/1810.13125
Official code consulted: KaiyuYue/cgnl-network.pytorch. As there, the factor exp(-gamma (|t|^2 + |p|^2)) of the
Gaussian kernel is a constant.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from segvid.attention.functional import position_index, summed_product
from segvid.attention.layers import zero_norm


class CompactGeneralizedNonLocal(nn.Module):
    """`norm(W_z y) + x`; in each channel group, flattened over channels and positions, `y = t <p, g>`.

    With the dot product kernel the whole affinity is one number <p, g> for a group, and the group norm behind it, which
    is blind to the scale of a group, leaves of it no more than its sign: kernel "sign" is that function. The Gaussian
    kernel as a Taylor series, `sum_n a_n t^n <p^n, g>`, `a_n = exp(-2 gamma) (2 gamma)^n / n!`, does not degenerate.

    Args:
        channels: C of the input.
        groups: channel groups, each with an affinity of its own.
        kernel: "dot" as published, "rbf" the Gaussian, "sign" the control described above.
        order: highest power of the Taylor series.
        gamma: inverse width of the Gaussian.
        norm: "group" as published, starting at zero (identity); "batch", likewise; "none".
        scale: divide the affinity by sqrt(channels of a group * positions); advisable in float16.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int = 8,
        kernel: Literal["dot", "rbf", "sign"] = "dot",
        order: int = 3,
        gamma: float = 1e-4,
        norm: Literal["group", "batch", "none"] = "group",
        scale: bool = False,
    ) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        if channels % groups or inner % groups:
            raise ValueError(f"{channels} channels and their half do not divide into {groups} groups.")
        if kernel not in ("dot", "rbf", "sign"):
            raise ValueError(f"kernel is {kernel!r}; use 'dot', 'rbf' or 'sign'.")
        if norm not in ("group", "batch", "none"):
            raise ValueError(f"norm is {norm!r}; use 'group', 'batch' or 'none'.")
        self.groups = groups
        self.kernel = kernel
        self.scale = scale
        # Factors of t^n <p^n, g>; the dot product is the single term n = 1.
        beta = math.exp(-2 * gamma)
        self.factors = [beta * (2 * gamma) ** n / math.factorial(n) for n in range(order + 1)]
        self.t = nn.Conv1d(channels, inner, 1, bias=False)
        self.p = nn.Conv1d(channels, inner, 1, bias=False)
        self.g = nn.Conv1d(channels, inner, 1, bias=False)
        self.z = nn.Conv1d(inner, channels, 1, groups=groups, bias=False)
        for conv in (self.t, self.p, self.g, self.z):
            nn.init.normal_(conv.weight, std=0.01)
        if norm == "group":
            self.norm: nn.Module = GroupNorm(groups, channels)
            nn.init.zeros_(self.norm.weight)
        else:
            self.norm = zero_norm(channels) if norm == "batch" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        t = self.t(tokens)
        grouped = [m.reshape(t.shape[0], self.groups, -1, t.shape[2]) for m in (t, self.p(tokens), self.g(tokens))]
        y = self.generalized(grouped[0], grouped[1], grouped[2]).reshape(t.shape)
        z: Tensor = self.norm(self.z(y)).reshape(x.shape)
        return z + x

    def generalized(self, t: Tensor, p: Tensor, g: Tensor) -> Tensor:
        """Attention over channels and positions of each group, (B, groups, c, N) each -> (B, groups, c, N)."""
        if self.kernel == "rbf":
            y = torch.zeros_like(t)
            for n, factor in enumerate(self.factors):
                y = y + factor * self.inner(p**n, g) * t**n
            return y
        affinity = self.inner(p, g)  # (B, groups, 1, 1)
        return t * (torch.sign(affinity) if self.kernel == "sign" else affinity)

    def inner(self, p: Tensor, g: Tensor) -> Tensor:
        """<p, g> of each group: sums over channels and positions overflow float16, so they are taken in float32."""
        if p.dtype != torch.float64:
            p, g = p.float(), g.float()
        affinity = summed_product(p.flatten(2), g.flatten(2), 2)[:, :, None, None]
        if self.scale:
            count = torch.full_like(affinity, 1.0) * (p.shape[2] * p.shape[3])
            affinity = affinity / count.sqrt()
        return affinity

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Affinity of two positions, averaged over the channel pairs of all groups, (B, *grid); may be negative."""
        tokens = x.flatten(2)
        index = position_index(x.shape[2:], position)
        t = self.t(tokens)[:, :, index].unflatten(1, (self.groups, -1))  # (B, groups, c)
        p = self.p(tokens).unflatten(1, (self.groups, -1))  # (B, groups, c, N)
        if self.kernel == "rbf":
            terms = [f * (t**n).mean(2)[:, :, None] * (p**n).mean(2) for n, f in enumerate(self.factors)]
            affinity = torch.stack(terms).sum(dim=0)
        else:
            affinity = t.mean(2)[:, :, None] * p.mean(2)
        if self.scale:
            affinity = affinity / (p.shape[2] * p.shape[3]) ** 0.5
        return affinity.mean(dim=1).reshape(x.shape[0], *x.shape[2:])


class GroupNorm(nn.GroupNorm):
    """Group norm without the size check in Python that torch makes at each call: it would warn in every trace."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
