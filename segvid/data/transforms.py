"""Augmentation of image and mask: the field's random scale, crop, flip and photometric distortion, with albumentations.

Random scale and crop are one step here: of a large frame, the part that the crop shows is sampled straight into the
crop. The pixels are those of "resize the frame, then cut", without resizing the nine tenths that are thrown away.
"""

import os
import random
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else it asks the network for its newest version at import

import albumentations as A
import cv2
import numpy as np
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray

from segvid.data.augmentation import IMAGENET_MEAN, IMAGENET_STD, Augmentation
from segvid.data.reading import IGNORED

cv2.setNumThreads(0)  # the loader's workers are the parallelism; OpenCV's own threads slow them down and can hang forks


class RandomScaleCrop(A.DualTransform):  # type: ignore[misc]
    """Random scale, random crop, padding: images with 0, masks with 255, at the bottom and the right.

    Args:
        crop_size: height and width of the crop.
        scale: range of the random factor.
        image_size: size that the factor refers to; the image's own when None.
        cat_max_ratio: see `Augmentation`.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale: tuple[float, float],
        image_size: tuple[int, int] | None = None,
        cat_max_ratio: float = 1.0,
    ) -> None:
        super().__init__(p=1.0)
        self.crop_size = crop_size
        self.scale = scale
        self.image_size = image_size
        self.cat_max_ratio = cat_max_ratio

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws scale and offset: the size of the scaled image, and the corner of the crop in it."""
        height, width = params["shape"][:2]
        base_height, base_width = self.image_size or (height, width)
        factor = self.py_random.uniform(*self.scale)
        scaled = (max(round(base_height * factor), 1), max(round(base_width * factor), 1))
        corner = self.draw_corner(scaled)
        for _ in range(10 if self.cat_max_ratio < 1 and "mask" in data else 0):
            if not self.one_class_fills(data["mask"], scaled, corner):
                break
            corner = self.draw_corner(scaled)
        return {"scaled": scaled, "corner": corner}

    def draw_corner(self, scaled: tuple[int, int]) -> tuple[int, int]:
        """Top and left of the crop inside the scaled image."""
        top = self.py_random.randint(0, max(scaled[0] - self.crop_size[0], 0))
        left = self.py_random.randint(0, max(scaled[1] - self.crop_size[1], 0))
        return top, left

    def one_class_fills(self, mask: NDArray[np.uint8], scaled: tuple[int, int], corner: tuple[int, int]) -> bool:
        """Whether one class has more than `cat_max_ratio` of the labelled pixels of the crop (looked at 1 in 4 x 4)."""
        rows = slice(
            corner[0] * mask.shape[0] // scaled[0],
            -(-(corner[0] + self.crop_size[0]) * mask.shape[0] // scaled[0]),
            4,
        )
        columns = slice(
            corner[1] * mask.shape[1] // scaled[1],
            -(-(corner[1] + self.crop_size[1]) * mask.shape[1] // scaled[1]),
            4,
        )
        counts = np.bincount(mask[rows, columns].ravel(), minlength=256)[:IGNORED]
        return bool(np.count_nonzero(counts) < 2 or counts.max() > self.cat_max_ratio * counts.sum())

    def apply(
        self, img: NDArray[np.uint8], scaled: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> NDArray[np.uint8]:
        """The crop of the image, bilinear."""
        return self.sample(img, scaled, corner, cv2.INTER_LINEAR, 0)

    def apply_to_mask(
        self, mask: NDArray[np.uint8], scaled: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> NDArray[np.uint8]:
        """The crop of the mask, nearest."""
        return self.sample(mask, scaled, corner, cv2.INTER_NEAREST, IGNORED)

    def sample(
        self, source: NDArray[np.uint8], scaled: tuple[int, int], corner: tuple[int, int], interpolation: int, fill: int
    ) -> NDArray[np.uint8]:
        """The crop of the scaled source: cut out of it, or sampled with the phase of a resize, centre to centre."""
        height = min(self.crop_size[0], scaled[0] - corner[0])
        width = min(self.crop_size[1], scaled[1] - corner[1])
        if scaled[0] * scaled[1] < 3 * height * width:  # a resize is that much faster for each of its pixels
            exact = cv2.INTER_NEAREST_EXACT if interpolation == cv2.INTER_NEAREST else interpolation
            frame = cv2.resize(source, (scaled[1], scaled[0]), interpolation=exact)
            crop = frame[corner[0] : corner[0] + height, corner[1] : corner[1] + width]
        else:
            step_y, step_x = source.shape[0] / scaled[0], source.shape[1] / scaled[1]
            to_source = np.array(
                [
                    [step_x, 0.0, (corner[1] + 0.5) * step_x - 0.5],
                    [0.0, step_y, (corner[0] + 0.5) * step_y - 0.5],
                ]
            )
            flags = interpolation | cv2.WARP_INVERSE_MAP
            crop = cv2.warpAffine(source, to_source, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        bottom, right = self.crop_size[0] - height, self.crop_size[1] - width
        if bottom or right:
            value = (fill,) * 3
            crop = cv2.copyMakeBorder(crop, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=value)
        return np.asarray(crop)


def training_transform(
    augmentation: Augmentation,
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> A.Compose:
    """Random scale and crop, flip, photometric distortion, normalisation, tensors."""
    steps: list[A.BasicTransform] = [
        RandomScaleCrop(augmentation.crop_size, augmentation.scale, image_size, augmentation.cat_max_ratio)
    ]
    if augmentation.flip:
        steps.append(A.HorizontalFlip(p=0.5))
    if augmentation.photometric:
        # The ranges of mmsegmentation's PhotoMetricDistortion: 32 of 255, half, half, 18 of 180 degrees.
        steps.append(
            A.ColorJitter(brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.1, 0.1), p=0.5)
        )
    return A.Compose([*steps, A.Normalize(tuple(mean), tuple(std)), ToTensorV2()])


def reseed(transform: A.Compose, seed: int) -> None:
    """Gives all steps of the transform one stream of random numbers that starts from the seed.

    `transform.set_random_seed` starts every step from the same state instead: the flip would follow from the scale.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def evaluation_transform(mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> A.Compose:
    """Normalisation and tensors; sizes stay."""
    return A.Compose([A.Normalize(tuple(mean), tuple(std)), ToTensorV2()], is_check_shapes=False)
