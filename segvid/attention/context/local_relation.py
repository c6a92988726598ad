"""Local relation layer: the weights of a window are composed from how well its positions go together.

Paper: Hu, Zhang, Xie, Lin, "Local Relation Networks for Image Recognition", ICCV 2019, section 3,
https://arxiv.org/abs/1904.11491
Official code consulted: microsoft/Swin-Transformer, branch LR-Net (the operator alone, no network). Deliberate:
positions outside the image are no keys, where the operator gives them an energy of -100; the layer is closed by a 1x1
convolution, batch norm starting at zero and a residual, like the other blocks.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import position_index, shifted, window_sum
from segvid.attention.layers import zero_norm


class LocalRelation(nn.Module):
    """`BN(W y) + x`, `y_i = sum_j softmax_j(phi(q_i, k_j) + g(j - i)) x_j` over a window; no value projection.

    Each group of m channels shares one scalar query, key and geometry prior g, which a small network computes from
    the relative position.

    Args:
        channels: C of the input.
        window: side of the window, odd.
        channels_per_group: m.
        composability: phi, "squared_difference" -(q - k)^2, "absolute_difference" -|q - k|, or "product" q k.
        geometry_prior: False leaves g out.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    places: Tensor

    def __init__(
        self,
        channels: int,
        *,
        window: int = 7,
        channels_per_group: int = 8,
        composability: Literal["squared_difference", "absolute_difference", "product"] = "squared_difference",
        geometry_prior: bool = True,
    ) -> None:
        super().__init__()
        if channels % channels_per_group:
            raise ValueError(
                f"{channels} channels do not divide into groups of channels_per_group={channels_per_group}."
            )
        if window % 2 == 0:
            raise ValueError(f"window is {window}; a window with a centre has an odd side.")
        if composability not in ("squared_difference", "absolute_difference", "product"):
            raise ValueError(
                f"composability is {composability!r}; use 'squared_difference', 'absolute_difference' or 'product'."
            )
        groups = channels // channels_per_group
        self.window = window
        self.channels_per_group = channels_per_group
        self.composability = composability
        self.geometry_prior = geometry_prior
        self.query = nn.Conv2d(channels, groups, 1)
        self.key = nn.Conv2d(channels, groups, 1)
        self.geometry = (
            nn.Sequential(nn.Linear(2, groups), nn.ReLU(), nn.Linear(groups, groups))
            if geometry_prior
            else nn.Identity()
        )
        reach = window // 2
        places = torch.arange(-reach, reach + 1.0)  # whole numbers: exact in any type
        places = torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=-1).reshape(-1, 2)  # (window^2, dx dy)
        self.register_buffer("places", places, persistent=False)
        self.out = nn.Conv1d(channels, channels, 1, bias=False)
        self.norm = zero_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)  # (B, G, window^2, H, W)
        y = window_sum(weights.unsqueeze(3), x, self.window)
        z: Tensor = self.norm(self.out(y.reshape(x.shape).flatten(2))).reshape(x.shape)
        return z + x

    def weights(self, x: Tensor) -> Tensor:
        """The weight of each place of the window, for each group and position, (B, G, window^2, H, W)."""
        query, key = self.query(x), self.key(x)
        energies = []
        for moved in shifted(key, self.window):
            if self.composability == "squared_difference":
                energies.append(-((query - moved) ** 2))
            elif self.composability == "absolute_difference":
                energies.append(-torch.abs(query - moved))
            else:
                energies.append(query * moved)
        energy = torch.stack(energies, dim=2)
        if self.geometry_prior:
            prior = self.geometry(self.places / max(self.window // 2, 1))  # (window^2, G)
            energy = energy + prior.transpose(0, 1).reshape(1, energy.shape[1], -1, 1, 1)
        inside = torch.stack(shifted(torch.ones_like(x[:1, :1]), self.window), dim=2)  # (1, 1, window^2, H, W)
        return torch.softmax(energy.masked_fill(inside == 0, float("-inf")), dim=2)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights of the window around `position`, averaged over the groups, 0 elsewhere, (B, H, W)."""
        position_index(x.shape[2:], position)
        weights = self.weights(x)[:, :, :, position[0], position[1]].mean(dim=1)
        return paste_window(weights, self.window, position, x)


def paste_window(weights: Tensor, window: int, position: Sequence[int], x: Tensor) -> Tensor:
    """The weights (B, window^2) of the window around a position, on an empty map of x's size, (B, H, W)."""
    reach = window // 2
    canvas = F.pad(torch.zeros_like(x[:, 0]), (reach, reach, reach, reach))
    patch = weights.unflatten(1, (window, window))
    canvas[:, position[0] : position[0] + window, position[1] : position[1] + window] = patch
    return canvas[:, reach : reach + x.shape[2], reach : reach + x.shape[3]]
