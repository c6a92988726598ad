"""What a data set of segmentation gives."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Sample(TypedDict):
    """One image with its mask: `image` (3, H, W) float, `mask` (H', W') int64 with 255 ignored, `name` of the image.

    `distance` (H', W') float, where a data set knows it: how far, in pixels, lies what decides the label; -1 elsewhere.
    """

    image: Tensor
    mask: Tensor
    name: NotRequired[str]
    distance: NotRequired[Tensor]
