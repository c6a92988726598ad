"""One body of checks for every segmentation head, over the table ROWS: a new head adds one row.

Parameter counts are derived by hand for the maps of a ResNet-50, (256, 512, 1024, 2048) channels, and 19 classes, with
c3(i, o) = 9 i o + 2 o a 3x3 convolution without bias and its batch norm, c1(i, o) = i o + 2 o the same with 1x1, and
cls(i) = 19 i + 19 the classifier.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segvid.attention import context as mechanisms
from segvid.attention import functional
from segvid.attention.atrous import AtrousConv2d
from segvid.attention.functional import counting
from segvid.compare.cost import count
from segvid.segmentation import heads
from segvid.segmentation.heads.base import SegmentationHead
from tests import reference
from tests.reference import randomise

CHANNELS = (8, 12, 16, 32)
CLASSES = 5
State = Mapping[str, Tensor]


# The papers' wiring, from raw weights: a layer by its name in the state dict


def layer(state: State, name: str, x: Tensor, rate: int = 1) -> Tensor:
    """Convolution, batch norm in evaluation, ReLU."""
    norm = [state[f"{name}.1.{key}"] for key in ("weight", "bias", "running_mean", "running_var")]
    return reference.conv_bn_relu(x, state[f"{name}.0.weight"], norm, rate)


def affine(state: State, *names: str) -> list[list[Tensor]]:
    """The weights, and the bias where there is one, of 1x1 convolutions."""
    return [[state[f"{name}.{key}"] for key in ("weight", "bias") if f"{name}.{key}" in state] for name in names]


def classify(state: State, name: str, x: Tensor) -> Tensor:
    return reference.pointwise(x, *affine(state, f"{name}.1")[0])


def context_frame(state: State, x: Tensor, context: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """conv3x3, context, conv3x3, concatenation [input, result], conv3x3, classifier."""
    y = layer(state, "out_conv", context(layer(state, "in_conv", x)))
    return [classify(state, "classifier", layer(state, "bottleneck", torch.cat([x, y], dim=1)))]


def fcn(state: State, features: list[Tensor]) -> list[Tensor]:
    x = features[-1]
    y = layer(state, "convs.1", layer(state, "convs.0", x))
    return [classify(state, "classifier", layer(state, "bottleneck", torch.cat([x, y], dim=1)))]


def ccnet(state: State, features: list[Tensor]) -> list[Tensor]:
    convs = affine(state, "context.query", "context.key", "context.value")
    gamma = state["context.gamma"]
    return context_frame(state, features[-1], lambda x: reference.criss_cross_attention(x, *convs, gamma, 2))


def non_local(state: State, features: list[Tensor]) -> list[Tensor]:
    convs = affine(state, "context.query", "context.key", "context.value", "context.out")
    norm = [state[f"context.norm.{key}"] for key in ("weight", "bias", "running_mean", "running_var")]
    return context_frame(state, features[-1], lambda x: reference.non_local(x, *convs, norm, True))


def danet(state: State, features: list[Tensor]) -> list[Tensor]:
    convs = affine(state, "position.query", "position.key", "position.value")
    position = layer(state, "position_in", features[-1])
    position = layer(state, "position_out", reference.position_attention(position, *convs, state["position.gamma"]))
    channel = layer(state, "channel_in", features[-1])
    channel = layer(state, "channel_out", reference.channel_attention(channel, state["channel.gamma"], "minus"))
    return [
        classify(state, "classifier", position + channel),
        classify(state, "position_classifier", position),
        classify(state, "channel_classifier", channel),
    ]


def emanet(state: State, features: list[Tensor]) -> list[Tensor]:
    conv1, conv2 = affine(state, "attention.conv1", "attention.conv2")
    norm = [state[f"attention.norm.{key}"] for key in ("weight", "bias", "running_mean", "running_var")]
    y = layer(state, "in_conv", features[-1])
    y = reference.expectation_maximization_attention(y, conv1, conv2, norm, state["attention.bases"][0], 3, False)
    return [classify(state, "classifier", layer(state, "out_conv", y))]


def pspnet(state: State, features: list[Tensor]) -> list[Tensor]:
    names = [f"pyramid_pooling.branches.{i}" for i in range(4)]
    weights = [state[f"{name}.0.weight"] for name in names]
    norms = [[state[f"{n}.1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")] for n in names]
    y = reference.pyramid_pooling(features[-1], (1, 2, 3, 6), weights, norms)
    return [classify(state, "classifier", layer(state, "bottleneck", y))]


def aspp(state: State, x: Tensor, rates: tuple[int, ...], name: str = "aspp") -> Tensor:
    names = [f"{name}.image_pool", *(f"{name}.branches.{i}" for i in range(1 + len(rates))), f"{name}.project"]
    weights = [state[f"{name}.0.weight"] for name in names]
    norms = [[state[f"{n}.1.{k}"] for k in ("weight", "bias", "running_mean", "running_var")] for n in names]
    return reference.atrous_spatial_pyramid_pooling(x, rates, weights, norms)


def part(state: State, prefix: str, module: torch.nn.Module) -> torch.nn.Module:
    """A mechanism with the head's weights; its formula is held against a naive version in tests/attention/context."""
    weights = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    module.double().eval().load_state_dict(weights)
    return module


def in_frame(make: Callable[[], torch.nn.Module]) -> Callable[[State, list[Tensor]], list[Tensor]]:
    """The wiring of a head that is a mechanism of 32 channels inside the common frame."""
    return lambda state, features: context_frame(state, features[-1], part(state, "context", make()))


def beside(make: Callable[[], torch.nn.Module], first: str) -> Callable[[State, list[Tensor]], list[Tensor]]:
    """conv3x3, context, concatenation in the order that `first` ("input" or "context") begins, conv1x1, classifier."""

    def wiring(state: State, features: list[Tensor]) -> list[Tensor]:
        x = layer(state, "in_conv", features[-1])
        y = part(state, "context", make())(x)
        both = torch.cat([x, y] if first == "input" else [y, x], dim=1)
        return [classify(state, "classifier", layer(state, "bottleneck", both))]

    return wiring


def ann(state: State, features: list[Tensor]) -> list[Tensor]:
    fused = part(state, "fusion", mechanisms.AsymmetricFusion(32, 16))(features[-1], features[-2])
    x = layer(state, "in_conv", fused)
    y = part(state, "context", mechanisms.AsymmetricPyramidNonLocal(32))(x)
    return [classify(state, "classifier", layer(state, "bottleneck", torch.cat([y, x], dim=1)))]


def apcnet(state: State, features: list[Tensor]) -> list[Tensor]:
    y = part(state, "context", mechanisms.AdaptivePyramidContext(32, inner_channels=32))(features[-1])
    return [classify(state, "classifier", layer(state, "bottleneck", y))]


def psanet(state: State, features: list[Tensor]) -> list[Tensor]:
    attention = mechanisms.PointwiseSpatialAttention(32, inner_channels=32, mask_size=(3, 5))
    y = torch.cat([features[-1], part(state, "attention", attention)(features[-1])], dim=1)
    return [classify(state, "classifier", layer(state, "bottleneck", y))]


def carafe(state: State, features: list[Tensor]) -> list[Tensor]:
    head = {key.removeprefix("head."): value for key, value in state.items()}
    x = features[-1]
    y = torch.cat([x, layer(head, "convs.1", layer(head, "convs.0", x))], dim=1)
    y = part(head, "classifier.0", mechanisms.CARAFE(32))(layer(head, "bottleneck", y))
    return [reference.pointwise(y, *affine(head, "classifier.2")[0])]  # CARAFE, dropout, convolution


def deeplab_v3(state: State, features: list[Tensor]) -> list[Tensor]:
    return [classify(state, "classifier", aspp(state, features[-1], (1, 2, 3)))]


def deeplab_v3_plus(state: State, features: list[Tensor]) -> list[Tensor]:
    low = layer(state, "low", features[0])
    high = reference.resize_bilinear(aspp(state, features[-1], (1, 2, 3), "context"), *low.shape[2:])
    y = layer(state, "decoder.1", layer(state, "decoder.0", torch.cat([high, low], dim=1)))
    return [classify(state, "classifier", y)]


# The table


@dataclass(frozen=True)
class Row:
    """What the shared body knows of one head.

    `wiring` gives the supervised maps in evaluation from the state dict. `without_gradient` names the parameters that
    get none, `zero_gradient` those whose gradient is mathematically 0 in training, each with the reason.
    """

    name: str
    parameters: int
    wiring: Callable[[State, list[Tensor]], list[Tensor]]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    maps: int = 1
    scale: int = 1  # how many times finer than the map the logits are
    wraps: bool = False  # a head around another one: width, dropout and classifier are that one's
    output_index: int = -1  # which of the feature maps the logits have the size of
    without_gradient: Mapping[str, str] = field(default_factory=dict)
    zero_gradient: Mapping[str, str] = field(default_factory=dict)

    def make(self, **kwargs: Any) -> SegmentationHead:
        torch.manual_seed(0)
        return getattr(heads, self.name)(CHANNELS, CLASSES, **{**self.kwargs, **kwargs})


CONSTANT = "the weights sum to 1, so it adds a constant: removed by the batch norm behind it"
KEY_BIAS = "adds the same number to all affinities of a query: cancels in the softmax"

ROWS = [
    Row(
        "A2NetHead",
        # frame as FCNHead 23_605_779; three projections 3 (512 * 128 + 128), out 128 * 512, norm 1_024: 263_552
        parameters=23_869_331,
        wiring=in_frame(lambda: mechanisms.DoubleAttention(32)),
        zero_gradient={
            "context.gather.bias": "adds the same number to all affinities of a softmax: cancels",
            "context.value.bias": CONSTANT,
        },
    ),
    Row(
        "ANNHead",
        # fusion: c1(2048, 256) + c1(1024, 256) + 1024 * 256 + 256 + 256 * 2048 + 2048 + 4096 * 2048 + 4096 = 9_968_896;
        # c3(2048, 512) = 9_438_208; APNB c1(512, 256) + 512 * 256 + 256 + 256 * 512 + 512 = 394_496;
        # c1(1024, 512) = 525_312; cls(512) = 9_747
        parameters=20_336_659,
        wiring=ann,
        zero_gradient={
            "fusion.value.bias": CONSTANT,
            "fusion.out.bias": CONSTANT,
            "context.value.bias": CONSTANT,
            "context.out.bias": CONSTANT,
        },
    ),
    Row(
        "APCNetHead",
        # the published head without classifier 30_455_858; cls(512) = 9_747
        parameters=30_465_605,
        wiring=apcnet,
    ),
    Row(
        "BeyondGridsHead",
        # frame as FCNHead 23_605_779; anchors and widths 2 * 46 * 512, weights 4 * 512 * 256, c1(512 + 1024, 512):
        # 1_358_848
        parameters=24_964_627,
        wiring=in_frame(lambda: mechanisms.GraphConvolutionUnits(32)),
    ),
    Row(
        "BilateralHead",
        # frame as FCNHead 23_605_779; two bandwidths, out 512 * 512, norm 1_024: 263_170
        parameters=23_868_949,
        wiring=in_frame(lambda: mechanisms.BilateralFilter(32)),
    ),
    Row(
        "CARAFEHead",
        # FCNHead 23_605_779; compression 512 * 64 + 64, encoder 9 * 64 * 100 + 100: 90_532
        parameters=23_696_311,
        wiring=carafe,
        scale=2,
        wraps=True,
    ),
    Row(
        "CCNetHead",
        # frame as FCNHead 23_605_779; query and key 2 (512 * 64 + 64), value 512 * 512 + 512, gamma 1: 328_321
        parameters=23_934_100,
        wiring=ccnet,
        zero_gradient={"context.key.bias": KEY_BIAS},
    ),
    Row(
        "CGNLHead",
        # frame as FCNHead 23_605_779; t, p, g 3 * 512 * 256, z 512 * 256 / 8, group norm 1_024: 410_624
        parameters=24_016_403,
        wiring=in_frame(lambda: mechanisms.CompactGeneralizedNonLocal(32)),
    ),
    Row(
        "DANetHead",
        # 2 c3(2048, 512) + 2 c3(512, 512) + position attention 328_321 + channel attention 1 + 3 cls(512)
        parameters=23_954_619,
        wiring=danet,
        maps=3,
        zero_gradient={"position.key.bias": KEY_BIAS},
    ),
    Row(
        "DGMNHead",
        # frame as FCNHead 23_605_779; 4 dilations, offsets and weights 9 * 512 * 18 each, 4 gammas: 663_556
        parameters=24_269_335,
        wiring=in_frame(lambda: mechanisms.DynamicGraphMessagePassing(32, dilations=(1, 2))),
        kwargs={"dilations": (1, 2)},
    ),
    Row(
        "DNLNetHead",
        # frame as FCNHead 23_605_779; query and key 2 (512 * 256 + 256), value 512 * 512, mask 513, gamma: 525_314
        parameters=24_131_093,
        wiring=in_frame(lambda: mechanisms.DisentangledNonLocal(32)),
        zero_gradient={
            "context.query.bias": "the mean over the positions is subtracted",
            "context.key.bias": "the mean over the positions is subtracted",
            "context.mask.bias": "adds the same number to all affinities of a softmax: cancels",
        },
    ),
    Row(
        "DeepLabV3Head",
        # ASPP 2 c1(2048, 256) + 3 c3(2048, 256) + c1(1280, 256) = 15_535_104; cls(256) = 4_883
        parameters=15_539_987,
        wiring=deeplab_v3,
        kwargs={"rates": (1, 2, 3)},
    ),
    Row(
        "DeepLabV3PlusHead",
        # ASPP 15_535_104; c1(256, 48) = 12_384; c3(256 + 48, 256) = 700_928; c3(256, 256) = 590_336; cls(256) = 4_883
        parameters=16_843_635,
        wiring=deeplab_v3_plus,
        kwargs={"rates": (1, 2, 3)},
        output_index=0,
    ),
    Row(
        "EMANetHead",
        # c3(2048, 512) = 9_438_208; EM attention unit 525_824, of which 262_656 frozen; c3(512, 256) = 1_180_160;
        # cls(256) = 4_883
        parameters=11_149_075,
        wiring=emanet,
        kwargs={"bases": 4},
        without_gradient={
            "attention.conv1.weight": "EM runs without gradient, as in the official code",
            "attention.conv1.bias": "EM runs without gradient, as in the official code",
        },
    ),
    Row(
        "FCNHead",
        # c3(2048, 512) = 9_438_208; c3(512, 512) = 2_360_320; c3(2048 + 512, 512) = 11_797_504; cls(512) = 9_747
        parameters=23_605_779,
        wiring=fcn,
    ),
    Row(
        "GCNetHead",
        # frame as FCNHead 23_605_779; mask 513, 512 * 128 + 128, layer norm 256, 128 * 512 + 512: 132_481
        parameters=23_738_260,
        wiring=in_frame(lambda: mechanisms.GlobalContext(32)),
        zero_gradient={
            "context.mask.bias": "adds the same number to all affinities of a softmax: cancels",
        },
    ),
    Row(
        "GloReHead",
        # frame as FCNHead 23_605_779; unit with 128 nodes of 256 states 411_136
        parameters=24_016_915,
        wiring=in_frame(lambda: mechanisms.GlobalReasoning(32)),
    ),
    Row(
        "ISANetHead",
        # c3(2048, 512) = 9_438_208; both attentions 1_841_152; c1(1024, 512) = 525_312; cls(512) = 9_747
        parameters=11_814_419,
        wiring=beside(lambda: mechanisms.InterlacedAttention(32, block=(2, 3)), "input"),
        kwargs={"block": (2, 3)},
    ),
    Row(
        "LatentGNNHead",
        # frame as FCNHead 23_605_779; a and b 2 (512 * 128 + 256), four psi 4 (128 * 100 + 200), out 256 * 512 + 1_024,
        # gamma: 315_681
        parameters=23_921_460,
        wiring=in_frame(lambda: mechanisms.LatentGNN(32)),
    ),
    Row(
        "LocalRelationHead",
        # frame as FCNHead 23_605_779; query and key 2 (512 * 64 + 64), geometry 2 * 64 + 64 + 64 * 64 + 64,
        # out 512 * 512, norm 1_024: 333_184
        parameters=23_938_963,
        wiring=in_frame(lambda: mechanisms.LocalRelation(32, window=3)),
        kwargs={"window": 3},
        zero_gradient={
            "context.geometry.2.bias": "adds the same number to all affinities of a softmax: cancels",
        },
    ),
    Row(
        "NonLocalHead",
        # frame as FCNHead 23_605_779; non-local block with d = 256: 526_592
        parameters=24_132_371,
        wiring=non_local,
        zero_gradient={
            "context.key.bias": KEY_BIAS,
            "context.value.bias": CONSTANT,
            "context.out.bias": "a constant: removed by the batch norm behind it",
        },
    ),
    Row(
        "OCNetHead",
        # c3(2048, 512) = 9_438_208; key c1(512, 256), value 512 * 256 + 256, out 256 * 512 + 512: 394_496;
        # c1(1024, 512) = 525_312; cls(512) = 9_747
        parameters=10_367_763,
        wiring=beside(lambda: mechanisms.ObjectContext(32), "context"),
        zero_gradient={
            "context.value.bias": CONSTANT,
            "context.out.bias": CONSTANT,
        },
    ),
    Row(
        "PSANetHead",
        # 2 (c1(2048, 512) + c1(512, 512) + 512 * 97 * 97) = 12_260_352; c1(1024, 2048) = 2_101_248;
        # c3(4096, 512) = 18_875_392; cls(512) = 9_747
        parameters=33_246_739,
        wiring=psanet,
        kwargs={"mask_size": (3, 5)},
    ),
    Row(
        "PSPNetHead",
        # 4 c1(2048, 512) = 4_198_400; c3(4096, 512) = 18_875_392; cls(512) = 9_747
        parameters=23_083_539,
        wiring=pspnet,
    ),
    Row(
        "SGRHead",
        # frame as FCNHead 23_605_779; votes 512 * 19 + 19, 512 * 256, graph (256 + 19) * 256,
        # 256 + 512, 256 * 512: 343_059
        parameters=23_948_838,
        wiring=in_frame(lambda: mechanisms.SymbolicGraphReasoning(32, nodes=CLASSES)),
        zero_gradient={
            "context.compatibility.weight": "the published mapping is 1/M everywhere, whatever the weight",
        },
    ),
    Row(
        "SelfAttentionHead",
        # frame as FCNHead 23_605_779; the same projections as the non-local block 526_592
        parameters=24_132_371,
        wiring=in_frame(lambda: mechanisms.GridSelfAttention(32)),
        zero_gradient={
            "context.key.bias": KEY_BIAS,
            "context.value.bias": CONSTANT,
            "context.out.bias": "a constant: removed by the batch norm behind it",
        },
    ),
]


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def row(request) -> Row:
    return request.param


def features(batch: int = 2, height: int = 5, width: int = 7, seed: int = 1) -> list[Tensor]:
    """The maps of a backbone with output stride 8: the first at twice the size of the others, odd as well."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(2 * height - 1, 2 * width - 1)] + 3 * [(height, width)]
    return [
        torch.randn(batch, channels, *size, generator=generator, dtype=torch.float64)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]


# The body


def test_every_head_has_its_row():
    assert [row.name for row in ROWS] == heads.__all__


def test_signature(row):
    """A config sets neither of the first two: jsonargparse leaves them to the caller. `**kwargs` would hide typos."""
    parameters = list(inspect.signature(getattr(heads, row.name)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["in_channels", "num_classes"]
    assert {p.kind for p in parameters[2:]} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.default is not inspect.Parameter.empty for p in parameters[2:])


@pytest.mark.parametrize("size", [(5, 7), (9, 4), (1, 6)], ids=str)
def test_logits_have_the_size_of_the_feature_map(row, size):
    maps = features(2, *size)
    logits = row.make().double().eval()(maps)
    assert logits.shape == (2, CLASSES, *(row.scale * n for n in maps[row.output_index].shape[2:]))


@pytest.mark.parametrize("sizes", [[(9, 13), (4, 6), (4, 6), (4, 6)], [(19, 13), (9, 6), (4, 3), (2, 1)]], ids=str)
def test_maps_of_backbones_that_round_down(row, sizes):
    """A finer map may have a row more than twice those of the coarser one."""
    maps = [torch.randn(2, c, *size, dtype=torch.float64) for c, size in zip(CHANNELS, sizes, strict=True)]
    logits = row.make().double().eval()(maps)
    assert logits.shape == (2, CLASSES, *(row.scale * n for n in sizes[row.output_index]))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_carafe_in_deeplab_where_a_backbone_rounds_down():
    """The last row and column are repeated; where it rounds up, one of the two is cut."""
    head = randomise(heads.DeepLabV3PlusHead(CHANNELS, CLASSES, rates=(1, 2), upsampler="carafe")).eval()
    scripted = torch.jit.script(head)
    last = torch.randn(1, CHANNELS[-1], 4, 6, dtype=torch.float64)
    for size in ((8, 12), (9, 13), (7, 11)):
        maps = [torch.randn(1, CHANNELS[0], *size, dtype=torch.float64), last, last, last]
        with torch.no_grad():
            full = head.upsample(head.context(last))
            high = full[:, :, [min(i, 7) for i in range(size[0])]][..., [min(i, 11) for i in range(size[1])]]
            expected = head.classifier(head.decoder(torch.cat([high, head.low(maps[0])], dim=1)))
            torch.testing.assert_close(head(maps), expected)
            torch.testing.assert_close(scripted(maps), expected)


def test_equals_the_papers_wiring(row):
    """Logits and supervised maps from raw weights and naive mechanisms: order of layers and of concatenations."""
    head = randomise(row.make()).eval()
    maps = features()
    with torch.no_grad():
        expected = row.wiring(head.state_dict(), maps)
        actual = head.supervised(maps)
    assert len(actual) == len(expected)
    for actual_map, expected_map in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual_map, expected_map, rtol=1e-9, atol=1e-9)


def test_supervised_maps(row):
    """One loss weight a map, the first is the logits, all of one size."""
    head = randomise(row.make()).eval()
    maps = features()
    supervised = head.supervised(maps)
    assert len(supervised) == len(head.loss_weights) == row.maps
    assert set(head.loss_weights) == {1.0}  # DANet: equal weights; the others have one map
    assert torch.equal(supervised[0], head(maps))
    assert {tuple(m.shape) for m in supervised} == {tuple(supervised[0].shape)}


def test_return_type_does_not_depend_on_training(row):
    head = row.make().double()
    for training in (True, False):
        head.train(training)
        assert type(head(features())) is Tensor
        assert type(head.supervised(features())) is list


def test_every_parameter_learns(row):
    """A finite gradient for all, and not 0 except where mathematics says so; three samples, because batch norm turns
    two values of a 1x1 map into -1 and 1, whatever they are."""
    head = randomise(row.make()).train()
    generator = torch.Generator().manual_seed(3)
    supervised = head.supervised(features(batch=3))
    sum((m * torch.randn(m.shape, generator=generator, dtype=m.dtype)).sum() for m in supervised).backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} == set(row.without_gradient)
    assert {name for name, p in head.named_parameters() if not p.requires_grad} == set(row.without_gradient)
    sizes = {name: gradient.abs().max().item() for name, gradient in gradients.items() if gradient is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    assert {name for name, size in sizes.items() if size < 1e-10} == set(row.zero_gradient)


def test_features_get_a_gradient(row):
    """The backbone learns through the head, from the maps that the head reads."""
    maps = [m.requires_grad_() for m in features(batch=3)]
    randomise(row.make()).train()(maps).square().sum().backward()
    assert maps[-1].grad.abs().max() > 0
    assert maps[-1].grad.isfinite().all()


def test_parameter_count(row):
    """All options at their defaults, the papers' widths."""
    with torch.device("meta"):
        head = getattr(heads, row.name)((256, 512, 1024, 2048), 19)
    assert sum(p.numel() for p in head.parameters()) == row.parameters


def test_batch_of_one_in_eval(row):
    with torch.no_grad():
        logits = randomise(row.make()).eval()(features(batch=1))
    assert logits.shape[0] == 1
    assert logits.isfinite().all()


def test_samples_do_not_mix_in_eval(row):
    head = randomise(row.make()).eval()
    maps = features(batch=3)
    with torch.no_grad():
        together = head(maps)
        for i in range(3):
            alone = head([m[i : i + 1] for m in maps])
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_autocast_is_finite(row, training):
    head = randomise(row.make()).float().train(training)
    maps = [10 * m.float() for m in features(batch=3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        supervised = head.supervised(maps)
    sum(m.float().square().mean() for m in supervised).backward()
    assert all(m.isfinite().all() for m in supervised)
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_dropout_is_for_training_alone(row):
    """Channel dropout: whole maps of the features before the classifier."""
    if row.wraps:
        pytest.skip("the head inside has the dropout")
    head = randomise(row.make(dropout=0.5)).eval()
    assert torch.equal(head(features()), head(features()))
    dropouts = [m for m in head.modules() if isinstance(m, torch.nn.modules.dropout._DropoutNd)]
    assert [type(m) for m in dropouts] == row.maps * [torch.nn.Dropout2d]
    assert {m.p for m in dropouts} == {0.5}


OTHER_SIZES = [(2, 5, 7), (1, 5, 7), (3, 8, 6), (1, 11, 4)]  # the first is what was traced


def assert_equals_eager(exported: Callable[[list[Tensor]], Tensor], head: torch.nn.Module) -> None:
    with torch.no_grad():
        for size in OTHER_SIZES:
            maps = features(*size, seed=4)
            torch.testing.assert_close(exported(maps), head(maps), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_script_equals_eager(row):
    head = randomise(row.make()).eval()
    assert_equals_eager(torch.jit.script(head), head)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_trace_equals_eager(row):
    """A size baked in as a Python number would show at the other sizes, and as a TracerWarning."""
    head = randomise(row.make()).eval()
    assert_equals_eager(torch.jit.trace(head, (features(),), check_trace=False), head)


def test_export_equals_eager(row):
    head = randomise(row.make()).eval()
    auto = torch.export.Dim.AUTO
    dynamic_shapes = ([{0: auto, 2: auto, 3: auto}] * len(CHANNELS),)
    program = torch.export.export(head, (features(),), dynamic_shapes=dynamic_shapes)
    assert_equals_eager(program.module(), head)


def test_the_form_that_is_counted_computes_the_same(row):
    head = randomise(row.make()).eval()
    with torch.no_grad(), counting():
        counted = head(features())
    torch.testing.assert_close(counted, head(features()), rtol=1e-9, atol=1e-9)


class Maps(torch.nn.Module):
    """Stands for a backbone."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image.new_zeros(len(image), c, *image.shape[2:]) for c in CHANNELS]


class Model(torch.nn.Module):
    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = Maps(), head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))


def test_the_count_does_not_depend_on_what_is_fast(row, monkeypatch):
    """Every fast path taken wherever it can be, none, and those of another device."""
    options = {"rates": (6, 12)} if row.name.startswith("DeepLab") else {}  # padding that tap by tap would skip
    head = row.make(**options).eval()
    model, image = Model(head), torch.zeros(2, 3, 9, 14)
    flops = {}
    for name, explicit, chunk, most in (("fast", 0, 64, 1.0), ("plain", 2**60, 2**60, 0.0)):
        monkeypatch.setattr(functional, "EXPLICIT", explicit)
        monkeypatch.setattr(functional, "CHUNK", chunk)
        monkeypatch.setattr(AtrousConv2d, "MOST", most)
        flops[name] = count(model, image)["gflops"]
    with FakeTensorMode(), torch.device("cuda"):  # no GPU is needed for a tensor without values
        flops["gpu"] = count(Model(row.make(**options).eval()), torch.zeros(2, 3, 9, 14))["gflops"]
    assert flops["fast"] > 0
    assert len(set(flops.values())) == 1, flops


# What the table does not reach: options, and refusals


OPTIONS = [
    ("CCNetHead", {"recurrence": 3}, lambda head: head.context.recurrence, 3),
    ("DANetHead", {"channel_affinity": "plus"}, lambda head: head.channel.sign, 1.0),
    ("DANetHead", {}, lambda head: head.channel.sign, -1.0),
    ("DeepLabV3Head", {}, lambda head: [b[0].dilation[0] for b in head.aspp.branches], [1, 12, 24, 36]),
    ("DeepLabV3Head", {"rates": (6, 12)}, lambda head: [b[0].dilation[0] for b in head.aspp.branches], [1, 6, 12]),
    ("DeepLabV3PlusHead", {}, lambda head: [b[0].dilation[0] for b in head.context.branches], [1, 12, 24, 36]),
    ("DeepLabV3PlusHead", {"rates": (6,)}, lambda head: [b[0].dilation[0] for b in head.context.branches], [1, 6]),
    ("DeepLabV3PlusHead", {"low_channels": 7}, lambda head: head.low[0].out_channels, 7),
    ("EMANetHead", {"em_grad": True}, lambda head: head.attention.em_grad, True),
    ("EMANetHead", {"iterations": 5}, lambda head: head.attention.iterations, 5),
    ("EMANetHead", {"momentum": 0.5}, lambda head: head.attention.momentum, 0.5),
    ("EMANetHead", {"bases": 7}, lambda head: head.attention.bases.shape[2], 7),
    ("EMANetHead", {}, lambda head: (head.attention.iterations, head.attention.bases.shape[2]), (3, 64)),
    ("NonLocalHead", {"scale": False}, lambda head: head.context.scale, 1.0),
    ("NonLocalHead", {"inner_channels": 5}, lambda head: head.context.query.out_channels, 5),
    ("PSPNetHead", {"bins": (1, 4)}, lambda head: head.pyramid_pooling.bins, (1, 4)),
]


@pytest.mark.parametrize(("name", "options", "read", "expected"), OPTIONS)
def test_options_reach_their_place(name, options, read, expected):
    assert read(getattr(heads, name)(CHANNELS, CLASSES, **options)) == expected


NOT_OFFERED = {
    ("APCNetHead", "AdaptivePyramidContext", "inner_channels"): "the head's channels",
    ("DeepLabV3Head", "ASPP", "out_channels"): "the head's channels",
    ("DeepLabV3PlusHead", "ASPP", "out_channels"): "the head's channels",
    **{
        ("DeepLabV3PlusHead", "CARAFE", option): "the upsampler as published, from output stride 8 to 4"
        for option in ("scale", "kernel_size", "encoder_kernel", "compressed_channels", "groups")
    },
    ("PSANetHead", "PointwiseSpatialAttention", "inner_channels"): "the head's channels",
    ("PSPNetHead", "PyramidPooling", "branch_channels"): "the head's channels",
}
RENAMED = {("DANetHead", "ChannelAttention", "affinity"): "channel_affinity"}
FORMS = {
    "OCNetHead": [{"form": "base"}, {"form": "pyramid"}, {"form": "asp"}],
    "DeepLabV3PlusHead": [{}, {"upsampler": "carafe"}],
}


def options(thing: Any) -> dict[str, Any]:
    """The keyword options and their defaults."""
    parameters = inspect.signature(thing).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def test_a_head_offers_every_option_of_its_mechanisms(row, monkeypatch):
    """Under its name, with its default, and what is given arrives there."""
    head = getattr(heads, row.name)
    made: dict[str, dict[str, Any]] = {}
    for name in mechanisms.__all__:

        def make(*channels: int, name: str = name, **given: Any) -> torch.nn.Module:
            made[name] = given
            module = torch.nn.Identity()
            module.out_channels = 8
            return module

        monkeypatch.setattr(inspect.getmodule(head), name, make, raising=False)
    for form in FORMS.get(row.name, [{}]):
        made.clear()
        head(CHANNELS, CLASSES, **form)
        used = list(made)
        assert used or row.name == "FCNHead"
        for mechanism in used:
            for option, default in options(getattr(mechanisms, mechanism)).items():
                place = (row.name, mechanism, option)
                name = RENAMED.get(place, option)
                if place in NOT_OFFERED:
                    assert name not in options(head), place
                    continue
                assert options(head).get(name, "not offered") == default, place
                value = object()
                head(CHANNELS, CLASSES, **form, **{name: value})
                assert made[mechanism][option] is value, place


def test_width_of_every_head_can_be_chosen(row):
    """`channels` is what the classifier reads (half of it in EMANet)."""
    if row.wraps:
        pytest.skip("the head inside has the width")
    classifier = row.make(channels=16).classifier[-1]
    assert classifier.in_channels == (8 if row.name == "EMANetHead" else 16)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_fcn_as_auxiliary_head():
    """One convolution on the last map but one, no concatenation: c3(1024, 256) + cls(256) at a ResNet-50's widths."""
    options = {"num_convs": 1, "concat_input": False, "in_index": -2}
    full = heads.FCNHead((256, 512, 1024, 2048), 19, **options)
    assert sum(p.numel() for p in full.parameters()) == 2_359_808 + 4_883
    head = randomise(heads.FCNHead(CHANNELS, CLASSES, **options)).eval()
    maps = features()
    state = head.state_dict()
    expected = classify(state, "classifier", layer(state, "convs.0", maps[-2]))
    torch.testing.assert_close(head(maps), expected, rtol=1e-9, atol=1e-9)
    assert_equals_eager(torch.jit.script(head), head)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        heads.FCNHead(CHANNELS, 0)
    with pytest.raises(ValueError, match="num_convs"):
        heads.FCNHead(CHANNELS, CLASSES, num_convs=0)
    with pytest.raises(ValueError, match="at least one feature map"):
        SegmentationHead((), CLASSES)


def test_classifier_initialisation(row):
    """N(0, 0.01) and bias 0, so that all classes start alike."""
    for module in row.make(**({} if row.wraps else {"channels": 256})).modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == CLASSES:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.15)
            assert not module.bias.any()
