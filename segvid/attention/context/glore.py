"""Global reasoning unit: project the map onto a few nodes, reason on their graph, project back.

Paper: Chen, Rohrbach, Yan, Yan, Feng, Kalantidis, "Graph-Based Global Reasoning Networks", CVPR 2019, section 3,
https://arxiv.org/abs/1811.12814
Official code consulted: facebookresearch/GloRe. As there, the graph step adds (I + A) where the paper writes (I - A).
Deliberate: the node states are means over the positions, not sums, because evaluation sees other sizes than training.
The last batch norm starts at zero: in the unit itself as its authors' comment asks, where they leave it to the network,
whose constructor sets it to zero last.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import matmul_float32, position_index
from segvid.attention.layers import zero_norm


class GlobalReasoning(nn.Module):
    """`BN(W Z' P) + x` with `Z = S P^T / N` (nodes), `Z' = W_s ReLU(A Z + Z)` (graph step); P projects both ways.

    Args:
        channels: C of the input.
        nodes: number of nodes; C / 4 when None.
        states: channels of a node; 2 * nodes when None.
        graph: "full" step; "nodes", `A Z + Z` alone; "states", `W_s ReLU(Z)` alone; "none", Z' = Z, which leaves a
            tied, unnormalised double attention.
        tied: the reprojection is the projection, as released.
        normalize: divide by the number of positions N; the released code does so as an option.
        softmax_projection: softmax over the nodes on the projection (and the untied reprojection).

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.
    """

    def __init__(
        self,
        channels: int,
        *,
        nodes: int | None = None,
        states: int | None = None,
        graph: Literal["full", "nodes", "states", "none"] = "full",
        tied: bool = True,
        normalize: bool = True,
        softmax_projection: bool = False,
    ) -> None:
        super().__init__()
        if graph not in ("full", "nodes", "states", "none"):
            raise ValueError(f"graph is {graph!r}; use 'full', 'nodes', 'states' or 'none'.")
        nodes = nodes or max(channels // 4, 1)
        states = states or 2 * nodes
        self.graph = graph
        self.tied = tied
        self.normalize = normalize
        self.softmax_projection = softmax_projection
        self.state = nn.Conv1d(channels, states, 1)
        self.projection = nn.Conv1d(channels, nodes, 1)
        self.reprojection = nn.Identity() if tied else nn.Conv1d(channels, nodes, 1)
        self.conv_nodes = nn.Conv1d(nodes, nodes, 1) if graph in ("full", "nodes") else nn.Identity()
        self.conv_states = nn.Conv1d(states, states, 1, bias=False) if graph in ("full", "states") else nn.Identity()
        self.out = nn.Conv1d(states, channels, 1, bias=False)
        for conv in self.modules():
            if isinstance(conv, nn.Conv1d):
                nn.init.xavier_uniform_(conv.weight)
        self.norm = zero_norm(channels, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        projection, reprojection = self.project(tokens)  # (B, K, N)
        z = matmul_float32(self.state(tokens), projection.transpose(1, 2))  # (B, S, K)
        if self.normalize:
            z = z / tokens.shape[2]
        z = self.reason(z)
        y = torch.matmul(z.to(reprojection.dtype), reprojection)  # (B, S, N)
        out: Tensor = self.norm(self.out(y)).reshape(x.shape)
        return out + x

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the nodes at each position, there and back, (B, K, N) each."""
        projection = self.projection(tokens)
        if self.softmax_projection:
            projection = torch.softmax(projection, dim=1)
        if self.tied:
            return projection, projection
        reprojection = self.reprojection(tokens)
        if self.softmax_projection:
            reprojection = torch.softmax(reprojection, dim=1)
        return projection, reprojection

    def reason(self, z: Tensor) -> Tensor:
        """The graph step on the node states, (B, S, K) -> (B, S, K)."""
        if self.graph == "full" or self.graph == "nodes":
            z = self.conv_nodes(z.transpose(1, 2)).transpose(1, 2) + z
        if self.graph == "full" or self.graph == "states":
            z = self.conv_states(F.relu(z))
        return z

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Affinity of projection and reprojection, the graph step left out, (B, *grid); may be negative."""
        projection, reprojection = self.project(x.flatten(2))
        index = position_index(x.shape[2:], position)
        affinity = torch.einsum("bk,bkn->bn", reprojection[:, :, index], projection)
        if self.normalize:
            affinity = affinity / projection.shape[2]
        return affinity.reshape(x.shape[0], *x.shape[2:])

    def regions(self, x: Tensor) -> Tensor:
        """The weight of each node at each position, (B, K, *grid); may be negative."""
        return self.project(x.flatten(2))[0].reshape(x.shape[0], -1, *x.shape[2:])
