"""Point-wise spatial attention: every position predicts its attention map by a convolution, none is compared.

Paper: Zhao, Zhang, Liu, Shi, Loy, Lin, Jia, "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV
2018, section 3
Official code consulted: hszhao/semseg (model/psanet.py, lib/psa). Where it has a compiled operator, the map of
relative offsets is turned into one of absolute positions by a single gather.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import plain_formula, position_index
from segvid.attention.layers import conv_bn_relu


class PointwiseSpatialAttention(nn.Module):
    """`proj(concat(collect, distribute))`, each `Z_i = sum_j softmax_j(a_ij) x_j` with predicted a, on a shrunk map.

    Collect: a_ij is what position i predicted for the offset j - i (the receiver decides). Distribute: a_ij is what
    position j predicted for the offset i - j (the sender decides). In the over-complete form a position predicts one
    value for each offset of a window centred on it, 0 for offsets outside; in the compact form one value for each
    position of a map of fixed size.

    Args:
        channels: C of the input.
        inner_channels: channels of the shrunk map; the paper's C / 4 when None.
        mask_size: height and width of the predicted map. Over-complete: 2 h - 1 covers all offsets of a shrunk map of
            height h (97 for crops of 769, shrunk by 2 to 49); an even size M is centred at (M - 1) // 2, as released.
            Compact: the size of the shrunk map itself.
        direction: which of the two attentions.
        compact: predict absolute positions; the module then takes one image size only.
        shrink: the map is reduced to 1 / shrink before attention and brought back after it.
        normalization: the average is divided by it; by the number of mask elements when None.

    Shape:
        (B, C, H, W) -> (B, C, H, W), to be concatenated with the input (no residual).
    """

    def __init__(
        self,
        channels: int,
        *,
        inner_channels: int | None = None,
        mask_size: tuple[int, int] = (97, 97),
        direction: Literal["both", "collect", "distribute"] = "both",
        compact: bool = False,
        shrink: int = 2,
        normalization: float | None = 1.0,
    ) -> None:
        super().__init__()
        if direction not in ("both", "collect", "distribute"):
            raise ValueError(f"direction is {direction!r}; use 'both', 'collect' or 'distribute'.")
        inner = inner_channels or max(channels // 4, 1)
        self.mask_size = (mask_size[0], mask_size[1])
        self.centre = ((mask_size[0] - 1) // 2, (mask_size[1] - 1) // 2)  # the offset 0
        self.compact = compact
        self.shrink = shrink
        elements = mask_size[0] * mask_size[1]
        self.normalization = float(elements) if normalization is None else normalization
        self.directions = ["collect", "distribute"] if direction == "both" else [str(direction)]
        self.reduce = nn.ModuleList(conv_bn_relu(channels, inner) for _ in self.directions)
        self.attention = nn.ModuleList(
            nn.Sequential(conv_bn_relu(inner, inner), nn.Conv2d(inner, elements, 1, bias=False))
            for _ in self.directions
        )
        self.proj = conv_bn_relu(len(self.directions) * inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for i, (reduce, attention) in enumerate(zip(self.reduce, self.attention)):  # noqa: B905 TorchScript
            reduced = self.shrunk(reduce(x))  # (B, c, h, w)
            if torch.jit.is_scripting():  # type: ignore[attr-defined]
                affinity = self.affinity(attention(reduced), self.directions[i])  # (B, n, n), sources x targets
            else:
                affinity = self.affinity_within_reach(attention, reduced, self.directions[i])
            context = torch.matmul(reduced.flatten(2), affinity) / self.normalization  # (B, c, n)
            maps.append(context.reshape(reduced.shape))
        out = self.proj(torch.cat(maps, dim=1))
        return F.interpolate(out, size=x.shape[2:], mode="bilinear", align_corners=True)

    def shrunk(self, x: Tensor) -> Tensor:
        """To (H - 1) // shrink + 1 positions."""
        size = [(x.shape[2] - 1) // self.shrink + 1, (x.shape[3] - 1) // self.shrink + 1]
        return F.interpolate(x, size=size, mode="bilinear", align_corners=True)

    def affinity(self, mask: Tensor, direction: str) -> Tensor:
        """Weights from the predicted mask (B, Mh * Mw, h, w): (B, sources, targets), softmax over the sources."""
        if self.compact:
            if mask.shape[2] != self.mask_size[0] or mask.shape[3] != self.mask_size[1]:
                raise ValueError(
                    f"compact attention was built for a shrunk map of {self.mask_size[0]} x {self.mask_size[1]} "
                    f"(mask_size) and got {mask.shape[2]} x {mask.shape[3]}: keep one image size, or use compact=False."
                )
            others = mask.flatten(2)  # (B, n others, n predicting)
        else:
            others = self.absolute(mask, 0, 0, self.mask_size[1])
        return self.normalised(others, direction)

    def normalised(self, others: Tensor, direction: str) -> Tensor:
        """Softmax over the sources of (B, others, predicting positions); (B, sources, targets)."""
        if direction == "collect":
            return torch.softmax(others, dim=1)  # the predicting position is the target
        return torch.softmax(others, dim=2).transpose(1, 2)  # it is the source

    @torch.jit.unused
    def affinity_within_reach(self, attention: nn.Module, x: Tensor, direction: str) -> Tensor:
        """The same; of a small map only the offsets that lie on it are predicted, since the others are never read."""
        if self.compact or plain_formula():
            return self.affinity(attention(x), direction)
        hidden, conv = cast(nn.Sequential, attention)
        assert isinstance(conv, nn.Conv2d)
        top, left = (max(c - n + 1, 0) for c, n in zip(self.centre, x.shape[2:], strict=True))
        bottom, right = (min(c + n, m) for c, n, m in zip(self.centre, x.shape[2:], self.mask_size, strict=True))
        weight = conv.weight.unflatten(0, self.mask_size)[top:bottom, left:right].flatten(0, 1)
        others = self.absolute(F.conv2d(hidden(x), weight), top, left, right - left)
        return self.normalised(others, direction)

    def absolute(self, mask: Tensor, top: int, left: int, mask_width: int) -> Tensor:
        """From relative offsets to positions: [b, j, i] = mask[b, offset j - i, i], 0 where the mask ends.

        The mask may be a part of the whole: from row `top` and column `left` on, `mask_width` columns wide.
        """
        height, width = mask.shape[2], mask.shape[3]
        offsets = mask.shape[1]
        rows = torch.arange(height, device=mask.device)
        columns = torch.arange(width, device=mask.device)
        dy = rows[:, None] - rows[None, :] + (self.centre[0] - top)  # (h of j, h of i)
        dx = columns[:, None] - columns[None, :] + (self.centre[1] - left)
        known_y = ((dy >= 0) & (dy < offsets // mask_width))[:, None, :, None]
        known_x = ((dx >= 0) & (dx < mask_width))[None, :, None, :]
        index = (dy * mask_width)[:, None, :, None] + dx[None, :, None, :]  # (h, w of j, h, w of i)
        index = torch.where(known_y & known_x, index, offsets)
        count = height * width
        index = index.reshape(1, count, count).expand(mask.shape[0], -1, -1)
        with_zero = F.pad(mask.flatten(2), (0, 0, 0, 1))  # the last row stands for all offsets outside
        return torch.gather(with_zero, 1, index)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Weights for the position, averaged over the directions, at full size (B, H, W)."""
        position_index(x.shape[2:], position)
        maps = []
        for reduce, attention, direction in zip(self.reduce, self.attention, self.directions, strict=True):
            mask = attention(self.shrunk(reduce(x)))
            nearest = [min(round(p / self.shrink), s - 1) for p, s in zip(position, mask.shape[2:], strict=True)]
            target = position_index(mask.shape[2:], nearest)
            maps.append(self.affinity(mask, direction)[:, :, target].reshape(-1, 1, *mask.shape[2:]))
        mean = torch.stack(maps).mean(dim=0)
        return F.interpolate(mean, size=x.shape[2:], mode="bilinear", align_corners=True)[:, 0]
