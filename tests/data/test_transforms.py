"""Augmentation: the pixels of "resize the frame, then cut", image and mask together."""

import random

import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segvid.data.transforms import (
    Augmentation,
    RandomScaleCrop,
    evaluation_transform,
    reseed,
    training_transform,
)
from segvid.errors import UserError

Pixels = NDArray[np.uint8]


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """Noise as smooth as a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8), dtype=np.uint8)


def labels(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 21, (height, width), dtype=np.uint8)


def resize_then_cut(
    source: Pixels,
    scaled: tuple[int, int],
    corner: tuple[int, int],
    crop: tuple[int, int],
    interpolation: int,
    fill: int,
) -> Pixels:
    """The definition: the whole frame is resized, padded at the bottom and the right, and cut."""
    frame = cv2.resize(source, (scaled[1], scaled[0]), interpolation=interpolation)
    padded = np.full((corner[0] + crop[0], corner[1] + crop[1], *source.shape[2:]), fill, dtype=np.uint8)
    part = frame[: padded.shape[0], : padded.shape[1]]
    padded[: part.shape[0], : part.shape[1]] = part
    return padded[corner[0] :, corner[1] :]


def half_way(source: int, scaled: int, corner: int, crop: int) -> NDArray[np.bool_]:
    """Positions of the crop whose sample lies in the middle of two pixels of the source."""
    position = (corner + np.arange(crop) + 0.5) * source / scaled  # pixel k spans k to k + 1
    return np.asarray(np.abs(position - position.round()) < 0.02)


# Random scale and crop


@pytest.mark.parametrize("size", [(97, 131), (150, 170), (60, 80), (256, 512), (1024, 2048)])
def test_scale_crop_equals_resize_then_cut(size: tuple[int, int]) -> None:
    """Bilinear values within 2 of 255 and 0.3 on average (OpenCV 5: 1 and 0.15).

    Labels are the same, but for rows and columns that fall half-way between two pixels, +- 0.02: there either is right,
    and OpenCV's resize takes now one, now the other. So does its fixed-point arithmetic next to them.
    """
    image, mask = photo(*size), labels(*size)
    crop = (64, 96)
    transform = RandomScaleCrop(crop, (0.5, 2.0))
    rng = random.Random(0)
    worst, means, compared, padded = 0, [], [], 0
    for k in range(60 if size[0] < 1024 else 14):
        factor = [0.5, 2.0, 1.0, 0.75][k] if k < 4 else rng.uniform(0.5, 2.0)
        scaled = (round(size[0] * factor), round(size[1] * factor))
        corners = [(0, 0), (max(scaled[0] - crop[0], 0), max(scaled[1] - crop[1], 0))]
        corners.append((rng.randint(0, corners[1][0]), rng.randint(0, corners[1][1])))
        for corner in corners:
            expected = resize_then_cut(image, scaled, corner, crop, cv2.INTER_LINEAR, 0)
            found = transform.apply(image, scaled=scaled, corner=corner)
            difference = np.abs(found.astype(int) - expected)
            worst = max(worst, int(difference.max()))
            means.append(difference.mean())
            expected = resize_then_cut(mask, scaled, corner, crop, cv2.INTER_NEAREST_EXACT, 255)
            found = transform.apply_to_mask(mask, scaled=scaled, corner=corner)
            certain = ~half_way(size[0], scaled[0], corner[0], crop[0])[:, None]
            certain = certain & ~half_way(size[1], scaled[1], corner[1], crop[1])
            compared.append(certain.mean())
            assert (found == expected)[certain].all()
            outside = (found == 255) != (expected == 255)
            assert not outside.any()
            padded += int((expected == 255).any())
            if factor == 1.0:
                assert difference.max() == 0
    assert worst <= 2
    assert max(means) < 0.3
    assert np.mean(compared) > 0.8
    assert padded > 10 or size[0] > 200


def test_half_way_takes_one_neighbour_everywhere() -> None:
    mask = labels(64, 64)
    found = RandomScaleCrop((32, 32), (0.5, 0.5)).apply_to_mask(mask, scaled=(32, 32), corner=(0, 0))
    assert any(np.array_equal(found, mask[row::2, column::2]) for row in (0, 1) for column in (0, 1))


def test_identity_and_padding() -> None:
    image, mask = photo(20, 30) | 1, labels(20, 30)
    transform = RandomScaleCrop((25, 40), (1.0, 1.0))
    out = transform(image=image, mask=mask)
    np.testing.assert_array_equal(out["image"][:20, :30], image)
    np.testing.assert_array_equal(out["mask"][:20, :30], mask)
    assert (out["image"][20:] == 0).all()
    assert (out["image"][:, 30:] == 0).all()
    assert (out["mask"][20:] == 255).all()
    assert (out["mask"][:, 30:] == 255).all()


def test_scale_refers_to_image_size() -> None:
    image, mask = photo(40, 60), labels(40, 60)
    transform = RandomScaleCrop((80, 90), (1.0, 1.0), image_size=(80, 90))
    out = transform(image=image, mask=mask)
    expected = cv2.resize(image, (90, 80), interpolation=cv2.INTER_LINEAR)
    assert np.abs(out["image"].astype(int) - expected).max() <= 2
    expected = cv2.resize(mask, (90, 80), interpolation=cv2.INTER_NEAREST_EXACT)
    certain = ~half_way(40, 80, 0, 80)[:, None] & ~half_way(60, 90, 0, 90)
    assert certain.mean() > 0.6
    np.testing.assert_array_equal(out["mask"][certain], expected[certain])


def test_scale_and_corner_cover_their_range() -> None:
    transform = A.Compose([RandomScaleCrop((32, 32), (0.5, 2.0))])
    image = photo(64, 64)
    heights, corners = [], []
    for seed in range(400):
        reseed(transform, seed)
        transform(image=image)
        params = transform.transforms[0].params
        heights.append(params["scaled"][0])
        corners.append(params["corner"][0] / max(params["scaled"][0] - 32, 1))
    assert min(heights) < 35
    assert max(heights) > 124
    assert np.mean(heights) == pytest.approx(80, abs=4)  # uniform in 32 to 128
    assert min(corners) == 0.0
    assert max(corners) == 1.0


# Image and mask together


def stripes(height: int, width: int, axis: int) -> tuple[Pixels, Pixels]:
    """A mask of 0 and 1 in stripes of several widths, and its image: 20 where the mask is 0, 220 where it is 1."""
    widths = np.random.default_rng(0).integers(6, 15, size=40)
    line = np.repeat(np.arange(40) % 2, widths)[: (height, width)[axis]].astype(np.uint8)
    mask = np.broadcast_to(line[:, None] if axis == 0 else line, (height, width))
    return np.repeat((20 + 200 * mask)[..., None], 3, axis=2).astype(np.uint8), np.ascontiguousarray(mask)


@pytest.mark.parametrize("image_size", [None, (90, 150)])
@pytest.mark.parametrize("axis", [0, 1])
def test_image_and_mask_stay_aligned(image_size: tuple[int, int] | None, axis: int) -> None:
    """A bilinear step crosses its middle where the nearest label changes: thresholded, the image is the mask."""
    image, mask = stripes(120, 160, axis)
    augmentation = Augmentation(crop_size=(100, 128), photometric=False, cat_max_ratio=1.0)
    transform = training_transform(augmentation, image_size, mean=(0, 0, 0), std=(1, 1, 1))
    for seed in range(60):
        reseed(transform, seed)
        out = transform(image=image, mask=mask)
        values, found = out["image"][0] * 255, out["mask"]
        inside = found != 255
        half_way = (values - 120).abs() < 8  # 1/25 of a pixel: either label is the nearest
        assert not (((values > 120) != (found == 1)) & inside & ~half_way).any()
        assert half_way.float().mean() < 0.05
        assert (values[~inside] == 0).all()
        # a shift by one pixel would be seen
        shifted = ((values > 120) != (found == 1).roll(1, dims=axis)) & inside & inside.roll(1, dims=axis)
        assert shifted.float().sum() > 0.03 * inside.sum()


def test_flip_is_independent_of_scale_and_jitter() -> None:
    """albumentations gives every step the same seed, and so the flip would follow from the scale."""
    transform = training_transform(Augmentation(crop_size=(32, 32), cat_max_ratio=1.0))
    image = np.repeat(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))[..., None], 3, axis=2)
    drawn = []
    for seed in range(300):
        reseed(transform, seed)
        out = transform(image=image)["image"][0]
        scaled = transform.transforms[0].params["scaled"][0]
        jittered = bool(transform.transforms[2].params)
        drawn.append((scaled, bool(out[0, 0] > out[0, 20]), jittered))
    table = np.array(drawn, dtype=float)
    correlation = np.corrcoef(table.T)
    assert np.abs(correlation - np.eye(3)).max() < 0.2  # 3.5 standard deviations of independent draws
    assert 0.4 < table[:, 1].mean() < 0.6
    assert 0.4 < table[:, 2].mean() < 0.6


def test_reseed_repeats_the_sample() -> None:
    transform = training_transform(Augmentation(crop_size=(32, 48)))
    image, mask = photo(60, 80), labels(60, 80)
    samples = []
    for seed in (1, 2, 1):
        reseed(transform, seed)
        samples.append(transform(image=image, mask=mask))
    assert torch.equal(samples[0]["image"], samples[2]["image"])
    assert torch.equal(samples[0]["mask"], samples[2]["mask"])
    assert not torch.equal(samples[0]["mask"], samples[1]["mask"])


# The share of one class


def two_classes() -> Pixels:
    mask = np.zeros((200, 200), dtype=np.uint8)
    mask[:, 150:] = 1
    return mask


@pytest.mark.parametrize(
    ("column", "fills"),
    [
        (0, True),  # class 0 only
        (100, False),  # half and half
        (72, True),  # 78 of 100 columns are class 0
        (80, False),  # 70 of 100 columns
    ],
)
def test_one_class_fills(column: int, fills: bool) -> None:
    transform = RandomScaleCrop((100, 100), (1.0, 1.0), cat_max_ratio=0.75)
    mask = two_classes()
    assert transform.one_class_fills(mask, (200, 200), (0, column)) is fills
    # the same window of a mask of half the size
    assert transform.one_class_fills(mask[::2, ::2], (200, 200), (0, column)) is fills
    # ignored pixels are not a class: without the right half of class 0 the balance is another
    mask[:, 25:150] = 255
    assert transform.one_class_fills(mask, (200, 200), (0, 0))
    assert not transform.one_class_fills(mask, (100, 100), (0, 0))
    assert transform.one_class_fills(np.full_like(mask, 255), (200, 200), (0, column))


def test_cat_max_ratio_draws_again() -> None:
    """Of crops a quarter as large, those with more than 3/4 of one class become far fewer."""
    mask = two_classes()
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    shares = {}
    for ratio in (1.0, 0.75):
        transform = A.Compose([RandomScaleCrop((100, 100), (1.0, 1.0), cat_max_ratio=ratio)])
        full = 0
        for seed in range(150):
            reseed(transform, seed)
            crop = transform(image=image, mask=mask)["mask"]
            full += int(max((crop == 0).mean(), (crop == 1).mean()) > 0.78)
        shares[ratio] = full / 150
    assert shares[1.0] > 0.6  # 3/4 of the corners
    assert shares[0.75] < 0.15  # 0.75 ** 11 = 0.04


def test_cat_max_ratio_gives_up() -> None:
    transform = RandomScaleCrop((10, 10), (0.5, 2.0), cat_max_ratio=0.1)
    out = transform(image=photo(30, 30), mask=np.zeros((30, 30), dtype=np.uint8))
    assert out["mask"].shape == (10, 10)


# The rest of the chain


def test_normalisation_and_layout() -> None:
    image = np.array([[[255, 0, 51]]], dtype=np.uint8)
    for transform in (
        evaluation_transform((0.5, 0.4, 0.2), (0.5, 0.2, 0.1)),
        training_transform(
            Augmentation(crop_size=(1, 1), scale=(1.0, 1.0), photometric=False), None, (0.5, 0.4, 0.2), (0.5, 0.2, 0.1)
        ),
    ):
        out = transform(image=image, mask=np.array([[7]], dtype=np.uint8))
        assert out["image"].shape == (3, 1, 1)
        assert out["image"].dtype == torch.float32
        torch.testing.assert_close(out["image"].flatten(), torch.tensor([1.0, -2.0, 0.0]), atol=1e-6, rtol=0)
        assert out["mask"].tolist() == [[7]]


def test_photometric_and_flip_can_be_left_out() -> None:
    image, mask = photo(40, 40), labels(40, 40)
    plain = Augmentation(crop_size=(40, 40), scale=(1.0, 1.0), flip=False, photometric=False)
    expected = evaluation_transform()(image=image, mask=mask)
    transform = training_transform(plain)
    changed = training_transform(Augmentation(crop_size=(40, 40), scale=(1.0, 1.0), flip=False))
    differs = 0
    for seed in range(10):
        reseed(transform, seed)
        reseed(changed, seed)
        assert torch.equal(transform(image=image, mask=mask)["image"], expected["image"])
        out = changed(image=image, mask=mask)
        assert torch.equal(out["mask"], expected["mask"])  # colours change, places do not
        differs += int(not torch.equal(out["image"], expected["image"]))
    assert 1 <= differs <= 9


def test_photometric_changes_stay_in_range() -> None:
    """Brightness by at most 1/8, as mmsegmentation's 32 of 255; the mean of a grey image shows it."""
    transform = training_transform(
        Augmentation(crop_size=(16, 16), scale=(1.0, 1.0)), None, mean=(0, 0, 0), std=(1, 1, 1)
    )
    image = np.full((16, 16, 3), 120, dtype=np.uint8)
    means = []
    for seed in range(60):
        reseed(transform, seed)
        means.append(float(transform(image=image)["image"].mean()) * 255)
    assert 120 * 0.87 < min(means) < max(means) < 120 * 1.13
    assert max(means) - min(means) > 15


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"crop_size": (0, 10)}, "crop_size"),
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"scale": (0.0, 0.5)}, "scale"),
        ({"cat_max_ratio": 0.0}, "cat_max_ratio"),
        ({"cat_max_ratio": 75.0}, "cat_max_ratio"),
    ],
)
def test_augmentation_checks_its_values(options: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=rf"augmentation\.{name} is "):
        Augmentation(**options)  # type: ignore[arg-type]
