"""Mechanisms that go through a few nodes, bases, tokens or one context vector instead of comparing all positions.

Positions i, j and nodes m, k are spelled out one by one. A convolution with batch norm and ReLU is `(weight, norm)`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.reference.layers import Convolution, Norm, adaptive_avg_pool2d, batch_norm, conv_bn_relu, pointwise
from tests.reference.pairwise import ConvNormReLU, attention_weights, weigh


def softmax(logits: Tensor) -> Tensor:
    """`exp(l) / sum exp(l)` over all entries of a vector."""
    numerators = torch.exp(logits)
    return numerators / numerators.sum()


def unit(vector: Tensor) -> Tensor:
    """The vector at Euclidean length 1; a vector of zeros stays."""
    length = torch.sqrt((vector**2).sum() + (0 if bool(vector.any()) else 1))
    return vector / length


def over_rows(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """`function` of every row (one node, or one channel, at all positions)."""
    return torch.stack([function(row) for row in matrix.unbind(0)], dim=0)


def over_columns(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """`function` of every column (all nodes, or all channels, at one position)."""
    return torch.stack([function(column) for column in matrix.unbind(1)], dim=1)


# Double attention


def double_attention(
    x: Tensor, feature: Convolution, gather: Convolution, distribute: Convolution, out: Convolution, norm: Norm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chen et al. (A2-Net), NeurIPS 2018, section 3: output, weights P_ij = sum_k V_ki B_kj, gather and distribution.

    The gathering maps B sum to 1 over the positions, the distributing ones V over the nodes.
    """
    affinities, gathered, distributed = [], [], []
    for b, v in zip(pointwise(x, *gather).flatten(2), pointwise(x, *distribute).flatten(2), strict=True):
        b, v = over_rows(softmax, b), over_columns(softmax, v)
        rows = [torch.stack([(v_i * b_j).sum() for b_j in b.unbind(1)]) for v_i in v.unbind(1)]
        affinities.append(torch.stack(rows))
        gathered.append(b)
        distributed.append(v)
    affinity = torch.stack(affinities)
    z = weigh(affinity, pointwise(x, *feature), x.shape[2:])
    y = x + batch_norm(pointwise(z, *out), *norm)
    return y, affinity, torch.stack(gathered), torch.stack(distributed)


# Compact generalised non-local


def cgnl_affinity(theta: Tensor, phi: Tensor, kernel: str, order: int, gamma: float) -> Tensor:
    """The weights of one scalar theta on the scalars phi of its group, Yue et al. (CGNL), NeurIPS 2018, section 3.

    "rbf": Taylor's expansion of exp(2 gamma theta phi) up to `order`, times exp(-2 gamma).
    """
    if kernel == "dot":
        return theta * phi
    terms = [(2 * gamma * theta * phi) ** n / math.factorial(n) for n in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """Wu and He 2018: mean and variance of the channels of one group at all positions of one sample, epsilon 1e-5."""
    channels = x.shape[1] // groups
    samples = []
    for sample in x:
        normalised = []
        for group in sample.split(channels):
            centre = group.mean()
            normalised.append((group - centre) / torch.sqrt(((group - centre) ** 2).mean() + 1e-5))
        samples.append(torch.cat(normalised))
    y = torch.stack(samples)
    return torch.stack([weight[c] * y[:, c] + bias[c] for c in range(x.shape[1])], dim=1)


def compact_generalized_non_local(
    x: Tensor,
    theta: Convolution,
    phi: Convolution,
    g: Convolution,
    z: Convolution,
    norm: Norm | None,
    norm_kind: str,
    groups: int,
    kernel: str,
    order: int = 3,
    gamma: float = 1e-4,
    scale: bool = False,
) -> Tensor:
    """Yue et al. (CGNL), NeurIPS 2018, sections 3.2 and 3.3: every channel of every position attends to all of them.

    That is inside each of `groups` groups of channels, as the convolution `z` is. "sign" is the dot kernel with the
    sign of <phi, g> in its place. `scale` divides by the square root of the size of a group, which a sign ignores.
    """
    samples = []
    for t, p, v in zip(*(pointwise(x, *conv).flatten(2) for conv in (theta, phi, g)), strict=True):
        channels = t.shape[0] // groups
        parts = []
        for t_g, p_g, v_g in zip(t.split(channels), p.split(channels), v.split(channels), strict=True):
            divisor = math.sqrt(t_g.numel()) if scale else 1.0
            y_g = []
            for one in t_g.flatten():
                if kernel == "sign":
                    y_g.append(one * torch.sign((p_g * v_g).sum()))
                else:
                    weights = cgnl_affinity(one, p_g.flatten(), kernel, order, gamma)
                    y_g.append((weights * v_g.flatten()).sum() / divisor)
            parts.append(torch.stack(y_g).reshape(t_g.shape))
        samples.append(parts)
    mixed = []
    for parts in samples:  # the grouped convolution
        weights = z[0].flatten(1).chunk(groups)
        mixed.append(torch.cat([weight @ part for weight, part in zip(weights, parts, strict=True)]))
    y = torch.stack(mixed).reshape(x.shape)
    if norm_kind == "group":
        y = group_norm(y, norm[0], norm[1], groups)
    elif norm_kind == "batch":
        y = batch_norm(y, *norm)
    return x + y


# Global reasoning


def glore_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, variance: Tensor | None) -> Tensor:
    """Batch norm with epsilon 1e-4."""
    if mean is None:
        mean = torch.stack([x[:, c].mean() for c in range(x.shape[1])])
        variance = torch.stack([((x[:, c] - mean[c]) ** 2).mean() for c in range(x.shape[1])])
    return batch_norm(x, weight, bias, mean, variance + (1e-4 - 1e-5))


def global_reasoning(
    x: Tensor,
    state: Convolution,
    project: Convolution,
    reproject: Convolution | None,
    node_conv: Convolution | None,
    state_conv: Convolution | None,
    out: Convolution,
    norm: Norm,
    normalize: bool,
    softmax_projection: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chen et al. (GloRe), CVPR 2019, section 3: the output, the projection and the reprojection (B, M, N).

    `reproject` None: tied to the projection. A graph convolution that is None is left out.
    """

    def maps(conv: Convolution) -> Tensor:
        logits = pointwise(x, *conv).flatten(2)
        return torch.stack([over_columns(softmax, sample) for sample in logits]) if softmax_projection else logits

    into = maps(project)
    back = into if reproject is None else maps(reproject)
    states = pointwise(x, *state).flatten(2)
    samples = []
    for s, b, r in zip(states, into, back, strict=True):
        nodes = []
        for b_m in b.unbind(0):  # the state of node m: the positions' states by their projection on it
            total = sum(b_m[i] * s[:, i] for i in range(s.shape[1]))
            nodes.append(total / s.shape[1] if normalize else total)
        if node_conv is not None:
            weight, bias = node_conv[0].flatten(1), node_conv[1]
            received = []
            for m in range(len(nodes)):
                received.append(sum(weight[m, k] * nodes[k] for k in range(len(nodes))) + bias[m] + nodes[m])
            nodes = received
        if state_conv is not None:
            nodes = [state_conv[0].flatten(1) @ node.clamp(min=0) for node in nodes]
        y = [sum(r[m, i] * nodes[m] for m in range(len(nodes))) for i in range(s.shape[1])]
        samples.append(torch.stack(y, dim=1))
    y = torch.stack(samples).reshape(x.shape[0], -1, *x.shape[2:])
    return x + glore_batch_norm(pointwise(y, *out), *norm), into, back


# Symbolic graph reasoning


def normalised_adjacency(adjacency: Tensor) -> Tensor:
    """Q^-1/2 (A + I) Q^-1/2 with Q the row sums of A + I."""
    nodes = adjacency.shape[0]
    entries = [[adjacency[m, k] + (1.0 if m == k else 0.0) for k in range(nodes)] for m in range(nodes)]
    degrees = [sum(row) for row in entries]
    rows = [[entries[m][k] / torch.sqrt(degrees[m] * degrees[k]) for k in range(nodes)] for m in range(nodes)]
    return torch.stack([torch.stack(row) for row in rows])


def symbolic_graph_reasoning(
    x: Tensor,
    assign: Convolution,
    to_nodes: Tensor,
    adjacency: Tensor,
    embeddings: Tensor,
    graph: Tensor,
    compatibility: tuple[Tensor, Tensor] | Tensor,
    back: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Liang et al. (SGR), NeurIPS 2018, section 3: the output, the votes and the semantic-to-local map, both (B, M, N).

    Sums over the positions are means. `compatibility` (w_h, w_x): the compatibility of node m and position i is
    w_h.h_m + w_x.x_i, as published; one matrix W: it is h_m.(W x_i).
    """
    outputs, votes, maps = [], [], []
    spread = normalised_adjacency(adjacency)
    for sample, logits in zip(x.flatten(2), pointwise(x, *assign).flatten(2), strict=True):
        positions = sample.shape[1]
        a = over_columns(softmax, logits)
        nodes = []
        for m in range(a.shape[0]):
            voted = sum(a[m, i] * (to_nodes.flatten(1) @ sample[:, i]) for i in range(positions)) / positions
            nodes.append(torch.cat([voted.clamp(min=0), embeddings[m]]))
        evolved = []
        for m in range(len(nodes)):
            evolved.append((graph.flatten(1) @ sum(spread[m, k] * nodes[k] for k in range(len(nodes)))).clamp(min=0))
        compat = []
        for h in evolved:
            if isinstance(compatibility, tuple):
                w_h, w_x = (weight.flatten() for weight in compatibility)
                logits = [(w_h * h).sum() + (w_x * sample[:, i]).sum() for i in range(positions)]
            else:
                logits = [(h * (compatibility.flatten(1) @ sample[:, i])).sum() for i in range(positions)]
            compat.append(softmax(torch.stack(logits)))
        mapping = over_columns(lambda column: column / column.abs().sum(), torch.stack(compat))
        returned = [back.flatten(1) @ h for h in evolved]
        y = [sum(mapping[m, i] * returned[m] for m in range(len(nodes))).clamp(min=0) for i in range(positions)]
        outputs.append(sample + torch.stack(y, dim=1))
        votes.append(a)
        maps.append(mapping)
    return torch.stack(outputs).reshape(x.shape), torch.stack(votes), torch.stack(maps)


# Beyond grids


def graph_convolution_unit(
    x: Tensor, anchors: Tensor, sigma: Tensor, weight: Tensor, graph: bool
) -> tuple[Tensor, Tensor]:
    """Li and Gupta, NeurIPS 2018 (Beyond Grids), section 3: the reprojection and the assignment (B, K, N).

    `anchors` and `sigma` (K, C), `weight` (D, C) as a convolution's. Without `graph` the nodes do not mix.
    """
    samples, assignments = [], []
    for sample in x.flatten(2):
        q = []
        for x_i in sample.unbind(1):
            distances = [(((x_i - w) / s) ** 2).sum() for w, s in zip(anchors, sigma, strict=True)]
            q.append(softmax(-0.5 * torch.stack(distances)))
        assignment = torch.stack(q, dim=1)
        nodes = []
        for q_k, w, s in zip(assignment, anchors, sigma, strict=True):
            residual = sum(q_ki * (x_i - w) / s for q_ki, x_i in zip(q_k, sample.unbind(1), strict=True)) / q_k.sum()
            nodes.append(unit(residual))
        received = nodes
        if graph:
            received = [sum((z * other).sum() * other for other in nodes) for z in nodes]
        evolved = [(weight.flatten(1) @ z).clamp(min=0) for z in received]
        back = [sum(q_ki * z for q_ki, z in zip(q_i, evolved, strict=True)) for q_i in assignment.unbind(1)]
        samples.append(torch.stack(back, dim=1))
        assignments.append(assignment)
    return torch.stack(samples).reshape(x.shape[0], -1, *x.shape[2:]), torch.stack(assignments)


def graph_convolution_units(
    x: Tensor, units: Sequence[tuple[Tensor, Tensor, Tensor]], project: ConvNormReLU, graph: bool
) -> tuple[Tensor, list[Tensor]]:
    """Units with different numbers of nodes beside x, and a convolution over all of them; their assignments."""
    results = [graph_convolution_unit(x, *weights, graph) for weights in units]
    y = conv_bn_relu(torch.cat([x, *(back for back, _ in results)], dim=1), *project)
    return y, [assignment for _, assignment in results]


# Latent graph neural network


def latent_gnn_kernel(visible: Tensor, into: Tensor, back: Tensor, passing: bool) -> Tensor:
    """One latent space: features (c, N), Psi_v2l (K, N), Psi_l2v (K, N) -> (N, N) effective weights of the features."""
    latent = [sum(psi[i] * visible[:, i] for i in range(visible.shape[1])) for psi in into.unbind(0)]
    count = len(latent)
    if passing:
        directions = [unit(z) for z in latent]
        rows = [softmax(torch.stack([(d * other).sum() for other in directions])) for d in directions]
    else:
        rows = list(torch.eye(count, dtype=visible.dtype).unbind(0))
    entries = []
    for i in range(visible.shape[1]):
        weights = [sum(back[m, i] * rows[m][k] for m in range(count)) for k in range(count)]
        entries.append(sum(weights[k] * into[k] for k in range(count)))
    return torch.stack(entries)


def latent_gnn(
    x: Tensor,
    a: tuple[Tensor, Norm],
    b: tuple[Tensor, Norm] | None,
    latents: Sequence[tuple[tuple[Tensor, Norm], tuple[Tensor, Norm] | None]],
    out: tuple[Tensor, Norm],
    gamma: Tensor,
    passing: bool,
) -> tuple[Tensor, list[Tensor], list[tuple[Tensor, Tensor]]]:
    """Zhang et al. (LatentGNN), ICML 2019, section 3: output, (B, N, N) weights and Psi pairs for each latent space.

    `b` None and second parts None: symmetric, one feature and one Psi (of length 1 over the nodes) for both ways.
    Otherwise Psi_v2l, from a, has length 1 over the positions, and Psi_l2v, from b, over the nodes.
    """

    def features(conv: Tensor, norm: Norm) -> Tensor:
        return torch.stack([over_columns(unit, s) for s in batch_norm(pointwise(x, conv), *norm).flatten(2)])

    def psi(source: Tensor, conv: Tensor, norm: Norm, over: Callable[..., Tensor]) -> Tensor:
        return torch.stack([over(unit, sample) for sample in conv_bn_relu(source, conv, norm)])

    visible = features(*a)
    other = visible if b is None else features(*b)
    maps, affinities, pairs = [], [], []
    for v2l, l2v in latents:
        if l2v is None:
            into = back = psi(visible, *v2l, over_columns)
        else:
            into, back = psi(visible, *v2l, over_rows), psi(other, *l2v, over_columns)
        samples = zip(visible, into, back, strict=True)
        weights = torch.stack([latent_gnn_kernel(*sample, passing) for sample in samples])
        maps.append(weigh(weights, visible, x.shape[2:]))
        affinities.append(weights)
        pairs.append((into, back))
    y = batch_norm(pointwise(torch.cat(maps, dim=1), out[0]), *out[1])
    return x + gamma * y, affinities, pairs


# Adaptive context


def adaptive_context(
    x: Tensor,
    reduce: ConvNormReLU,
    pooled: ConvNormReLU,
    guide: ConvNormReLU | None,
    affinity: Convolution,
    gathered: ConvNormReLU,
    fusion: ConvNormReLU,
    scale: int,
    affinity_kind: str,
) -> tuple[Tensor, Tensor]:
    """He et al. (APCNet), CVPR 2019, section 3.2, one scale: the output and the affinity (B, N, scale * scale).

    `guide` None: local affinity, without the global vector.
    """
    regions = conv_bn_relu(adaptive_avg_pool2d(x, scale), *pooled)
    features = conv_bn_relu(x, *reduce)
    guided = features
    if guide is not None:
        everything = features.mean(dim=tuple(range(2, x.dim())), keepdim=True)
        guided = features + conv_bn_relu(everything, *guide)
    logits = pointwise(guided, *affinity).flatten(2)
    if affinity_kind == "softmax":
        weights = torch.stack([over_columns(softmax, sample).T for sample in logits])
    else:
        weights = torch.stack([(1 / (1 + torch.exp(-sample))).T for sample in logits])
    z = conv_bn_relu(weigh(weights, regions, x.shape[2:]), *gathered)
    return conv_bn_relu((z + features).clamp(min=0), *fusion), weights


# Global context


def global_context(
    x: Tensor, mask: Convolution, reduce: Convolution, norm: tuple[Tensor, Tensor], expand: Convolution
) -> tuple[Tensor, Tensor]:
    """Cao et al. (GCNet), ICCV workshops 2019, section 3.3: the output and the one map of weights (B, N)."""
    outputs, weights = [], []
    for sample, logits in zip(x.flatten(2), pointwise(x, *mask).flatten(2), strict=True):
        m = softmax(logits[0])
        context = sum(m_j * x_j for m_j, x_j in zip(m, sample.unbind(1), strict=True))
        inner = reduce[0].flatten(1) @ context + reduce[1]
        centred = inner - inner.mean()
        inner = centred / torch.sqrt((centred**2).mean() + 1e-5) * norm[0].flatten() + norm[1].flatten()
        added = expand[0].flatten(1) @ inner.clamp(min=0) + expand[1]
        outputs.append(torch.stack([x_i + added for x_i in sample.unbind(1)], dim=1))
        weights.append(m)
    return torch.stack(outputs).reshape(x.shape), torch.stack(weights)


# Disentangled non-local


def disentangled_non_local(
    x: Tensor,
    query: Convolution,
    key: Convolution,
    value: Convolution,
    mask: Convolution,
    gamma: Tensor,
    temperature: float,
    key_mean: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Yin et al. (DNL), ECCV 2020, section 4: the output, the pairwise weights (B, N, N) and the unary ones (B, N).

    `key_mean` False leaves the keys as they are.
    """
    axes = tuple(range(2, x.dim()))
    q, k, v = pointwise(x, *query), pointwise(x, *key), pointwise(x, *value)
    q = q - q.mean(dim=axes, keepdim=True)
    if key_mean:
        k = k - k.mean(dim=axes, keepdim=True)
    pairwise = attention_weights(q, k, scale=1 / (math.sqrt(q.shape[1]) * temperature))
    unary = torch.stack([softmax(logits[0]) for logits in pointwise(x, *mask).flatten(2)])
    everywhere = torch.stack([torch.stack([row] * row.numel()) for row in unary])
    y = x + gamma * weigh(pairwise, v, x.shape[2:]) + weigh(everywhere, v, x.shape[2:])
    return y, pairwise, unary


# Asymmetric non-local


def pyramid_tokens(x: Tensor, bins: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, S): the cells of all pyramid levels, level after level, row by row."""
    return torch.cat([adaptive_avg_pool2d(x, size).flatten(2) for size in bins], dim=2)


def asymmetric_pyramid_non_local(
    x: Tensor, key: ConvNormReLU, value: Convolution, out: Convolution, bins: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Zhu et al. (ANN), ICCV 2019, section 3.2, APNB: W(A v) and the weights (B, N, S); query and key are one."""
    features = conv_bn_relu(x, *key)
    keys, values = pyramid_tokens(features, bins), pyramid_tokens(pointwise(x, *value), bins)
    weights = attention_weights(features, keys, scale=1 / math.sqrt(features.shape[1]))
    return pointwise(weigh(weights, values, x.shape[2:]), *out), weights


def asymmetric_fusion(
    high: Tensor,
    low: Tensor,
    query: ConvNormReLU,
    key: ConvNormReLU,
    value: Convolution,
    out: Convolution,
    project: tuple[Convolution, Norm],
    bins: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Zhu et al. (ANN), ICCV 2019, section 3.3, AFNB: the high level asks, the low level answers; and the weights."""
    queries = conv_bn_relu(high, *query)
    keys, values = pyramid_tokens(conv_bn_relu(low, *key), bins), pyramid_tokens(pointwise(low, *value), bins)
    weights = attention_weights(queries, keys, scale=1 / math.sqrt(queries.shape[1]))
    context = pointwise(weigh(weights, values, high.shape[2:]), *out)
    return batch_norm(pointwise(torch.cat([context, high], dim=1), *project[0]), *project[1]), weights
