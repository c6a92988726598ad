"""Dynamic graph message passing: each position walks to a few neighbours of its own and weighs their messages.

Paper: Zhang, Xu, Arnab, Torr, "Dynamic Graph Message Passing Networks", CVPR 2020, section 3,
https://arxiv.org/abs/1908.06955
Official code consulted: lzrobots/dgmn (the "rigorous" block). Deliberate: the offsets start at zero; every dilation
uses its own affinity, where the released code gives the fourth the filters of its last group.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import position_index, summed_product


class DynamicSampling(nn.Module):
    """The message of one dilation: `m_i = sum_k softmax_k(a_ik) w_ik x(i + s k + offset_ik)` over a 3x3 grid k.

    Offsets are a convolution of x, filters w (one for each group of channels) and affinities a a linear map of the
    nine sampled features.

    Args:
        channels: C of the input.
        dilation: s, the distance of the nine positions before they move.
        groups: channel groups with filters of their own.
        dynamic_sampling: False leaves the offsets at 0.
        dynamic_weights: False sets w to 1.
        dynamic_affinity: False sets the softmax to 1/9.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        *,
        dilation: int,
        groups: int,
        dynamic_sampling: bool,
        dynamic_weights: bool,
        dynamic_affinity: bool,
    ) -> None:
        super().__init__()
        self.dilation = dilation
        self.groups = groups
        self.dynamic_sampling = dynamic_sampling
        self.filters = groups * 9 if dynamic_weights else 0
        self.affinities = 9 if dynamic_affinity else 0
        if dynamic_sampling:
            offset = nn.Conv2d(channels, 2 * 9, 3, padding=dilation, dilation=dilation, bias=False)
            nn.init.zeros_(offset.weight)
            self.offset: nn.Module = offset
        else:
            self.offset = nn.Identity()
        dynamic = self.filters + self.affinities
        # A 3x3 convolution over the moved positions: nine sampled features in, filters and affinities out.
        self.weights = nn.Conv1d(channels * 9, dynamic, 1, bias=False) if dynamic else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        samples = self.sample(x)  # (B, C, 9, N)
        filters, affinity = self.dynamic(samples)  # (B, groups, 9, N), (B, 1, 9, N)
        grouped = samples.unflatten(1, (self.groups, -1))  # (B, groups, c, 9, N)
        message = summed_product(grouped, (filters * affinity).unsqueeze(2), 3)
        return message.reshape(x.shape)

    def sample(self, x: Tensor) -> Tensor:
        """The nine features of each position, bilinear and zero outside the image, (B, C, 9, N)."""
        if not self.dynamic_sampling:
            maps = F.unfold(x, 3, padding=self.dilation, dilation=self.dilation)
            samples: Tensor = maps.unflatten(1, (x.shape[1], 9))
            return samples
        batch, height, width = x.shape[0], x.shape[2], x.shape[3]
        where = self.places(x)  # (B, 2, 9, N)
        # grid_sample counts from -1 to 1 between the outer edges of the border pixels.
        row = (2 * where[:, 0] + 1) / height - 1
        column = (2 * where[:, 1] + 1) / width - 1
        grid = torch.stack([column, row], dim=-1)  # (B, 9, N, 2)
        samples = F.grid_sample(x.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return samples.to(x.dtype).reshape(batch, -1, 9, height * width)

    def places(self, x: Tensor) -> Tensor:
        """Row and column, in pixels, of each position's nine samples, (B, 2, 9, N), in float32 or float64."""
        height, width = x.shape[2], x.shape[3]
        if self.dynamic_sampling:
            offset = self.offset(x).reshape(x.shape[0], 9, 2, height * width)  # (dy, dx) of each tap
        else:
            offset = torch.zeros(x.shape[0], 9, 2, height * width, dtype=x.dtype, device=x.device)
        if offset.dtype != torch.float64:
            offset = offset.float()  # bfloat16 tells no pixel 129 from 128.5
        step = (torch.arange(3, device=x.device) - 1) * self.dilation
        # (N) each; expanded and not repeated, which ONNX would do with the sizes of the example
        rows = torch.arange(height, device=x.device).unsqueeze(1).expand(height, width).reshape(height * width)
        columns = torch.arange(width, device=x.device).unsqueeze(0).expand(height, width).reshape(height * width)
        row = rows + step.repeat_interleave(3).unsqueeze(1)  # (9, N)
        column = columns + step.repeat(3).unsqueeze(1)
        return torch.stack([row + offset[:, :, 0], column + offset[:, :, 1]], dim=1)

    def dynamic(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Filters (B, groups, 9, N) and affinities (B, 1, 9, N), summing to 1 over the nine."""
        filters = torch.ones_like(samples[:, :1])
        affinity = torch.full_like(samples[:, :1], 1 / 9)
        if self.filters + self.affinities > 0:
            both = self.weights(samples.flatten(1, 2))  # (B, filters + affinities, N)
            if self.filters > 0:
                filters = both[:, : self.filters].unflatten(1, (self.groups, 9))
            if self.affinities > 0:
                affinity = torch.softmax(both[:, self.filters :], dim=1).unsqueeze(1)
        return filters, affinity


class DynamicGraphMessagePassing(nn.Module):
    """`x + sum_s gamma_s m_s`, messages from nine positions at each of several dilations; gamma starts at 1.

    Args:
        channels: C of the input.
        dilations: the paper's (1, 4, 8, 12): 36 neighbours a position.
        groups: channel groups with filters of their own.
        dynamic_sampling: let each position move its neighbours; False is the static control.
        dynamic_weights: filters predicted from the neighbours.
        dynamic_affinity: affinities predicted from the neighbours.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(
        self,
        channels: int,
        *,
        dilations: Sequence[int] = (1, 4, 8, 12),
        groups: int = 1,
        dynamic_sampling: bool = True,
        dynamic_weights: bool = True,
        dynamic_affinity: bool = True,
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels do not divide into {groups} groups.")
        self.samplings = nn.ModuleList(
            DynamicSampling(
                channels,
                dilation=dilation,
                groups=groups,
                dynamic_sampling=dynamic_sampling,
                dynamic_weights=dynamic_weights,
                dynamic_affinity=dynamic_affinity,
            )
            for dilation in dilations
        )
        self.gamma = nn.Parameter(torch.ones(len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i, sampling in enumerate(self.samplings):
            out = out + self.gamma[i] * sampling(x)
        return out

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Where the samples of `position` lie, with |gamma * mean filter * affinity| spread bilinearly, (B, H, W)."""
        batch, height, width = x.shape[0], x.shape[2], x.shape[3]
        index = position_index((height, width), position)
        total = torch.zeros(batch, height, width, dtype=x.dtype, device=x.device)
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        for gamma, sampling in zip(self.gamma, cast(list[DynamicSampling], self.samplings), strict=True):
            filters, affinity = sampling.dynamic(sampling.sample(x))
            weight = (gamma * filters.mean(dim=1) * affinity[:, 0])[:, :, index].abs()  # (B, 9)
            where = sampling.places(x)[:, :, :, index]  # (B, 2, 9)
            near_y = (1 - (where[:, 0, :, None] - rows).abs()).clamp(min=0)  # (B, 9, H)
            near_x = (1 - (where[:, 1, :, None] - columns).abs()).clamp(min=0)
            total = total + torch.einsum("bk,bkh,bkw->bhw", weight, near_y, near_x)
        return total
