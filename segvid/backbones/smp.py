"""Any encoder of segmentation-models-pytorch, its `tu-*` names (timm) included, as a backbone."""

import segmentation_models_pytorch as smp
from torch import Tensor

from segvid.backbones.base import Backbone
from segvid.errors import UserError


class SMPEncoder(Backbone):
    """An encoder of segmentation-models-pytorch; its maps of stride 4 and more.

    Args:
        name: encoder name, for example `mobilenet_v2`, `efficientnet-b0`, `mit_b0`, `tu-convnext_tiny`.
        output_stride: stride of the last map, 8, 16 or 32. Not every encoder can be dilated; what was reached is
            measured, and an error if it is not what was asked for.
        weights: a weight set that smp knows, for example "imagenet" (downloaded once), or None.
        in_channels: channels of the image.

    Shape:
        (B, in_channels, H, W), H and W multiples of the encoder's own stride -> list of maps, finest first.

    Raises:
        UserError: unknown name or weights, stride not achieved.
    """

    def __init__(self, name: str, *, output_stride: int = 16, weights: str | None = None, in_channels: int = 3) -> None:
        super().__init__()
        if ":" in name:  # timm would fetch a model of that name from a hub, or read a folder
            raise UserError(f"the encoder {name!r} is no name of segmentation-models-pytorch.")
        try:
            self.body = smp.encoders.get_encoder(
                name, in_channels=in_channels, depth=5, weights=weights, output_stride=output_stride
            )
        except Exception as error:
            raise UserError(
                f"segmentation-models-pytorch cannot make the encoder {name!r} with weights {weights!r} and output "
                f"stride {output_stride} ({type(error).__name__}: {error})."
            ) from error
        self.measure(in_channels, output_stride)

    def forward(self, image: Tensor) -> list[Tensor]:
        # The first map is the image itself; the second has stride 2 (and no channels in some transformers).
        return list(self.body(image))[2:]
