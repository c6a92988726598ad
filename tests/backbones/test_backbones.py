"""Backbones: channels and strides as measured, dilation, multi-grid, weights, errors that name the cure."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segvid.backbones import Backbone, ConvNet, ResNet, SMPEncoder
from segvid.errors import UserError


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("resnet18d", (64, 128, 256, 512)),
        ("resnet34", (64, 128, 256, 512)),
        ("resnet50c", (256, 512, 1024, 2048)),
        ("resnet101c", (256, 512, 1024, 2048)),
    ],
)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_channels_and_strides_of_resnets(name: str, channels: tuple[int, ...], stride: int) -> None:
    if name == "resnet101c" and stride != 8:
        pytest.skip("a ResNet-101 once is enough")
    backbone = ResNet(name, output_stride=stride)
    assert backbone.channels == channels
    assert backbone.strides == (4, 8, min(16, stride), stride)
    assert backbone.training
    maps = backbone.eval()(torch.randn(1, 3, 65, 97))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, -(-65 // s), -(-97 // s)) for c, s in zip(channels, backbone.strides, strict=True)
    ]


def dilations(backbone: ResNet) -> list[int]:
    convs = [m for m in backbone.body.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert all(conv.padding == conv.dilation for conv in convs)
    assert all(conv.stride == (1, 1) for conv in convs)
    return [conv.dilation[0] for conv in convs]


def test_dilation_and_multi_grid() -> None:
    assert dilations(ResNet("resnet50c", output_stride=8)) == [2, 4, 4]
    assert dilations(ResNet("resnet50c", output_stride=16)) == [1, 2, 2]
    assert dilations(ResNet("resnet50c", output_stride=8, multi_grid=[1, 2, 4])) == [4, 8, 16]
    with pytest.raises(UserError, match=r"multi_grid \[1, 2\] has 2 factors, but the last stage has 3 blocks"):
        ResNet("resnet50c", multi_grid=[1, 2])


@pytest.mark.parametrize(
    ("name", "stride"),
    # not resnet18d at 8: timm does not dilate the mean pooling of its shortcuts
    [("resnet18", 8), ("resnet18", 16), ("resnet18d", 16), ("resnet50c", 8)],
)
def test_a_dilated_network_is_the_plain_one_on_a_finer_grid(name: str, stride: int) -> None:
    # A stride is a subsampling, and dilation undoes what it does to the layers after it: every second or fourth
    # position has the plain network's very features. A wrong dilation of any layer changes them.
    torch.manual_seed(0)
    plain, dilated = ResNet(name, output_stride=32), ResNet(name, output_stride=stride)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # as they come, the last of a block is 0 and hides the block
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 128, 96)
    coarse, fine = plain.eval()(image), dilated.eval()(image)
    assert torch.equal(coarse[0], fine[0])  # up to stride 8 nothing is dilated
    assert torch.equal(coarse[1], fine[1])
    for a, b, step in zip(coarse, fine, (1, 1, 16 // min(16, stride), 32 // stride), strict=True):
        torch.testing.assert_close(a, b[..., ::step, ::step], rtol=1e-4, atol=1e-4 * float(a.std()))
        assert a.std() > 0


@pytest.mark.parametrize(
    "make", [lambda: ResNet("resnet18"), lambda: SMPEncoder("tu-resnet18"), lambda: ConvNet((4, 6, 8))]
)
def test_measuring_leaves_no_trace(make: Callable[[], Backbone]) -> None:
    # an empty image in the running statistics would be part of every training
    backbone = make()
    assert all(module.training for module in backbone.modules())
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.num_batches_tracked == 0
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()


def test_channels_of_the_image() -> None:
    for backbone in (ResNet("resnet18", in_channels=1), SMPEncoder("mobilenet_v2", in_channels=1)):
        assert len(backbone.eval()(torch.zeros(1, 1, 64, 64))) == 4


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors"])
def test_weights_from_a_local_file(kind: str, tmp_path: Path) -> None:
    donor = timm.create_model("resnet18", pretrained=False).eval()
    for parameter in donor.parameters():
        nn.init.normal_(parameter, std=0.05)
    for module in donor.modules():
        if isinstance(module, nn.BatchNorm2d):  # the statistics must come along
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    file = tmp_path / f"donor.{'safetensors' if kind == 'safetensors' else 'pth'}"
    state = donor.state_dict()
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state} if kind == "wrapped" else state, file)
    backbone = ResNet("resnet18", output_stride=32, weights=str(file)).eval()
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(backbone(image)[-1], donor.forward_features(image))


def test_weights_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No file .*nowhere\.pth"):
        ResNet("resnet18", weights="nowhere.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match=r"text\.pth.* is not a file of weights"):
        ResNet("resnet18", weights=str(tmp_path / "text.pth"))
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"do not fit this backbone: \d+ of \d+ are missing or of another shape"):
        ResNet("resnet50c", weights=str(tmp_path / "other.pth"))
    state = timm.create_model("resnet18").state_dict()
    torch.save(state, tmp_path / "colour.pth")
    with pytest.raises(UserError, match=r"1 of \d+ are .* first 'conv1\.weight'"):
        ResNet("resnet18", in_channels=1, weights=str(tmp_path / "colour.pth"))
    del state["layer2.1.bn2.running_var"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"1 of \d+ are missing .* first 'layer2\.1\.bn2\.running_var'"):
        ResNet("resnet18", weights=str(tmp_path / "part.pth"))


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"conv1.weight": 3}, {"state_dict": 3}])
def test_a_file_without_a_state_dict(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        ResNet("resnet18", weights=str(tmp_path / "other.pth"))


class Opened:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("the file was executed",)


def test_a_file_of_weights_is_data_not_a_program(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Opened()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth.* is not a file of weights"):
        ResNet("resnet18", weights=str(tmp_path / "evil.pth"))


def test_pretrained_weights_without_a_network_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be had .*no route to host.*Give the path of a local file"):
        ResNet("resnet18", weights="imagenet")
    ResNet("resnet18")  # no network is needed when no weights are asked for


def test_names_and_strides_that_do_not_exist() -> None:
    with pytest.raises(UserError, match="timm has no ResNet named 'resnet51'"):
        ResNet("resnet51")
    with pytest.raises(UserError, match="'mobilenetv2_100'"):
        ResNet("mobilenetv2_100")
    with pytest.raises(UserError, match="output_stride is 4"):
        ResNet("resnet18", output_stride=4)
    with pytest.raises(UserError, match="cannot make the encoder 'densenet121'"):
        SMPEncoder("densenet121", output_stride=8)
    with pytest.raises(UserError, match="cannot make the encoder 'resnet51'"):
        SMPEncoder("resnet51")


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("tu-swin_tiny_patch4_window7_224", 32),  # made, but only for images of 224 x 224
        ("tu-swin_tiny_patch4_window7_224", 16),
        ("tu-vit_tiny_patch16_224", 16),
        ("tu-hrnet_w18_small", 8),
        ("tu-dla34", 16),  # an assertion without a word
    ],
)
def test_encoders_that_do_not_work_say_so_in_one_sentence(name: str, stride: int) -> None:
    with pytest.raises(UserError, match=f"cannot make the encoder '{name}' .*output stride {stride} ") as raised:
        SMPEncoder(name, output_stride=stride)
    assert "\n" not in str(raised.value)
    assert ("output stride 32 only" in str(raised.value)) == (stride < 32)


@pytest.mark.parametrize(
    ("name", "stride", "up"),
    [
        ("resnet18", 8, True),
        ("mobilenet_v2", 16, True),
        ("mit_b0", 16, True),
        ("efficientnet-b0", 16, False),
        ("tu-convnext_atto", 8, False),
        ("tu-hrnet_w18_small", 32, None),  # whole multiples only
    ],
)
def test_encoders_that_round_up_and_down(name: str, stride: int, up: bool | None) -> None:
    """What the docstrings say of them; the strides are right either way."""
    backbone = SMPEncoder(name, output_stride=stride).eval()
    assert backbone.strides == (4, 8, min(16, stride), stride)
    if up is None:
        return
    maps = backbone(torch.zeros(1, 3, 65, 97))
    assert [tuple(m.shape[2:]) for m in maps] == [
        (-(-65 // s), -(-97 // s)) if up else (65 // s, 97 // s) for s in backbone.strides
    ]


def test_a_stride_that_was_not_achieved_is_an_error() -> None:
    class Stubborn(ConvNet):
        def __init__(self) -> None:
            super().__init__((4, 6, 8))
            self.measure(3, output_stride=8)

    with pytest.raises(UserError, match="asked for output_stride 8, but its last map has stride 4"):
        Stubborn()


@pytest.mark.parametrize(("name", "stride"), [("mobilenet_v2", 16), ("tu-resnet18", 8), ("resnet18", 32)])
def test_encoders_of_segmentation_models_pytorch(name: str, stride: int) -> None:
    backbone = SMPEncoder(name, output_stride=stride)
    assert backbone.strides[0] == 4
    assert backbone.strides[-1] == stride
    maps = backbone.eval()(torch.randn(1, 3, 64, 96))
    assert tuple(m.shape[1] for m in maps) == backbone.channels
    assert tuple(64 // m.shape[2] for m in maps) == backbone.strides


def test_a_tag_that_does_not_exist() -> None:
    with pytest.raises(UserError, match=r"resnet18\.nonsense"):
        ResNet("resnet18.nonsense")


def test_multi_grid_of_a_resnet_without_layer4() -> None:
    with pytest.raises(UserError, match="multi_grid"):
        ResNet("resnetv2_50", multi_grid=[1, 2, 4])


def test_maps_of_the_small_net() -> None:
    backbone = ConvNet((4, 6, 8, 10)).eval()
    assert (backbone.channels, backbone.strides) == ((6, 8, 10), (4, 4, 4))
    assert [tuple(m.shape) for m in backbone(torch.zeros(2, 3, 33, 47))] == [(2, c, 9, 12) for c in (6, 8, 10)]
    with pytest.raises(ValueError, match="at least three widths"):
        ConvNet((4, 6))


@pytest.mark.parametrize("widths", [(4, 6, 8, 8), None])
def test_receptive_field_of_the_small_net_is_23_pixels(widths: tuple[int, ...] | None) -> None:
    backbone = (ConvNet() if widths is None else ConvNet(widths)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)  # no path is cut by a ReLU or a sign
    image = torch.ones(1, 3, 65, 65, requires_grad=True)
    backbone(image)[-1][0, :, 8, 8].sum().backward()
    assert image.grad is not None
    expected = torch.zeros(65, 65, dtype=torch.bool)
    expected[32 - 11 : 32 + 12, 32 - 11 : 32 + 12] = True  # position 8 of stride 4 is centred on pixel 32
    assert torch.equal(image.grad[0].sum(0) != 0, expected)
