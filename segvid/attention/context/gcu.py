"""Graph convolution units: positions are assigned to learned anchors, whose residuals form a graph.

Paper: Li, Gupta, "Beyond Grids: Learning Graph Representations for Visual Recognition", NeurIPS 2018, section 3
No public code. Anchors and widths come from k-means on features, as the paper has it: here on the first training batch.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import matmul_float32
from segvid.attention.layers import point_conv_bn_relu


class GraphConvolutionUnit(nn.Module):
    """One graph of K nodes: `Q ReLU(A Z W)`, assignment Q, node features Z, adjacency `A = Z Z^T`.

    `q_ik = softmax_k(-|| (x_i - w_k) / sigma_k ||^2 / 2)`; z_k is the assignment-weighted mean of the residuals
    `(x_i - w_k) / sigma_k`, L2-normalised; `sigma = sigmoid(width)`.

    Args:
        channels: C of the input.
        nodes: K.
        graph_channels: channels of the result.
        graph: False leaves A out.

    Shape:
        tokens (B, C, N) -> (B, graph_channels, N).
    """

    def __init__(self, channels: int, *, nodes: int, graph_channels: int, graph: bool = True) -> None:
        super().__init__()
        self.graph = graph
        self.anchors = nn.Parameter(torch.randn(nodes, channels).abs())  # replaced by k-means
        self.width = nn.Parameter(torch.zeros(nodes, channels))
        self.weight = nn.Linear(channels, graph_channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        q = self.assign(tokens)  # (B, K, N)
        z = self.node_features(tokens, q)  # (B, K, C)
        states = torch.matmul(torch.matmul(z, z.transpose(1, 2)), z) if self.graph else z
        states = F.relu(self.weight(states.to(tokens.dtype)))  # (B, K, D)
        return torch.matmul(states.transpose(1, 2), q.to(states.dtype))

    def assign(self, tokens: Tensor) -> Tensor:
        """The assignment of the positions, (B, K, N), summing to 1 over K."""
        # || (x - w) / s ||^2 as three products: no (K, N, C) tensor. In float32: they nearly cancel.
        inverse = 1 / torch.sigmoid(self.width)
        precision = inverse**2  # (K, C)
        if tokens.dtype != torch.float64:
            tokens = tokens.float()
        square = matmul_float32(precision, tokens**2)
        mixed = matmul_float32(precision * self.anchors, tokens)
        constant = (self.anchors * inverse).square().sum(dim=1, keepdim=True)  # (K, 1)
        return torch.softmax(mixed - 0.5 * (square + constant), dim=1)

    def node_features(self, tokens: Tensor, q: Tensor) -> Tensor:
        """Normalised mean residual of each node, (B, K, C)."""
        total = q.sum(dim=2, keepdim=True)  # (B, K, 1)
        mean = matmul_float32(q, tokens.transpose(1, 2)) / total.clamp(min=1e-12)
        return F.normalize((mean - self.anchors) / torch.sigmoid(self.width), dim=2)


class GraphConvolutionUnits(nn.Module):
    """`ReLU(BN(W concat(x, graph_1(x), graph_2(x), ...)))`, a graph for each number of nodes.

    Args:
        channels: C of the input.
        graphs: nodes of each graph.
        graph_channels: channels that each contributes; C / 2 when None (the paper's 256).
        graph: False leaves the adjacency out.

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    initialised: Tensor

    def __init__(
        self,
        channels: int,
        *,
        graphs: Sequence[int] = (2, 4, 8, 32),
        graph_channels: int | None = None,
        graph: bool = True,
    ) -> None:
        super().__init__()
        graph_channels = graph_channels or max(channels // 2, 1)
        self.units = nn.ModuleList(
            GraphConvolutionUnit(channels, nodes=nodes, graph_channels=graph_channels, graph=graph) for nodes in graphs
        )
        self.fuse = point_conv_bn_relu(channels + len(graphs) * graph_channels, channels)
        self.register_buffer("initialised", torch.tensor(False))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        if self.training:
            self.initialise(tokens)
        maps = [tokens]
        for unit in self.units:
            maps.append(unit(tokens))
        out: Tensor = self.fuse(torch.cat(maps, dim=1)).reshape(x.shape)
        return out

    @torch.jit.unused
    @torch.no_grad()
    def initialise(self, tokens: Tensor) -> None:
        """Anchors and widths by k-means on the features (B, C, N) of the first training batch; on rank 0 for all."""
        if self.initialised:
            return
        units = cast(list[GraphConvolutionUnit], self.units)
        points = tokens.transpose(1, 2).reshape(-1, tokens.shape[1]).to(units[0].anchors.dtype)
        points = points[torch.linspace(0, len(points) - 1, min(len(points), 4096), device=points.device).long()]
        for unit in units:
            centres, deviation = k_means(points, len(unit.anchors))
            unit.anchors.copy_(centres)
            unit.width.copy_(torch.logit(deviation.clamp(0.05, 0.95)))  # sigma = sigmoid(width)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for unit in units:
                torch.distributed.broadcast(unit.anchors, 0)
                torch.distributed.broadcast(unit.width, 0)
        self.initialised.fill_(True)

    def regions(self, x: Tensor) -> Tensor:
        """The assignment of the largest graph, (B, K, *grid)."""
        largest = max(cast(list[GraphConvolutionUnit], self.units), key=lambda unit: len(unit.anchors))
        return largest.assign(x.flatten(2)).reshape(x.shape[0], -1, *x.shape[2:])


def k_means(points: Tensor, count: int, iterations: int = 10) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from farthest-point starts: centres and standard deviations by channel, (count, C) each.

    A centre without points takes the deviation of all points.
    """
    centres = points[:1]
    distance = torch.cdist(points, centres)[:, 0]
    while len(centres) < count:
        centres = torch.cat([centres, points[distance.argmax()][None]])
        distance = torch.minimum(distance, torch.cdist(points, centres[-1:])[:, 0])
    for _ in range(iterations):
        member = F.one_hot(torch.cdist(points, centres).argmin(dim=1), count).to(points.dtype)  # (n, count)
        size = member.sum(dim=0)[:, None]
        centres = torch.where(size > 0, member.T @ points / size.clamp(min=1), centres)
    variance = member.T @ points**2 / size.clamp(min=1) - centres**2
    deviation = torch.where(size > 1, variance.clamp(min=0).sqrt(), points.std(dim=0, correction=0))
    return centres, deviation
