"""What happens to a training sample, and what is known of ImageNet's colours: without the libraries that do it."""

from dataclasses import dataclass

from segvid.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training sample.

    Args:
        crop_size: height and width of the crop.
        scale: range of the random factor on the image's size (or on `image_size`), drawn uniformly.
        flip: mirror left to right with probability 1/2.
        photometric: brightness, contrast, saturation and hue at random, with probability 1/2.
        cat_max_ratio: draw the crop again, up to ten times, while it shows one class only or one class fills more of
            its labelled pixels than this (mmsegmentation's 0.75); 1 takes the first.

    Raises:
        UserError: a value makes no sense.
    """

    crop_size: tuple[int, int] = (512, 512)
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    photometric: bool = True
    cat_max_ratio: float = 0.75

    def __post_init__(self) -> None:
        if min(self.crop_size) < 1:
            raise UserError(f"augmentation.crop_size is {self.crop_size}; it must be a height and a width in pixels.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"augmentation.scale is {self.scale}; it must be two factors above 0, the smaller first.")
        if not 0 < self.cat_max_ratio <= 1:
            raise UserError(f"augmentation.cat_max_ratio is {self.cat_max_ratio}; it must be above 0 and at most 1.")
