"""Backbones: channels and strides as measured, dilation, multi-grid, weights, errors that name the cure."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from segvid.backbones import ConvNet, ResNet, SMPEncoder
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


def test_dilated_weights_are_those_of_the_plain_network() -> None:
    plain = ResNet("resnet18", output_stride=32)
    dilated = ResNet("resnet18", output_stride=8)
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    first, second = plain.eval()(image), dilated.eval()(image)
    assert torch.equal(first[1], second[1])  # up to stride 8 nothing is dilated
    assert second[3].shape[-1] == 4 * first[3].shape[-1]


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors"])
def test_weights_from_a_local_file(kind: str, tmp_path: Path) -> None:
    donor = timm.create_model("resnet18", pretrained=False).eval()
    for parameter in donor.parameters():
        nn.init.normal_(parameter, std=0.05)
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
    with pytest.raises(UserError, match="output_stride is 4"):
        ResNet("resnet18", output_stride=4)
    with pytest.raises(UserError, match="cannot make the encoder 'densenet121'"):
        SMPEncoder("densenet121", output_stride=8)
    with pytest.raises(UserError, match="cannot make the encoder 'resnet51'"):
        SMPEncoder("resnet51")


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


def test_receptive_field_of_the_small_net_is_23_pixels() -> None:
    backbone = ConvNet((4, 6, 8, 8)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)  # no path is cut by a ReLU or a sign
    image = torch.ones(1, 3, 65, 65, requires_grad=True)
    backbone(image)[-1][0, :, 8, 8].sum().backward()
    assert image.grad is not None
    rows, columns = image.grad[0].sum(0).nonzero().unbind(1)
    assert int(rows.max() - rows.min()) + 1 == 23
    assert int(columns.max() - columns.min()) + 1 == 23
