"""Losses against loops in float64 written from their definitions; ignored pixels count nowhere."""

import copy
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from segvid.errors import UserError
from segvid.segmentation.losses import CrossEntropy, Dice, Lovasz, OhemCrossEntropy, SegmentationLoss, WeightedSum

WEIGHTS = [0.5, 2.0, 1.0, 0.25]
LOSSES: dict[str, Callable[[], SegmentationLoss]] = {
    "cross entropy": CrossEntropy,
    "weighted cross entropy": lambda: CrossEntropy(WEIGHTS),
    "ohem, threshold": lambda: OhemCrossEntropy(0.5, min_kept=1),
    "ohem, min_kept": lambda: OhemCrossEntropy(0.01, min_kept=6),
    "weighted ohem": lambda: OhemCrossEntropy(0.5, min_kept=6, class_weights=WEIGHTS),
    "dice": Dice,
    "lovasz": Lovasz,
    "sum": lambda: WeightedSum([CrossEntropy(), Dice(), Lovasz()], [1.0, 0.5, 2.0]),
}
every_loss = pytest.mark.parametrize("loss", [make() for make in LOSSES.values()], ids=list(LOSSES))


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, 4, 5, 6) and a mask with all four classes and a quarter of it ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2.0 * torch.randn(2, 4, 5, 6, generator=generator)
    mask = torch.randint(4, (2, 5, 6), generator=generator)
    mask[torch.rand(2, 5, 6, generator=generator) < 0.25] = 255
    return logits, mask


Pixel = tuple[tuple[int, int, int], int, list[float]]  # where, label, probability of every class


def counted_pixels(logits: Tensor, mask: Tensor) -> list[Pixel]:
    """The pixels that are not ignored, in float64 and without torch's softmax."""
    pixels: list[Pixel] = []
    for b, labels in enumerate(mask.tolist()):
        for y, row in enumerate(labels):
            for x, label in enumerate(row):
                if label != 255:
                    exponentials = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                    pixels.append(((b, y, x), label, [e / sum(exponentials) for e in exponentials]))
    return pixels


def mean_negative_log(pixels: Sequence[Pixel], weights: Sequence[float] | None = None) -> float:
    weight = [1.0 if weights is None else weights[label] for _, label, _ in pixels]
    total = sum(w * -math.log(p[label]) for w, (_, label, p) in zip(weight, pixels, strict=True))
    return total / sum(weight)


def pixels_with_gradient(loss: SegmentationLoss, logits: Tensor, mask: Tensor) -> set[tuple[int, ...]]:
    """The pixels that the loss depends on."""
    logits = logits.clone().requires_grad_()
    loss(logits, mask).backward()
    assert logits.grad is not None
    return {tuple(position) for position in logits.grad.abs().sum(1).nonzero().tolist()}


# Cross entropy


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_the_mean_over_the_counted_pixels(weights: list[float] | None) -> None:
    logits, mask = example()
    assert (mask == 255).any()
    value = CrossEntropy(weights)(logits, mask)
    assert value.item() == pytest.approx(mean_negative_log(counted_pixels(logits, mask), weights), rel=1e-5)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_and_its_gradient_are_torchs(weights: list[float] | None) -> None:
    logits, mask = example(1)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    CrossEntropy(weights)(ours, mask).backward()
    nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights), ignore_index=255)(theirs, mask).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_mask_of_classes_of_weight_zero_gives_zero() -> None:
    logits, mask = example()
    mask[mask != 255] = 1
    assert CrossEntropy([1.0, 0.0, 1.0, 1.0])(logits, mask) == 0


@pytest.mark.parametrize("make", [CrossEntropy, lambda weights: OhemCrossEntropy(class_weights=weights)])
@pytest.mark.parametrize("count", [3, 5])
def test_wrong_number_of_class_weights(make: Callable[[list[float]], SegmentationLoss], count: int) -> None:
    with pytest.raises(UserError, match=f"{count} class weights.* 4 classes"):
        make([1.0] * count)(*example())


def test_class_weights_stay_what_they_are_in_a_model_of_half_precision() -> None:
    logits, mask = example()
    loss = CrossEntropy([0.1, 0.2, 0.3, 0.4])
    assert torch.equal(copy.deepcopy(loss).bfloat16()(logits, mask), loss(logits, mask))


def test_class_weights_are_not_part_of_the_checkpoint() -> None:
    # a checkpoint must load into a task without them
    assert not CrossEntropy(WEIGHTS).state_dict()
    assert not OhemCrossEntropy(class_weights=WEIGHTS).state_dict()


# OHEM


def naive_ohem(pixels: list[Pixel], batch: int, threshold: float, min_kept: int) -> list[Pixel]:
    """The definition: all pixels below the threshold, but at least the `min_kept` x batch hardest of the batch."""
    pixels = sorted(pixels, key=lambda pixel: pixel[2][pixel[1]])
    below = [pixel for pixel in pixels if pixel[2][pixel[1]] < threshold]
    return below if len(below) >= min_kept * batch else pixels[: min_kept * batch]


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [(0.7, 1), (0.3, 1), (0.3, 5), (0.01, 4), (0.01, 9), (0.7, 1000), (0.0, 1)],
)
def test_ohem_keeps_exactly_the_hard_pixels(threshold: float, min_kept: int, weights: list[float] | None) -> None:
    logits, mask = example(2)
    kept = naive_ohem(counted_pixels(logits, mask), len(mask), threshold, min_kept)
    loss = OhemCrossEntropy(threshold, min_kept, weights)
    assert loss(logits, mask).item() == pytest.approx(mean_negative_log(kept, weights), rel=1e-5)
    assert pixels_with_gradient(loss, logits, mask) == {where for where, _, _ in kept}


def test_the_cases_above_reach_both_branches() -> None:
    pixels = counted_pixels(*example(2))
    below = {t: sum(p[label] < t for _, label, p in pixels) for t in (0.7, 0.3, 0.01)}
    assert len(pixels) > below[0.7] > below[0.3] > 2 * 5
    assert below[0.01] < 2 * 4
    assert 2 * 9 < len(pixels) < 2 * 1000


def test_min_kept_is_counted_over_the_batch_not_in_every_image() -> None:
    # all of image 0 is harder than all of image 1: the 2 x 3 hardest pixels all lie in image 0
    mask = torch.zeros(2, 3, 4, dtype=torch.long)
    logits = torch.zeros(2, 2, 3, 4)
    logits[:, 0] = torch.linspace(1.0, 2.0, 24).view(2, 3, 4)
    loss = OhemCrossEntropy(threshold=0.1, min_kept=3)
    assert pixels_with_gradient(loss, logits, mask) == {(0, i // 4, i % 4) for i in range(6)}


def test_without_min_kept_only_the_threshold_counts() -> None:
    logits, mask = example(2)
    hard = naive_ohem(counted_pixels(logits, mask), len(mask), 0.3, 0)
    assert pixels_with_gradient(OhemCrossEntropy(0.3, min_kept=0), logits, mask) == {where for where, _, _ in hard}
    confident = torch.zeros(1, 2, 3, 3)
    confident[:, 0] = 5.0
    assert OhemCrossEntropy(0.3, min_kept=0)(confident, torch.zeros(1, 3, 3, dtype=torch.long)) == 0


# Dice and Lovasz

HAND_PROBABILITY = torch.tensor([0.2, 0.6, 0.9, 0.5])  # of class 1
HAND_MASK = torch.tensor([[[0, 1], [1, 255]]])


def hand_case() -> tuple[Tensor, Tensor]:
    return torch.stack([1 - HAND_PROBABILITY, HAND_PROBABILITY]).log().view(1, 2, 2, 2), HAND_MASK


def test_dice_by_hand() -> None:
    # 2 x intersection / (probabilities + labels) over the three counted pixels
    class_0 = 2 * 0.8 / ((0.8 + 0.4 + 0.1) + 1)
    class_1 = 2 * (0.6 + 0.9) / ((0.2 + 0.6 + 0.9) + 2)
    assert Dice()(*hand_case()).item() == pytest.approx(1 - (class_0 + class_1) / 2, rel=1e-5)


def test_lovasz_by_hand() -> None:
    # Errors 0.4, 0.2, 0.1, largest first. Jaccard losses of the sets of the 1, 2, 3 largest: class 0, whose only pixel
    # is the second: 1/2, 1, 1; class 1, whose pixels are the first and the third: 1/2, 2/3, 1.
    class_0 = 0.4 * 1 / 2 + 0.2 * 1 / 2
    class_1 = 0.4 * 1 / 2 + 0.2 * (2 / 3 - 1 / 2) + 0.1 * (1 - 2 / 3)
    assert Lovasz()(*hand_case()).item() == pytest.approx((class_0 + class_1) / 2, rel=1e-5)


def naive_dice(pixels: list[Pixel], classes: int) -> float:
    total = 0.0
    for k in range(classes):
        intersection = sum(p[k] for _, label, p in pixels if label == k)
        total += 2 * intersection / sum(p[k] + (label == k) for _, label, p in pixels)
    return 1 - total / classes


def naive_lovasz(pixels: list[Pixel], classes: int) -> float:
    """Berman et al., equations 7 and 9: the Lovasz extension of the Jaccard loss of a set of wrong pixels."""
    total = 0.0
    for k in range(classes):
        truth = {where for where, label, _ in pixels if label == k}
        errors = sorted(((1 - p[k] if label == k else p[k], where) for where, label, p in pixels), reverse=True)
        wrong: set[tuple[int, int, int]] = set()
        before = 0.0
        for error, where in errors:
            wrong.add(where)
            now = len(wrong) / len(truth | wrong)
            total += error * (now - before)
            before = now
    return total / classes


@pytest.mark.parametrize("seed", [3, 4])
def test_dice_and_lovasz_over_the_whole_batch(seed: int) -> None:
    logits, mask = example(seed)
    pixels = counted_pixels(logits, mask)
    assert {label for _, label, _ in pixels} == set(range(4))
    assert Dice()(logits, mask).item() == pytest.approx(naive_dice(pixels, 4), rel=1e-5)
    assert Lovasz()(logits, mask).item() == pytest.approx(naive_lovasz(pixels, 4), rel=1e-5)


# Every loss


@every_loss
def test_logits_under_ignored_pixels_change_nothing(loss: SegmentationLoss) -> None:
    logits, mask = example(5)
    ignored = (mask == 255).unsqueeze(1)
    other = torch.where(ignored, torch.randn(logits.shape, generator=torch.Generator().manual_seed(6)) * 9, logits)
    assert torch.equal(loss(logits, mask), loss(other, mask))
    assert pixels_with_gradient(loss, logits, mask).isdisjoint({tuple(p) for p in (mask == 255).nonzero().tolist()})


@every_loss
def test_nothing_labelled_gives_zero_with_a_gradient(loss: SegmentationLoss) -> None:
    # a random crop may hold ignored pixels only; NaN there would end a training
    logits = example()[0].requires_grad_()
    value = loss(logits, torch.full((2, 5, 6), 255))
    assert value.shape == ()
    assert value == 0
    value.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@every_loss
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_value_and_gradient_are_finite(loss: SegmentationLoss, scale: float) -> None:
    logits, mask = example(7)
    logits = (scale * logits).requires_grad_()
    value = loss(logits, mask)
    assert value.shape == ()
    assert value > 0
    assert value.isfinite()
    value.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    if scale == 1.0:
        assert (logits.grad != 0).any()


@every_loss
def test_the_mask_is_left_as_it_is(loss: SegmentationLoss) -> None:
    logits, mask = example(8)
    before = mask.clone()
    loss(logits, mask)
    assert torch.equal(mask, before)


@every_loss
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [True, False])
def test_every_loss_is_computed_in_float32(loss: SegmentationLoss, half: torch.dtype, mixed: bool) -> None:
    """In mixed and in true half precision, the model converted: the loss of the rounded logits, not a rounded loss."""
    logits, mask = example(7)
    logits = logits.to(half)
    expected = loss(logits.float(), mask)
    given = logits.clone().requires_grad_()
    with torch.autocast("cpu", half, enabled=mixed):
        value = (loss if mixed else copy.deepcopy(loss).to(half))(given, mask)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    value.backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()


@every_loss
def test_what_an_image_counts_in_the_mean_over_a_data_set(loss: SegmentationLoss) -> None:
    """For cross entropy the mean over all images is that over all pixels, weighted or not."""
    logits, mask = example(5)
    mask[0, :3] = 255
    values = torch.stack([loss(logits[i : i + 1], mask[i : i + 1]) for i in range(2)])
    weights = loss.weight(mask)
    assert weights.shape == (2,)
    assert loss.weight(torch.full_like(mask, 255)).tolist() == [0, 0]
    if isinstance(loss, CrossEntropy):
        torch.testing.assert_close((values * weights).sum() / weights.sum(), loss(logits, mask))
    else:
        assert weights.tolist() == [int((m != 255).sum()) for m in mask]


# WeightedSum


def test_weighted_sum() -> None:
    logits, mask = example(9)
    a, b = CrossEntropy()(logits, mask), Dice()(logits, mask)
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()])(logits, mask), a + b)
    torch.testing.assert_close(WeightedSum([CrossEntropy(), Dice()], [0.3, 2.0])(logits, mask), 0.3 * a + 2.0 * b)


def test_weighted_sum_with_the_wrong_number_of_weights() -> None:
    with pytest.raises(UserError, match="2 losses but 1 weights"):
        WeightedSum([CrossEntropy(), Dice()], [1.0])
