"""Compact generalised non-local block against the affinity of all pairs of scalars; how its dot form degenerates."""

import itertools
import math

import pytest
import torch

from segvid.attention.context import CompactGeneralizedNonLocal
from tests import reference
from tests.reference import (
    assert_same_with_gradients,
    conv_weights,
    norm_weights,
    permutation_gap,
    random_input,
    randomise,
)

KERNELS = ["dot", "rbf", "sign"]
NORMS = ["group", "batch", "none"]


def make(kernel: str = "dot", norm: str = "group", **options) -> CompactGeneralizedNonLocal:
    options = {"groups": 2, "gamma": 0.2} | options
    return randomise(CompactGeneralizedNonLocal(8, kernel=kernel, norm=norm, **options)).eval()


def expected(block: CompactGeneralizedNonLocal, x: torch.Tensor, kernel: str, norm: str, **options) -> torch.Tensor:
    options = {"groups": 2, "gamma": 0.2} | options
    convs = [conv_weights(conv) for conv in (block.t, block.p, block.g, block.z)]
    weights = {"group": lambda: [*block.norm.parameters()], "batch": lambda: norm_weights(block.norm), "none": list}
    return reference.compact_generalized_non_local(x, *convs, weights[norm](), norm_kind=norm, kernel=kernel, **options)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_definition(kernel, norm, scale, training):
    block = make(kernel, norm, scale=scale).train(training)
    x = random_input(2, 8, 2, 3)
    assert_same_with_gradients(block(x), expected(block, x, kernel, norm, scale=scale), [x, *block.parameters()])


@pytest.mark.parametrize("grid", [(5,), (1, 4), (4, 1), (3, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_any_grid(kernel, grid):
    block = make(kernel, "batch")
    x = random_input(2, 8, *grid)
    assert_same_with_gradients(block(x), expected(block, x, kernel, "batch"), [x, *block.parameters()])


@pytest.mark.parametrize(
    "options",
    [{"groups": 1}, {"groups": 4}, {"order": 0}, {"order": 1}, {"order": 5}, {"gamma": 1.0}, {"gamma": 1e-4}],
    ids=str,
)
def test_groups_and_series(options):
    for kernel in ["rbf"] if "groups" not in options else ["dot", "rbf"]:
        block = make(kernel, "none", **options)
        x = random_input(1, 8, 2, 3)
        assert_same_with_gradients(block(x), expected(block, x, kernel, "none", **options), [x, *block.parameters()])


def test_defaults_are_the_released_ones():
    block = CompactGeneralizedNonLocal(32)
    assert (block.groups, block.kernel, block.scale, block.norm.num_groups, len(block.factors)) == (
        8,
        "dot",
        False,
        8,
        4,
    )
    beta = math.exp(-2e-4)
    assert block.factors == pytest.approx([beta, beta * 2e-4, beta * 2e-8, beta * 8e-12 / 6], rel=1e-12)


def test_official_initialisation():
    """N(0, 0.01) for all convolutions; it is the norm that is zero."""
    block = CompactGeneralizedNonLocal(256)
    for conv in (block.t, block.p, block.g, block.z):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not block.norm.weight.any()
    assert not block.norm.bias.any()


def test_long_series_is_the_gaussian_of_unit_vectors():
    """exp(-gamma (t - p)^2) with t^2 + p^2 set to 2 is exp(2 gamma t p - 2 gamma)."""
    block = make("rbf", "none", order=20, gamma=0.3)
    x = random_input(1, 8, 2, 3).detach()
    t, p, g = (conv(x.flatten(2)).reshape(2, -1) for conv in (block.t, block.p, block.g))  # (groups, c N)
    y = torch.stack([torch.exp(0.6 * t_g[:, None] * p_g - 0.6) @ g_g for t_g, p_g, g_g in zip(t, p, g, strict=True)])
    full = x + block.z(y.reshape(1, 4, 6)).reshape(x.shape)
    torch.testing.assert_close(block(x), full, rtol=1e-10, atol=1e-10)


def test_group_norm_leaves_only_the_sign_of_the_dot_kernel():
    """Specification, 0.2.2: y == x + GN(z(sign(<p, g>) t)), exactly, when the norm has no epsilon."""
    dot, sign = make("dot"), make("sign")
    assert dot.load_state_dict(sign.state_dict())
    dot.norm.eps = sign.norm.eps = 0.0
    x = random_input(4, 8, 3, 5).detach()
    affinity = dot.inner(*(conv(x.flatten(2)).reshape(4, 2, 2, 15) for conv in (dot.p, dot.g)))
    assert (affinity < 0).any()
    assert (affinity > 0).any()
    assert affinity.abs().min() > 1e-3
    torch.testing.assert_close(dot(x), sign(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", ["dot", "rbf"])
def test_only_the_dot_kernel_is_blind_to_the_scale_of_its_key(kernel):
    """And only behind the group norm: <p, g> 7 times as large is nothing to it, its sign is everything."""
    blocks = {norm: make(kernel, norm, gamma=0.5) for norm in NORMS}
    blocks["group"].norm.eps = 0.0
    x = random_input(2, 8, 3, 4).detach()
    before = {norm: block(x) for norm, block in blocks.items()}
    with torch.no_grad():
        for block in blocks.values():
            block.p.weight.mul_(7.0)
    change = {norm: (block(x) - before[norm]).abs().max().item() for norm, block in blocks.items()}
    assert (change["group"] < 1e-12) == (kernel == "dot")
    assert change["batch"] > 1e-2
    assert change["none"] > 1e-2
    with torch.no_grad():
        blocks["group"].p.weight.mul_(-1.0)
    assert (blocks["group"](x) - before["group"]).abs().max() > 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_scale_divides_by_the_root_of_the_size_of_a_group(kernel):
    """c = 2 channels in a group, 12 positions; a sign has no size."""
    plain, scaled = make(kernel, "none"), make(kernel, "none", scale=True)
    x = random_input(2, 8, 3, 4).detach()
    divisor = 1.0 if kernel == "sign" else math.sqrt(2 * 12)
    torch.testing.assert_close((plain(x) - x) / divisor, scaled(x) - x)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize(
    ("kernel", "grid"), [("dot", (3, 2)), ("rbf", (3, 2)), ("rbf", (2, 1, 2)), ("dot", (4,))], ids=str
)
def test_attention_map_is_the_mean_affinity_of_the_channel_pairs(kernel, grid, scale):
    block = make(kernel, scale=scale)
    x = random_input(2, 8, *grid).detach()
    count = x[0, 0].numel()
    t, p = (conv(x.flatten(2)).reshape(2, 2, 2, count) for conv in (block.t, block.p))  # (B, groups, c, N)
    for i, position in enumerate(itertools.product(*map(range, grid))):
        row = torch.zeros(2, count, dtype=torch.float64)
        for b, j, group in itertools.product(range(2), range(count), range(2)):
            pairs = [
                reference.cgnl_affinity(t[b, group, c, i], p[b, group, d, j], kernel, 3, 0.2)
                for c, d in itertools.product(range(2), range(2))
            ]
            row[b, j] += sum(pairs) / len(pairs) / 2
        row = row / (math.sqrt(2 * count) if scale else 1.0)
        torch.testing.assert_close(block.attention_map(x, position), row.reshape(2, *grid), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_starts_as_the_identity(kernel, norm, training):
    x = random_input(2, 8, 5, 7).float()
    block = CompactGeneralizedNonLocal(8, groups=2, kernel=kernel, norm=norm).train(training)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("grid", [(7,), (3, 5), (2, 3, 2)], ids=str)
def test_commutes_with_permutations_of_the_positions(grid, kernel):
    assert permutation_gap(make(kernel), random_input(2, 8, *grid)) < 1e-10


def test_samples_do_not_mix():
    block = make()
    x = random_input(3, 8, 3, 4)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]))


def test_groups_do_not_mix():
    """Before the residual, the first half of the output depends on no channel of p's second group."""
    block = make("dot", "none")
    x = random_input(1, 8, 2, 3).detach()
    y = block(x)[:, :4].sum()
    (gradient,) = torch.autograd.grad(y, block.p.weight)
    assert gradient[:2].abs().max() > 1e-6
    assert not gradient[2:].any()


def test_parameter_count():
    """1024 -> 512: 3 * 1024 * 512; the grouped convolution back 512 * 1024 / 8; 2 * 1024 group norm."""
    assert sum(p.numel() for p in CompactGeneralizedNonLocal(1024).parameters()) == 1_640_448
    assert sum(p.numel() for p in CompactGeneralizedNonLocal(1024, norm="none").parameters()) == 1_640_448 - 2048


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("norm", NORMS)
def test_gradcheck(kernel, norm):
    assert torch.autograd.gradcheck(make(kernel, norm), random_input(1, 8, 2, 2))


@pytest.mark.parametrize(
    ("channels", "options", "word"),
    [
        (8, {"kernel": "embedded", "groups": 2}, "kernel"),
        (8, {"norm": "layer", "groups": 2}, "norm"),
        (8, {"groups": 3}, "groups"),
        (8, {"groups": 8}, "groups"),  # its half, 4, does not divide
        (6, {"groups": 2}, "groups"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(channels, options, word):
    with pytest.raises(ValueError, match=word):
        CompactGeneralizedNonLocal(channels, **options)


@pytest.mark.parametrize("position", [(3, 0), (0, 5), (-1, 0), (0,)], ids=str)
def test_attention_map_refuses_a_position_off_the_grid(position):
    with pytest.raises(ValueError, match="grid"):
        make().float().attention_map(torch.zeros(1, 8, 3, 5), position)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_finite_under_autocast(kernel, dtype):
    torch.manual_seed(0)
    block = CompactGeneralizedNonLocal(16, kernel=kernel, norm="batch", scale=True).eval()
    torch.nn.init.ones_(block.norm.weight)
    with torch.autocast("cpu", dtype=dtype):
        assert block(30 * torch.randn(1, 16, 16, 16)).isfinite().all()
