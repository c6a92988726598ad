"""Symbolic graph reasoning: features vote for the nodes of a given graph, whose answers are mapped back.

Paper: Liang, Hu, Zhang, Lin, Xing, "Symbolic Graph Reasoning Meets Convolutions", NeurIPS 2018, section 3
No official code. Deliberate: votes are averaged over the positions, not summed, because sizes vary.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segvid.attention.functional import matmul_float32, position_index


class SymbolicGraphReasoning(nn.Module):
    """`x + ReLU(M H W_sp)`: votes to nodes, one graph convolution with the nodes' embeddings, and a mapping M back.

    Nodes: `H_ps = ReLU(1/N sum_i softmax_m(W_a x_i) W_ps x_i)`; graph: `H = ReLU(A^ [H_ps, E] W_g)` with
    `A^ = D^-1/2 (A + I) D^-1/2`; mapping: compatibilities of position and node through a softmax over the positions,
    then each position's row divided by its sum.

    As published the compatibility is `w . [h_m, x_i] = u_m + v_i`: its softmax over i does not depend on m, so after
    the row normalisation M is 1/M everywhere, and the layer adds one vector to all positions. "bilinear",
    `h_m . W x_i`, is the form that can tell positions apart.

    Args:
        channels: C of the input.
        nodes: number of nodes; taken from the files when these are given, else 64.
        adjacency: file of the M x M adjacency (.csv, or .pt of a tensor); every node to every node when None.
        embeddings: file of the M x K embeddings of the nodes' names (.csv or .pt); one-hot when None.
        node_channels: channels of a node; C / 2 when None.
        mapping: "published" or "bilinear".

    Shape:
        (B, C, *grid) -> (B, C, *grid), grid of any number of axes.

    Raises:
        ValueError: a file is missing, is no matrix of numbers, or does not fit the other one.
    """

    adjacency: Tensor
    embeddings: Tensor

    def __init__(
        self,
        channels: int,
        *,
        nodes: int | None = None,
        adjacency: str | Path | None = None,
        embeddings: str | Path | None = None,
        node_channels: int | None = None,
        mapping: Literal["published", "bilinear"] = "published",
    ) -> None:
        super().__init__()
        if mapping not in ("published", "bilinear"):
            raise ValueError(f"mapping is {mapping!r}; use 'published' or 'bilinear'.")
        graph = None if adjacency is None else read_matrix(adjacency)
        words = None if embeddings is None else read_matrix(embeddings)
        if graph is not None and graph.shape[0] != graph.shape[1]:
            raise ValueError(f"{adjacency} is {graph.shape[0]} x {graph.shape[1]}: an adjacency matrix is square.")
        found = {f"{adjacency}": graph, f"{embeddings}": words}
        counts = {name: len(matrix) for name, matrix in found.items() if matrix is not None}
        nodes = nodes or next(iter(counts.values()), 64)
        for name, count in counts.items():
            if count != nodes:
                raise ValueError(f"{name} has {count} rows, but the graph has {nodes} nodes.")
        graph = torch.ones(nodes, nodes) if graph is None else graph
        words = torch.eye(nodes) if words is None else words
        degree = (graph + torch.eye(nodes)).sum(dim=1)
        if adjacency is not None and (degree <= 0).any():
            raise ValueError(f"{adjacency}: row {int((degree <= 0).nonzero()[0]) + 1} has no positive sum.")
        self.register_buffer("adjacency", (graph + torch.eye(nodes)) / (degree[:, None] * degree[None, :]).sqrt())
        self.register_buffer("embeddings", words)
        inner = node_channels or max(channels // 2, 1)
        self.mapping = mapping
        self.vote = nn.Conv1d(channels, nodes, 1)
        self.to_node = nn.Conv1d(channels, inner, 1, bias=False)
        self.graph_conv = nn.Linear(inner + words.shape[1], inner, bias=False)
        pair = (inner + channels, 1) if mapping == "published" else (channels, inner)
        self.compatibility = nn.Linear(*pair, bias=False)
        self.to_position = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # (B, C, N)
        states = self.reason(tokens)  # (B, M, D)
        mapping = self.map_back(tokens, states)  # (B, N, M)
        out = F.relu(torch.matmul(mapping, self.to_position(states)))  # (B, N, C)
        return x + out.transpose(1, 2).reshape(x.shape)

    def reason(self, tokens: Tensor) -> Tensor:
        """Votes and graph convolution: the nodes' states, (B, M, D)."""
        votes = torch.softmax(self.vote(tokens), dim=1)  # (B, M, N)
        gathered = matmul_float32(votes, self.to_node(tokens).transpose(1, 2)) / tokens.shape[2]
        states = F.relu(gathered).to(tokens.dtype)  # (B, M, D)
        words = self.embeddings.to(states.dtype).expand(states.shape[0], -1, -1)
        states = self.graph_conv(torch.cat([states, words], dim=2))
        return F.relu(torch.matmul(self.adjacency.to(states.dtype), states))

    def map_back(self, tokens: Tensor, states: Tensor) -> Tensor:
        """How much of each node every position receives, rows summing to 1, (B, N, M)."""
        if self.mapping == "published":
            node, own = self.compatibility.weight[0].split([states.shape[2], tokens.shape[1]])
            u = torch.matmul(states, node.unsqueeze(1)).transpose(1, 2)  # (B, 1, M)
            v = torch.matmul(tokens.transpose(1, 2), own.unsqueeze(1))  # (B, N, 1)
            compatibility = u + v  # w . [h_m, x_i] = u_m + v_i
        else:
            compatibility = torch.matmul(self.compatibility(tokens.transpose(1, 2)), states.transpose(1, 2))
        # A softmax over the positions, then each row divided by its sum: in logarithms, as no number of the softmax may
        # be left of the row of a position far below the others.
        return torch.softmax(torch.log_softmax(compatibility, dim=1), dim=2)

    def attention_map(self, x: Tensor, position: Sequence[int]) -> Tensor:
        """Mapping back times votes, the graph step left out, (B, *grid)."""
        tokens = x.flatten(2)
        votes = torch.softmax(self.vote(tokens), dim=1) / tokens.shape[2]
        row = self.map_back(tokens, self.reason(tokens))[:, position_index(x.shape[2:], position)]
        return torch.einsum("bm,bmn->bn", row, votes).reshape(x.shape[0], *x.shape[2:])

    def regions(self, x: Tensor) -> Tensor:
        """The votes, (B, M, *grid): which node each position belongs to."""
        return torch.softmax(self.vote(x.flatten(2)), dim=1).reshape(x.shape[0], -1, *x.shape[2:])


def read_matrix(path: str | Path) -> Tensor:
    """A matrix of numbers from a .csv file (no header) or a .pt file (one tensor, as torch.save writes it).

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a .csv or .pt file of a matrix.")
    try:
        if path.suffix == ".pt":
            matrix = torch.load(path, weights_only=True)
            if not isinstance(matrix, Tensor):
                raise ValueError("it holds no tensor")
        else:
            with path.open(newline="") as file:
                matrix = torch.tensor([[float(cell) for cell in row] for row in csv.reader(file) if row])
        if matrix.dim() != 2 or not matrix.isfinite().all():
            raise ValueError("it is not two-dimensional and finite")
    except (ValueError, RuntimeError, EOFError, LookupError, UnpicklingError, csv.Error) as error:
        raise ValueError(f"{path} is no matrix of numbers ({' '.join(str(error).split())[:120]}).") from error
    return matrix.float()
