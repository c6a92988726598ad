"""Adaptive context: each position weighs the cells of a pooled grid by itself and by the whole image.

Paper: He, Deng, Zhou, Wang, Qiao, "Adaptive Pyramid Context Network for Semantic Segmentation", CVPR 2019, section 3
Official code consulted: Junjun2016/APCNet.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import adaptive_avg_pool2d, position_index
from segvid.attention.layers import conv_bn_relu


class AdaptiveContext(nn.Module):
    """One scale s: `fusion(ReLU(W(A P) + X))`, P the s x s pooled cells, `A = sigmoid(W_a (X + G))` of (N, s^2).

    X is the reduced map and G the global guidance, a projection of its mean. The affinity is not normalised.

    Args:
        channels: C of the input.
        scale: s.
        inner_channels: channels of everything inside and of the result; C / 4 when None.
        global_guidance: False leaves G out.
        affinity: "sigmoid" as published, or "softmax" over the cells.

    Shape:
        (B, C, H, W) -> (B, inner_channels, H, W).
    """

    def __init__(
        self,
        channels: int,
        *,
        scale: int,
        inner_channels: int | None = None,
        global_guidance: bool = True,
        affinity: Literal["sigmoid", "softmax"] = "sigmoid",
    ) -> None:
        super().__init__()
        if affinity not in ("sigmoid", "softmax"):
            raise ValueError(f"affinity is {affinity!r}; use 'sigmoid' or 'softmax'.")
        inner = inner_channels or max(channels // 4, 1)
        self.scale = scale
        self.softmax = affinity == "softmax"
        self.global_guidance = global_guidance
        self.pooled = conv_bn_relu(channels, inner)
        self.reduce = conv_bn_relu(channels, inner)
        self.guidance = conv_bn_relu(inner, inner) if global_guidance else nn.Identity()
        self.to_affinity = nn.Conv2d(inner, scale**2, 1)
        self.residual = conv_bn_relu(inner, inner)
        self.fusion = conv_bn_relu(inner, inner)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)  # (B, c, H, W)
        cells = self.pooled(adaptive_avg_pool2d(x, self.scale)).flatten(2)  # (B, c, s^2)
        affinity = self.affinity(reduced).flatten(2)  # (B, s^2, N)
        context = self.residual(torch.matmul(cells, affinity).reshape(reduced.shape))
        out: Tensor = self.fusion(F.relu(context + reduced))
        return out

    def affinity(self, reduced: Tensor) -> Tensor:
        """The weight of each cell at each position, (B, s^2, H, W)."""
        if self.global_guidance:
            reduced = reduced + self.guidance(reduced.mean(dim=(2, 3), keepdim=True))
        energy = self.to_affinity(reduced)
        return torch.softmax(energy, dim=1) if self.softmax else torch.sigmoid(energy)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """The weight of the cell that each position lies in, as used at `position`, (B, H, W)."""
        position_index(x.shape[2:], position)
        weights = self.affinity(self.reduce(x))[:, :, position[0], position[1]]
        return F.interpolate(weights.reshape(-1, 1, self.scale, self.scale), size=x.shape[2:], mode="nearest")[:, 0]


class AdaptivePyramidContext(nn.Module):
    """`concat(x, context_s(x) for s in scales)`.

    Args:
        channels: C of the input.
        scales: cells along each axis of the pooled grids.
        inner_channels: channels of each scale; C / 4 when None.
        global_guidance: let the mean of the image take part in the affinities.
        affinity: "sigmoid" as published, or "softmax" over the cells.

    Shape:
        (B, C, H, W) -> (B, out_channels, H, W) with out_channels = C + len(scales) * inner_channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        scales: Sequence[int] = (1, 2, 3, 6),
        inner_channels: int | None = None,
        global_guidance: bool = True,
        affinity: Literal["sigmoid", "softmax"] = "sigmoid",
    ) -> None:
        super().__init__()
        inner = inner_channels or max(channels // 4, 1)
        self.out_channels = channels + len(scales) * inner
        self.contexts = nn.ModuleList(
            AdaptiveContext(
                channels, scale=scale, inner_channels=inner, global_guidance=global_guidance, affinity=affinity
            )
            for scale in scales
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for context in self.contexts:
            maps.append(context(x))
        return torch.cat(maps, dim=1)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """The weights at `position`, averaged over the scales, (B, H, W)."""
        contexts = cast(list[AdaptiveContext], self.contexts)
        return torch.stack([context.attention_map(x, position) for context in contexts]).mean(dim=0)
