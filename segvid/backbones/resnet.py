"""ResNets of timm with dilation and multi-grid.

Papers: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385;
dilation: Yu, Koltun, Funkhouser, "Dilated Residual Networks", CVPR 2017, https://arxiv.org/abs/1705.09914; multi-grid:
Chen et al., DeepLabV3, 2017, section 3.2.1, https://arxiv.org/abs/1706.05587
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segvid.backbones.base import Backbone
from segvid.errors import UserError


class ResNet(Backbone):
    """Any timm ResNet as four maps: after layer1 (stride 4), layer2, layer3 and layer4.

    `resnet50` has the plain 7x7 stem, `resnet50c` the deep stem of three 3x3 (mmsegmentation's ResNetV1c, the usual
    choice of the context papers), `resnet50d` the bag of tricks; likewise `resnet101` and `resnet152`. Of `resnet18`
    and `resnet34` timm has the plain and the d form only.

    Args:
        name: timm model name, with its tag if one particular set of weights is wanted (`resnet50c.gluon_in1k`).
        output_stride: stride of the last map, 8, 16 or 32; below 32 the last stages are dilated instead.
        multi_grid: one factor for each block of layer4, which multiplies its dilation; (1, 2, 4) in DeepLabV3.
        weights: "imagenet" for timm's pretrained weights (downloaded once), the path of a local file, or None.
        in_channels: channels of the image.

    Shape:
        (B, in_channels, H, W) -> four maps, the last of stride `output_stride`.

    Raises:
        UserError: unknown name, stride not achieved, weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str = "resnet50c",
        *,
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        weights: str | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        import timm  # a second, for who uses it

        family = name.split(".")[0]
        known = name == family or name in timm.list_models(family + ".*", pretrained=True)
        if not (timm.is_model(family) and known and "resnet" in family):
            near = timm.list_models(f"*{family[:8]}*")[:5]
            near = timm.list_models(family + ".*", pretrained=True)[:5] or near
            raise UserError(f"timm has no ResNet named {name!r}. Near it: {', '.join(near) or 'nothing'}.")
        if output_stride not in (8, 16, 32):
            raise UserError(f"output_stride is {output_stride}; a ResNet gives 8, 16 or 32.")
        try:
            self.body = timm.create_model(
                name,
                pretrained=weights == "imagenet",
                features_only=True,
                out_indices=(1, 2, 3, 4),
                output_stride=output_stride,
                in_chans=in_channels,
            )
        except Exception as error:
            if weights != "imagenet":
                raise
            raise UserError(
                f"The pretrained weights of {name!r} could not be had ({type(error).__name__}: {error}). Give the path "
                "of a local file as backbone.init_args.weights, or null to train from scratch."
            ) from error
        if multi_grid is not None:
            if not hasattr(self.body, "layer4"):
                raise UserError(f"multi_grid is for ResNets whose last stage is layer4; {name!r} has none.")
            set_multi_grid(self.body.get_submodule("layer4"), multi_grid)
        if weights is not None and weights != "imagenet":
            load_weights(self.body, Path(weights))
        self.measure(in_channels, output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.body(image))


def set_multi_grid(stage: nn.Module, multi_grid: Sequence[int]) -> None:
    """Multiplies the dilation of a stage's blocks by the factors; the stage's rate is that of its last block."""
    blocks = list(stage.children())
    if len(blocks) != len(multi_grid):
        raise UserError(
            f"multi_grid {list(multi_grid)} has {len(multi_grid)} factors, but the last stage has {len(blocks)} "
            "blocks: give one factor for each."
        )
    rate = max(conv.dilation[0] for conv in blocks[-1].modules() if isinstance(conv, nn.Conv2d))
    for block, factor in zip(blocks, multi_grid, strict=True):
        for conv in block.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                conv.dilation = (rate * factor, rate * factor)
                conv.padding = (rate * factor, rate * factor)


def load_weights(body: nn.Module, path: Path) -> None:
    """Loads a state dict file into the backbone: every weight of it must be there; a classifier may be left over.

    Raises:
        UserError: no such file, not a state dict, or weights missing or of another shape.
    """
    if not path.is_file():
        raise UserError(f"No file {str(path)!r} (backbone.init_args.weights). Give 'imagenet', a file, or null.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{str(path)!r} is not a file of weights ({type(error).__name__}: {error}).") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{str(path)!r} is not a file of weights: it holds no state dict.")
    own = body.state_dict()
    wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise UserError(
            f"The weights in {str(path)!r} do not fit this backbone: {len(wrong)} of {len(own)} are missing or of "
            f"another shape, first {wrong[0]!r}."
        )
    body.load_state_dict({k: state[k] for k in own})
