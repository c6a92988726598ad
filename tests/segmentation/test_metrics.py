"""Figures against confusion matrices worked out by hand and against mmsegmentation's definition in numpy."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from segvid.segmentation.metrics import ImageMean, confusion_matrix, scores

NAN = math.nan


def count(num_classes: int, *pairs: tuple[Tensor, Tensor]) -> Tensor:
    """The confusion matrix of (prediction, mask) pairs, one update each."""
    metric = confusion_matrix(num_classes)
    for prediction, mask in pairs:
        metric.update(prediction, mask)
    return metric.compute()


# By hand


def test_rows_are_labels_and_columns_predictions() -> None:
    mask = torch.tensor([[[0, 0, 0], [1, 1, 255]]])
    prediction = torch.tensor([[[0, 1, 2], [1, 0, 2]]])
    assert count(3, (prediction, mask)).tolist() == [[1, 1, 1], [1, 1, 0], [0, 0, 0]]


def test_figures_by_hand() -> None:
    result = scores(torch.tensor([[50, 10, 0], [5, 20, 5], [0, 2, 8]]))
    assert result.iou == pytest.approx([50 / 65, 20 / 42, 8 / 15])
    assert result.accuracy == pytest.approx([50 / 60, 20 / 30, 8 / 10])
    assert result.dice == pytest.approx([100 / 115, 40 / 62, 16 / 23])
    assert result.mIoU == pytest.approx((50 / 65 + 20 / 42 + 8 / 15) / 3)
    assert result.mAcc == pytest.approx((50 / 60 + 20 / 30 + 8 / 10) / 3)
    assert result.aAcc == pytest.approx(78 / 100)
    assert result.mDice == pytest.approx((100 / 115 + 40 / 62 + 16 / 23) / 3)
    assert result.fwIoU == pytest.approx(0.6 * 50 / 65 + 0.3 * 20 / 42 + 0.1 * 8 / 15)
    assert result.means() == {k: getattr(result, k) for k in ("mIoU", "mAcc", "aAcc", "mDice", "fwIoU")}
    assert result.asdict() == {**result.means(), "iou": result.iou, "accuracy": result.accuracy, "dice": result.dice}


def test_absent_missed_and_invented_classes() -> None:
    # class 0 is right but for one pixel, 1 is in the masks and never predicted, 2 nowhere, 3 predicted and never there
    result = scores(torch.tensor([[5, 0, 0, 1], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    assert result.iou == pytest.approx([5 / 8, 0, NAN, 0], nan_ok=True)
    assert result.dice == pytest.approx([10 / 13, 0, NAN, 0], nan_ok=True)
    assert result.accuracy == pytest.approx([5 / 6, 0, NAN, NAN], nan_ok=True)
    assert result.mIoU == pytest.approx((5 / 8) / 3)
    assert result.mDice == pytest.approx((10 / 13) / 3)
    assert result.mAcc == pytest.approx((5 / 6) / 2)
    assert result.aAcc == pytest.approx(5 / 8)
    assert result.fwIoU == pytest.approx(6 / 8 * 5 / 8)


def test_perfect_and_all_wrong() -> None:
    assert all(v == pytest.approx(1) for v in scores(torch.diag(torch.tensor([3, 1, 7]))).means().values())
    assert all(v == 0 for v in scores(torch.tensor([[0, 3], [4, 0]])).means().values())


def test_nothing_labelled_is_nan_and_no_error() -> None:
    ignored = torch.full((1, 2, 2), 255)
    assert math.isnan(scores(count(2, (torch.zeros_like(ignored), ignored))).mIoU)


# Over a data set


def test_what_is_predicted_on_ignored_pixels_does_not_count() -> None:
    mask = torch.tensor([[[0, 255], [1, 255]]])
    a = count(2, (torch.tensor([[[0, 0], [1, 1]]]), mask))
    b = count(2, (torch.tensor([[[0, 1], [1, 0]]]), mask))
    assert a.tolist() == b.tolist() == [[1, 0], [0, 1]]


def test_several_images_give_the_data_sets_mean_not_the_mean_over_images() -> None:
    # image 1: one pixel of class 1 among nine of class 0, all right; image 2: class 1 everywhere and missed
    mask_1, mask_2 = torch.zeros(1, 2, 5, dtype=torch.long), torch.ones(1, 2, 5, dtype=torch.long)
    mask_1[0, 0, 0] = 1
    prediction_2 = torch.zeros_like(mask_2)
    result = scores(count(2, (mask_1, mask_1), (prediction_2, mask_2)))
    assert result.mIoU == pytest.approx((9 / 19 + 1 / 11) / 2)
    per_image = (scores(count(2, (mask_1, mask_1))).mIoU + scores(count(2, (prediction_2, mask_2))).mIoU) / 2
    assert per_image == pytest.approx(0.5)


def test_batches_and_images_one_by_one_are_the_same() -> None:
    prediction, mask = random_masks(np.random.default_rng(0), 4)
    p, m = torch.from_numpy(prediction), torch.from_numpy(mask)
    singly = count(6, *((p[i : i + 1], m[i : i + 1]) for i in range(len(p))))
    assert torch.equal(count(6, (p, m)), singly)


def test_counts_are_exact_beyond_float32() -> None:
    # float32 cannot tell 2**24 from 2**24 + 1: mmsegmentation's histogram loses pixels there
    metric = confusion_matrix(2)
    metric.confmat += 2**24
    for _ in range(3):
        metric.update(torch.tensor([[[1]]]), torch.tensor([[[0]]]))
    counts = metric.compute()
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[2**24, 2**24 + 3], [2**24, 2**24]]
    result = scores(torch.tensor([[2**24 + 1, 0], [1, 2**24]]))
    assert result.iou == [(2**24 + 1) / (2**24 + 2), 2**24 / (2**24 + 1)]
    assert result.aAcc == (2**25 + 1) / (2**25 + 2)


# mmsegmentation's definition


def random_masks(rng: np.random.Generator, images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Predictions and masks of 6 classes, half of the pixels right; class 4 is never predicted, class 5 is nowhere."""
    mask = rng.integers(0, 5, size=(images, 7, 9))
    prediction = np.where(rng.random(mask.shape) < 0.5, mask, rng.integers(0, 4, size=mask.shape))
    prediction[prediction == 4] = 0
    mask[rng.random(mask.shape) < 0.2] = 255
    return prediction, mask


def areas(prediction: NDArray[np.int64], mask: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """`intersect_and_union` of one image: areas of intersection, union, prediction and label of every class."""
    prediction, label = prediction[mask != 255], mask[mask != 255]
    rows = []
    for k in range(classes):
        p, t = prediction == k, label == k
        rows.append([(p & t).sum(), (p | t).sum(), p.sum(), t.sum()])
    return np.array(rows, dtype=np.float64).T


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_mmsegmentation(seed: int) -> None:
    prediction, mask = random_masks(np.random.default_rng(seed), 5)
    # `total_area_to_metrics`: the areas of all images are summed, then divided
    intersection, union, predicted, labelled = sum(areas(p, m, 6) for p, m in zip(prediction, mask, strict=True))
    with np.errstate(invalid="ignore"):
        iou, accuracy, dice = intersection / union, intersection / labelled, 2 * intersection / (predicted + labelled)
    assert np.isnan(iou[5])
    assert iou[4] == 0

    result = scores(count(6, *zip(torch.from_numpy(prediction).split(2), torch.from_numpy(mask).split(2), strict=True)))
    np.testing.assert_allclose(result.iou, iou)
    np.testing.assert_allclose(result.accuracy, accuracy)
    np.testing.assert_allclose(result.dice, dice)
    assert result.mIoU == pytest.approx(np.nanmean(iou))
    assert result.mAcc == pytest.approx(np.nanmean(accuracy))
    assert result.mDice == pytest.approx(np.nanmean(dice))
    assert result.aAcc == pytest.approx(intersection.sum() / labelled.sum())
    assert result.fwIoU == pytest.approx((labelled[:5] / labelled.sum() * iou[:5]).sum())


def test_the_mean_over_images_is_exact_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(1000, generator=generator) * 10 ** torch.randint(-6, 6, (1000,), generator=generator)
    weights = torch.randint(0, 2_000_000, (1000,), generator=generator)
    pairs = zip(values.tolist(), weights.tolist(), strict=True)
    expected = float(sum(Fraction(value) * weight for value, weight in pairs) / int(weights.sum()))
    found = set()
    for size in (1, 7, 64, 1000):
        mean = ImageMean()
        for part in torch.randperm(1000, generator=generator).split(size):
            mean.update(values[part], weights[part])
        found.add(mean.compute())
    assert len(found) == 1
    assert found.pop() == pytest.approx(expected, rel=1e-15)


def test_the_mean_over_images_without_labels_is_no_number() -> None:
    mean = ImageMean()
    mean.update(torch.zeros(2), torch.zeros(2))
    assert math.isnan(mean.compute())
