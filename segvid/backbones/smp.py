"""Encoders of segmentation-models-pytorch, its `tu-*` names (timm) included, as backbones."""

from torch import Tensor

from segvid.backbones.base import Backbone
from segvid.errors import UserError


class SMPEncoder(Backbone):
    """An encoder of segmentation-models-pytorch; its maps of stride 4 and more.

    Tried (smp 0.6, timm 1.0.31; of timm one model of each family). At 8, 16 and 32: ResNet and its relatives (ResNeXt,
    ResNeSt, SE, SK, Res2Net, and smp's DPN), RegNet, EfficientNet, MobileNet V2 to V4, MobileOne, MobileViT, MixNet,
    ConvNeXt, CSP and DarkNet, the aligned Xceptions, MiT. At 32 only: HRNet, DenseNet, VGG, smp's Inceptions and
    Xception, DLA, FastViT, GhostNet, DaViT, PVT v2, Twins, CAFormer, MViT v2 and others that cannot be dilated. Not at
    all: transformers with one map or one image size, as ViT, DINOv2, BEiT, DeiT, EVA, Swin and MaxViT.

    Args:
        name: encoder name, for example `mobilenet_v2`, `efficientnet-b0`, `mit_b0`, `tu-convnext_tiny`.
        output_stride: stride of the last map, 8, 16 or 32. Not every encoder can be dilated; what was reached is
            measured, and an error if it is not what was asked for.
        weights: a weight set that smp knows, for example "imagenet" (downloaded once), or None.
        in_channels: channels of the image.

    Shape:
        (B, in_channels, H, W) -> list of maps, finest first. At sizes that are no multiple of the stride most round up;
        ConvNeXt, `efficientnet-*`, `se_*` and VGG round down; HRNet and DLA fail.

    Raises:
        UserError: unknown name or weights, stride not achieved, or no maps of an image of 64 x 64.
    """

    def __init__(self, name: str, *, output_stride: int = 16, weights: str | None = None, in_channels: int = 3) -> None:
        super().__init__()
        if ":" in name:  # timm would fetch a model of that name from a hub, or read a folder
            raise UserError(f"the encoder {name!r} is no name of segmentation-models-pytorch.")
        import segmentation_models_pytorch as smp  # a second, for who uses it

        try:
            self.body = smp.encoders.get_encoder(
                name, in_channels=in_channels, depth=5, weights=weights, output_stride=output_stride
            )
        except Exception as error:
            raise refused(name, weights, output_stride, error) from error
        try:
            self.measure(in_channels, output_stride)
        except UserError:
            raise
        except Exception as error:
            raise refused(name, weights, output_stride, error) from error

    def forward(self, image: Tensor) -> list[Tensor]:
        # The first map is the image itself; the second has stride 2 (and no channels in some transformers).
        return list(self.body(image))[2:]


def refused(name: str, weights: str | None, output_stride: int, error: Exception) -> UserError:
    """What to tell the user of an encoder that cannot be made, or gives no maps."""
    reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    undilated = output_stride < 32 and isinstance(error, (AssertionError, TypeError, ValueError))
    advice = " Many encoders cannot be dilated and have output stride 32 only." if undilated else ""
    return UserError(
        f"segmentation-models-pytorch cannot make the encoder {name!r} with weights {weights!r} and output stride "
        f"{output_stride} ({reason}).{advice}"
    )
