"""DigitScenes: the same scenes everywhere, honest labels, no other clue than the mark."""

import numpy as np
import pytest
import torch

import segvid.data.digits as digits
from segvid.data.digits import DIGITS, MARK_SIZE, MARKS, DigitScenes, DigitScenesDataset, make_scene


def mark_of(image: np.ndarray) -> tuple[int, np.ndarray]:
    """The mark's colour and where it lies: the only pixels of exactly that colour."""
    found = [(c, (image == MARKS[c]).all(axis=-1)) for c in range(2)]
    found = [(c, where) for c, where in found if where.sum() == MARK_SIZE**2]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_agree_with_the_mark(split: str) -> None:
    seen = set()
    for seed in range(40):
        image, mask = make_scene(np.random.default_rng(seed), split)
        colour, where = mark_of(image)
        labels = set(np.unique(mask).tolist())
        assert 0 in labels
        assert labels - {0} <= set(range(1 + DIGITS * colour, 1 + DIGITS * (colour + 1)))
        assert len(labels) > 1
        assert (mask[where] == 0).all()
        seen |= labels
    assert seen == set(range(11))


def test_labels_name_the_digit_that_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    pools, clutter = digits._pools("train")
    for digit in range(DIGITS):
        # every pool holds glyphs of one digit only: whatever is drawn, the label must be the pool's index
        only = [pools[digit] if d == digit else pools[d][:0] for d in range(DIGITS)]
        monkeypatch.setattr(digits, "_pools", lambda split, only=only: (only, clutter))
        rng = FixedDigit(np.random.default_rng(digit), digit)
        image, mask = make_scene(rng, "train")  # type: ignore[arg-type]
        colour, _ = mark_of(image)
        assert set(np.unique(mask)) == {0, 1 + digit + DIGITS * colour}


class FixedDigit:
    """A generator whose draws of a digit are all the same."""

    def __init__(self, rng: np.random.Generator, digit: int) -> None:
        self.rng, self.digit = rng, digit

    def integers(self, *args: int, **kwargs: int) -> object:
        return self.digit if args == (DIGITS,) else self.rng.integers(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self.rng, name)


def test_the_mask_covers_the_stroke_and_names_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    # Shapes stand for the digits: full, left half, top half, left quarter, top quarter. The ratio of width to height
    # of what the mask marks then tells the digit, with no look at how the scene was made.
    shapes = np.zeros((DIGITS, 8, 8), dtype=np.float32)
    shapes[0] = shapes[1, :, :4] = shapes[2, :4] = shapes[3, :, :2] = shapes[4, :2] = 1
    powers = {0: 0, -1: 1, 1: 2, -2: 3, 2: 4}  # log2(width / height) to digit
    pools = [shape[None] for shape in shapes]
    monkeypatch.setattr(digits, "_pools", lambda split: (pools, np.zeros((1, 8, 8), dtype=np.float32)))
    seen = set()
    for seed in range(40):
        image, mask = make_scene(np.random.default_rng(seed), "train", digits=1)
        colour, where = mark_of(image)
        rows, columns = mask.nonzero()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width
        digit = powers[round(np.log2(width / height))]
        assert set(mask[rows, columns].tolist()) == {1 + digit + DIGITS * colour}
        grey = image.mean(axis=-1)
        stroke, ground = grey[mask > 0], grey[(mask == 0) & ~where]
        # the stroke is bright and the ground dark, but for soft edges
        assert (stroke > 125).mean() > 0.85
        assert (ground < 125).mean() > 0.95
        seen.add(digit)
    assert seen == set(range(DIGITS))


def test_digits_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    # full squares for digits: each is still a square after the other is drawn
    full = np.ones((1, 8, 8), dtype=np.float32)
    monkeypatch.setattr(digits, "_pools", lambda split: ([full] * DIGITS, full))
    pairs = 0
    for seed in range(60):
        _, mask = make_scene(np.random.default_rng(seed), "train", digits=2)
        labels = set(np.unique(mask).tolist()) - {0}
        for label in labels if len(labels) == 2 else ():
            rows, columns = (mask == label).nonzero()
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert np.ptp(rows) == np.ptp(columns)
        pairs += len(labels) == 2
    assert pairs > 30


def test_glyphs_of_the_splits_are_disjoint_and_real() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    known = {
        (image / 16.0).astype(np.float32).tobytes(): int(t) for image, t in zip(data.images, data.target, strict=True)
    }
    parts = {}
    for split in ("train", "val"):
        pools, clutter = digits._pools(split)
        for digit, pool in enumerate(pools):
            assert {known[glyph.tobytes()] for glyph in pool} == {digit}
        assert {known[glyph.tobytes()] for glyph in clutter} == {5, 6, 7, 8, 9}
        parts[split] = {glyph.tobytes() for pool in [*pools, clutter] for glyph in pool}
    assert not parts["train"] & parts["val"]
    assert len(parts["train"]) + len(parts["val"]) == len(known) == 1797


def test_only_the_mark_tells_the_colour() -> None:
    # the two scenes of one random stream differ in the mark alone: nothing else depends on the colour
    class Colour(FixedDigit):
        def integers(self, *args: int, **kwargs: int) -> object:
            drawn = self.rng.integers(*args, **kwargs)
            return self.digit if args == (2,) else drawn

    red, red_mask = make_scene(Colour(np.random.default_rng(3), 0), "train")  # type: ignore[arg-type]
    blue, blue_mask = make_scene(Colour(np.random.default_rng(3), 1), "train")  # type: ignore[arg-type]
    _, where = mark_of(red)
    assert (red[~where] == blue[~where]).all()
    assert (blue_mask == np.where(red_mask > 0, red_mask + DIGITS, 0)).all()


def test_scenes_are_the_same_in_every_process_and_epoch() -> None:
    first, second = DigitScenesDataset("train", 8), DigitScenesDataset("train", 8)
    for index in (3, 0, 7, 3):  # workers and shuffling ask in any order
        first[index]
    for index in (7, 3, 0):
        a, b = first[index], second[index]
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["mask"], b["mask"])
    assert not torch.equal(first[0]["image"], first[1]["image"])
    assert not torch.equal(first[0]["image"], DigitScenesDataset("train", 8, seed=1)[0]["image"])
    assert not torch.equal(first[0]["image"], DigitScenesDataset("val", 8)[0]["image"])
    with pytest.raises(IndexError):
        first[8]


def test_the_layouts_of_the_splits_differ_too() -> None:
    # other glyphs at the same places would make validation a second look at the training scenes
    def layout(split: str, index: int) -> tuple[int, int]:
        colour, where = mark_of(pixels(DigitScenesDataset(split, 6)[index]["image"]))
        return colour, int(where.argmax())

    assert [layout("train", i) for i in range(6)] != [layout("val", i) for i in range(6)]
    assert len({layout("train", i) for i in range(6)}) > 1


def pixels(image: torch.Tensor) -> np.ndarray:
    """The scene behind a sample with the default normalisation."""
    return np.round((image.permute(1, 2, 0).numpy() * 0.25 + 0.5) * 255).astype(np.uint8)


def test_a_sample_is_the_scene_normalised() -> None:
    dataset = DigitScenesDataset("val", 3, seed=5, size=56, digits=2, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    samples = list(dataset)  # ends by itself
    assert len(samples) == len(dataset) == 3
    for sample in samples:
        assert sample["image"].shape == (3, 56, 56)
        assert sample["mask"].shape == (56, 56)
        assert (sample["image"].dtype, sample["mask"].dtype) == (torch.float32, torch.int64)
        restored = sample["image"].permute(1, 2, 0).numpy() * (0.2, 0.25, 0.3) + (0.4, 0.5, 0.6)
        image = np.round(restored * 255).astype(np.uint8)
        assert np.abs(restored * 255 - image).max() < 1e-3
        _, where = mark_of(image)
        labels = sample["mask"].numpy()
        assert (labels[where] == 0).all()
        assert 1 <= len(np.unique(labels)) - 1 <= 2
        # bright pixels are digits: channels, rows and columns are where they should be
        assert image[labels > 0].mean() > image[(labels == 0) & ~where].mean() + 40
    rng = np.random.default_rng(0)
    direct = [make_scene(rng, "val", 56, 2) for _ in range(2)]
    assert (direct[0][0] != direct[1][0]).any()


def test_module_hands_its_options_on() -> None:
    options = {"seed": 3, "size": 56, "digits": 2}
    data = DigitScenes(train_scenes=5, val_scenes=3, **options)
    for split, scenes in (("train", 5), ("val", 3)):
        ours, direct = data.dataset(split, augmented=split == "train"), DigitScenesDataset(split, scenes, **options)
        assert len(ours) == len(direct) == scenes  # type: ignore[arg-type]
        assert torch.equal(ours[1]["image"], direct[1]["image"])
        assert torch.equal(ours[1]["mask"], direct[1]["mask"])


def test_samples_and_module() -> None:
    data = DigitScenes(train_scenes=8, val_scenes=6, batch_size=4, eval_batch_size=3, size=72, digits=3)
    assert data.num_classes == len(data.palette) == 11
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 72, 72)
    assert batch["image"].dtype == torch.float32
    assert batch["mask"].dtype == torch.int64
    assert batch["image"].min() >= -2.0
    assert batch["image"].max() <= 2.0
    assert [len(b["mask"]) for b in data.val_dataloader()] == [3, 3]
