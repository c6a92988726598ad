"""Operations are counted by the formula, derived here by hand: the same on every device, whatever is faster there."""

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from segvid.attention import context, functional
from segvid.attention.atrous import AtrousConv2d
from segvid.attention.functional import adaptive_avg_pool2d, counting, softmax_attention, summed_product, window_sum
from segvid.compare.cost import count
from tests.reference import random_input

H, W = 9, 13
N = H * W


def products(call, *shapes: tuple[int, ...], device: str = "cpu") -> float:
    """Multiply-adds of a call on fake tensors of these shapes. Without a GPU too: a fake tensor lies where it says."""
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), counting():
        inputs = [torch.zeros(shape, device=device) for shape in shapes]
        with counter:
            call(*inputs)
    return counter.get_total_flops() / 2


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    return request.param


def of_module(make, channels: int, device: str, batch: int = 1) -> float:
    """Multiply-adds of a mechanism on a map of H x W."""

    def call(x: Tensor) -> Tensor:
        with torch.device(x.device):
            module = make().eval()
        return module(x)

    return products(call, (batch, channels, H, W), device=device)


@pytest.mark.parametrize("rate", [2, 4, 12, 36])
def test_an_atrous_convolution_counts_its_padding(rate, device):
    """Nine taps at every position, also where most of them lie outside."""
    make = lambda: AtrousConv2d(8, 6, 3, padding=rate, dilation=rate, bias=False)  # noqa: E731
    assert of_module(make, 8, device, batch=2) == 2 * 9 * 8 * 6 * N


@pytest.mark.parametrize(("rows", "keys"), [(20, 30), (2_000, 3_000), (2_500, 40_000)])
def test_attention_counts_all_pairs(rows, keys, device):
    """Small enough to be stored, in chunks of rows on a CPU, or fused on a GPU: d + c products for each pair."""
    assert (rows * keys > functional.EXPLICIT) == (rows > 20)
    shapes = (2, rows, 8), (2, keys, 8), (2, keys, 5)
    assert products(softmax_attention, *shapes, device=device) == 2 * rows * keys * (8 + 5)


def test_psa_counts_the_whole_mask(device):
    """4 of 16 channels; the map is shrunk to 5 x 7, and every offset is predicted, on the map or not."""
    n = 5 * 7
    direction = 16 * 4 * N + 4 * 4 * n + 4 * 9 * 11 * n + 4 * n * n  # reduce, adapt, mask, average
    make = lambda: context.PointwiseSpatialAttention(16, mask_size=(9, 11))  # noqa: E731
    assert of_module(make, 16, device) == 2 * direction + 8 * 16 * n
    direction += 4 * (97 * 97 - 9 * 11) * n  # no offset more lies on this map, but the paper's mask has them
    assert of_module(lambda: context.PointwiseSpatialAttention(16), 16, device) == 2 * direction + 8 * 16 * n


def test_criss_cross(device):
    once = 2 * 16 * 2 * N + 16 * 16 * N + (2 + 16) * N * (H + W)  # query and key, value, affinity and average
    assert of_module(lambda: context.CrissCrossAttention(16), 16, device) == 2 * once


@pytest.mark.parametrize(
    ("space", "pairs"),
    [
        ("global", N * N),
        ("local", 5 * 5 * N),  # places outside are padding, as in a convolution
        ("row_column", (H + W) * N),
    ],
)
def test_spaces_of_self_attention(space, pairs, device):
    """8 of 16 channels: query, key, value, out; 8 + 8 products for each pair."""
    make = lambda: context.GridSelfAttention(16, space=space, window=5)  # noqa: E731
    assert of_module(make, 16, device) == 4 * 16 * 8 * N + 2 * 8 * pairs


@pytest.mark.parametrize(("space", "groups", "size"), [("row", H, W), ("column", W, H), ("atrous", 16, 3 * 4)])
def test_attention_in_blocks(space, groups, size, device):
    """Filled up to whole blocks: 4 steps of 3 rows and 4 columns. One channel of query and key shuts padding out."""
    make = lambda: context.GridSelfAttention(16, space=space, stride=4)  # noqa: E731
    assert of_module(make, 16, device) == 4 * 16 * 8 * N + (8 + 1 + 8) * groups * size * size


def test_local_relation(device):
    """Groups of 8 of 16 channels; two numbers that are compared are no sum of products."""
    geometry = 9 * (2 * 2 + 2 * 2)
    make = lambda: context.LocalRelation(16, window=3)  # noqa: E731
    assert of_module(make, 16, device) == 2 * 16 * 2 * N + geometry + 9 * 16 * N + 16 * 16 * N


def test_bilateral_filter(device):
    """In a window a distance and an average for each place; else the places are three more channels of the affinity."""
    make = lambda: context.BilateralFilter(16, window=3, iterations=2)  # noqa: E731
    assert of_module(make, 16, device) == 2 * (9 * 16 + 9 * 16) * N + 16 * 16 * N
    assert of_module(lambda: context.BilateralFilter(16), 16, device) == (16 + 3 + 16) * N * N + 16 * 16 * N


@pytest.mark.parametrize("moved", [True, False])
def test_dgmn(moved, device):
    """Two dilations: offsets, filters of two groups and affinities, messages. Bilinear sampling is no product."""
    make = lambda: context.DynamicGraphMessagePassing(8, dilations=(1, 4), groups=2, dynamic_sampling=moved)  # noqa: E731
    offsets = 9 * 8 * 18 * N if moved else 0
    assert of_module(make, 8, device) == 2 * (offsets + 9 * 8 * (2 * 9 + 9) * N + 9 * 8 * N)


@pytest.mark.parametrize(("scale", "groups"), [(2, 1), (3, 2)])
def test_carafe(scale, groups, device):
    weights = scale**2 * 25
    make = lambda: context.CARAFE(8, scale=scale, groups=groups)  # noqa: E731
    assert of_module(make, 8, device) == 8 * 64 * N + 9 * 64 * weights * groups * N + weights * 8 * N


def test_cgnl_counts_its_one_inner_product(device):
    make = lambda: context.CompactGeneralizedNonLocal(16, groups=4)  # noqa: E731
    assert of_module(make, 16, device) == 3 * 16 * 8 * N + 8 * N + 8 * 16 // 4 * N


def test_averages_are_no_products(device):
    """The pooling that is written as two products for the sake of exported graphs."""
    assert products(lambda x: adaptive_avg_pool2d(x, 3), (2, 8, H, W), device=device) == 0
    make = lambda: context.PyramidPooling(16, bins=(1, 2, 3), branch_channels=4)  # noqa: E731
    assert of_module(make, 16, device) == 16 * 4 * (1 + 4 + 9)


def test_products_with_a_vector_count():
    """Without them torch's counter, which leaves matrix times vector out, would see no affinity."""
    make = lambda: context.NonLocal(16, affinity="concatenation")  # noqa: E731
    assert of_module(make, 16, "cpu") == 4 * 16 * 8 * N + 2 * 8 * N + 8 * N * N


def test_counting_ends():
    x = torch.zeros(1, 8, H, W)
    conv = AtrousConv2d(8, 6, 3, padding=12, dilation=12, bias=False)
    with counting(), counting():
        pass
    with pytest.raises(RuntimeError, match="ends too"), counting():
        raise RuntimeError("ends too")
    assert conv.tap_by_tap(x)
    with counting():
        assert not conv.tap_by_tap(x)


@pytest.mark.parametrize("window", [1, 3, 5])
def test_what_is_counted_is_what_is_computed(window):
    """The forms for counting have the values of the fast ones."""
    x, weights = random_input(2, 6, 4, 5), random_input(2, 3, window**2, 4, 4, 5)
    a, b = random_input(2, 6, 4, 5), random_input(2, 1, 4, 5)
    with counting():
        sums, product, pooled = window_sum(weights, x, window), summed_product(a, b, 2), adaptive_avg_pool2d(x, 3)
    torch.testing.assert_close(sums, window_sum(weights, x, window))
    torch.testing.assert_close(product, summed_product(a, b, 2))
    torch.testing.assert_close(product, (a * b).sum(dim=2))
    torch.testing.assert_close(pooled, adaptive_avg_pool2d(x, 3))


class Model(nn.Module):
    """A backbone without anything, and the head given."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


class Transformer(nn.Module):
    """torch's own attention; if it is choosy, it needs values to know what to do."""

    def __init__(self, choosy: bool) -> None:
        super().__init__()
        self.choosy = choosy

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()  # what the fused kernel takes
        if self.choosy and x.sum().item() > 0:
            return tokens
        return F.scaled_dot_product_attention(tokens, tokens, tokens)


@pytest.mark.parametrize("choosy", [False, True])
def test_torchs_own_attention_counts_on_a_cpu(choosy):
    """Its fused form there is not in torch's list. A model that needs values is counted all the same."""
    assert count(Model(Transformer(choosy)), torch.zeros(1, 8, H, W))["gflops"] == 2 * (8 + 8) * N * N / 1e9


def test_counting_leaves_no_trace_in_the_model():
    """Nor a tensor without values in one that keeps what it has seen."""

    seen = []

    class Keeping(nn.Conv2d):
        scale = torch.tensor(2.0)  # no parameter and no buffer
        places: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(x))
            if self.places is None:
                self.places = torch.arange(x.shape[3], device=x.device) * self.weight.sum()
            return super().forward(self.scale * x + self.places)

    model = Model(Keeping(8, 6, 1)).eval()
    model.count = torch.zeros(3)  # as a metric keeps one
    image = torch.randn(1, 8, H, W)
    assert count(model, image)["parameters_m"] == (8 * 6 + 6) / 1e6
    assert seen == [FakeTensor]
    assert model.head.places is None
    assert model(image).std() > 0


def test_a_large_map_is_counted_without_the_memory_of_its_affinities():
    """512 x 512 positions: 256 GB as a map."""
    make = Model(context.PositionAttention(8))
    pairs = (512 * 512) ** 2
    projections = (8 * 1 * 2 + 8 * 8) * 512 * 512
    assert count(make, torch.zeros(1, 8, 512, 512))["gflops"] == 2 * (projections + (1 + 8) * pairs) / 1e9
