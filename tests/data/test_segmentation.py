"""Samples and loaders: every option, every way a file can be wrong, and random crops that are random."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from segvid.data import Augmentation, FolderSegmentation, SegmentationDataModule
from segvid.data.reading import DataError, identity_table, read_image
from segvid.data.segmentation import Pair, PairDataset, collate
from segvid.errors import UserError
from tests.data.miniature import FOLDER_CLASSES, make_folder

SMALL = Augmentation(crop_size=(32, 48))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set")


def module(root: Path, **options: Any) -> FolderSegmentation:
    return FolderSegmentation(str(root), **{"batch_size": 2, "num_workers": 0, "augmentation": SMALL, **options})


# Random crops


def noise_dataset(folder: Path, length: int = 8) -> PairDataset:
    """The same file many times: samples differ by their augmentation alone."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / "image.png")
    Image.fromarray(rng.integers(0, 21, (60, 80), dtype=np.uint8)).save(folder / "mask.png")
    return PairDataset(
        [Pair(folder / "image.png", folder / "mask.png")] * length, identity_table(21), augmentation=SMALL
    )


def two_epochs(dataset: PairDataset, seed: int, num_workers: int, persistent: bool) -> list[list[torch.Tensor]]:
    torch.manual_seed(seed)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=num_workers, persistent_workers=persistent, shuffle=True, collate_fn=collate
    )
    return [[image for batch in loader for image in batch["image"]] for _ in range(2)]


@pytest.mark.parametrize(("num_workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_every_sample_is_augmented_anew_and_the_seed_repeats_all(
    tmp_path: Path, num_workers: int, persistent: bool
) -> None:
    dataset = noise_dataset(tmp_path)
    first = two_epochs(dataset, 1, num_workers, persistent)
    everything = [image for epoch in first for image in epoch]
    assert len(everything) == 16
    for a in range(16):
        for b in range(a):
            assert not torch.equal(everything[a], everything[b]), f"samples {a} and {b} of two epochs are the same"
    again = two_epochs(dataset, 1, num_workers, persistent)
    assert all(torch.equal(x, y) for e, f in zip(first, again, strict=True) for x, y in zip(e, f, strict=True))
    other = two_epochs(dataset, 2, num_workers, persistent)
    assert not any(torch.equal(x, y) for e, f in zip(first, other, strict=True) for x, y in zip(e, f, strict=True))


def test_the_steps_of_a_sample_are_independent(tmp_path: Path) -> None:
    """One seed for every step, as albumentations has it, would flip exactly the images that are scaled down."""
    dataset = noise_dataset(tmp_path, 300)
    torch.manual_seed(0)
    ramp = np.tile(np.arange(80, dtype=np.uint8), (60, 1))
    Image.fromarray(ramp).save(tmp_path / "image.png")
    drawn = []
    for index in range(len(dataset)):
        image = dataset[index]["image"][0]
        drawn.append((dataset.transform.transforms[0].params["scaled"][0], float(image[0, 0] > image[0, 15])))
    assert abs(np.corrcoef(np.array(drawn).T)[0, 1]) < 0.2  # 3.5 standard deviations of independent draws
    assert 0.4 < np.mean(drawn, axis=0)[1] < 0.6


def test_evaluation_draws_nothing(root: Path) -> None:
    dataset = module(root).dataset("val", augmented=False)
    state = torch.get_rng_state()
    first, second = dataset[0], dataset[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first["image"], second["image"])


# Files that are wrong


def break_image(pair: Pair) -> None:
    content = pair.image.read_bytes()
    pair.image.write_bytes(content[: len(content) // 2])


def deepen_image(pair: Pair) -> None:
    Image.fromarray(np.zeros((60, 80), dtype=np.uint16)).save(pair.image, format="PNG")


def remove_image(pair: Pair) -> None:
    pair.image.unlink()


def remove_mask(pair: Pair) -> None:
    pair.mask.unlink()


def shrink_mask(pair: Pair) -> None:
    Image.fromarray(np.zeros((60, 79), dtype=np.uint8)).save(pair.mask)


def foreign_id(pair: Pair) -> None:
    Image.fromarray(np.full((60, 80), 3, dtype=np.uint8)).save(pair.mask)


def foreign_colour(pair: Pair) -> None:
    Image.fromarray(np.full((60, 80, 3), 3, dtype=np.uint8)).save(pair.mask)


WRONGS = [
    (break_image, r"b\.jpg: cannot be read as an image"),
    (deepen_image, r"b\.jpg: has more than 8 bits"),
    (remove_image, r"b\.jpg: there is no such file"),
    (remove_mask, r"b\.png: there is no such file"),
    (shrink_mask, r"b\.png: is 79 x 60 pixels, but its image .*b\.jpg is 80 x 60"),
    (foreign_id, r"b\.png: has the label ids \[3\]"),
    (foreign_colour, r"b\.png: has 1 colours that the palette does not have, such as \[\(3, 3, 3\)\]"),
]


@pytest.mark.parametrize(("damage", "message"), WRONGS, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("augmented", [False, True])
def test_wrong_files_are_named(root: Path, damage: Any, message: str, augmented: bool) -> None:
    data = module(root)
    dataset = data.dataset("train", augmented=augmented)
    damage(data.pairs("train")[1])
    dataset[0]
    with pytest.raises(DataError, match=message):
        dataset[1]


def test_errors_of_workers_are_the_same_sentences(root: Path) -> None:
    data = module(root, num_workers=1)
    foreign_id(data.pairs("val")[1])
    batches = iter(data.val_dataloader())
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value).startswith(str(data.pairs("val")[1].mask))
    assert "\n" not in str(caught.value)


# Loaders


def drain(loader: DataLoader[Any]) -> Iterator[dict[str, Any]]:
    for batch in loader:
        assert batch["image"].dtype == torch.float32
        assert batch["mask"].dtype == torch.int64
        assert batch["image"].shape[0] == batch["mask"].shape[0] == len(batch["name"])
        assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 255}
        yield batch


def test_defaults() -> None:
    data = FolderSegmentation("nowhere", class_names=FOLDER_CLASSES)
    assert (data.batch_size, data.eval_batch_size, data.num_workers, data.test_split) == (8, 1, 4, "val")
    assert data.image_size is None
    assert data.augmentation == Augmentation((512, 512), (0.5, 2.0), True, True, 0.75)
    assert data.ignore_index == 255


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_training_batches(root: Path, batch_size: int, batches: int) -> None:
    """Shuffled, of one size, and without the incomplete one."""
    torch.manual_seed(0)
    loader = module(root, batch_size=batch_size).train_dataloader()
    orders = set()
    for _ in range(8):
        epoch = list(drain(loader))
        assert len(epoch) == len(loader) == batches
        assert all(batch["image"].shape == (batch_size, 3, 32, 48) for batch in epoch)
        assert all(batch["mask"].shape == (batch_size, 32, 48) for batch in epoch)
        orders.add(tuple(name for batch in epoch for name in batch["name"]))
    assert len(orders) > 3


@pytest.mark.parametrize("eval_batch_size", [1, 2, 5])
def test_evaluation_batches(root: Path, eval_batch_size: int) -> None:
    """In order, all of them, at the image's own size."""
    data = module(root, eval_batch_size=eval_batch_size)
    for loader in (data.val_dataloader(), data.test_dataloader()):
        epoch = list(drain(loader))
        names = [name for batch in epoch for name in batch["name"]]
        assert names == [str(pair.image) for pair in data.pairs("val")]
        assert len(epoch) == -(-2 // eval_batch_size)
        assert all(batch["image"].shape[2:] == batch["mask"].shape[1:] == (60, 80) for batch in epoch)


def test_test_split(root: Path) -> None:
    data = module(root, test_split="train")
    assert len(list(drain(data.test_dataloader()))) == 4
    with pytest.raises(UserError, match="split 'test'"):
        module(root, test_split="test").test_dataloader()


def test_num_workers(root: Path) -> None:
    data = module(root, num_workers=2)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert loader.num_workers == 2
        assert loader.persistent_workers
    assert len(list(drain(data.train_dataloader()))) == 2
    assert not module(root, num_workers=0).train_dataloader().persistent_workers


def test_image_size(root: Path) -> None:
    """Evaluation images are resized and their masks are not; the scale of training refers to the size."""
    plain = Augmentation(crop_size=(30, 40), scale=(1.0, 1.0), flip=False, photometric=False)
    data = module(root, image_size=(30, 40), augmentation=plain, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    batch = next(drain(data.val_dataloader()))
    assert batch["image"].shape == (1, 3, 30, 40)
    assert batch["mask"].shape == (1, 60, 80)
    whole = read_image(data.pairs("val")[0].image).astype(float)
    expected = whole.reshape(30, 2, 40, 2, 3).mean((1, 3))  # bilinear at one half is the mean of four
    np.testing.assert_allclose(batch["image"][0].permute(1, 2, 0) * 255, expected, atol=1.01)
    batch = next(drain(data.train_dataloader()))
    whole = read_image(Path(batch["name"][0])).astype(float)
    expected = whole.reshape(30, 2, 40, 2, 3).mean((1, 3))
    np.testing.assert_allclose(batch["image"][0].permute(1, 2, 0) * 255, expected, atol=1.01)
    assert batch["mask"].shape == (2, 30, 40)


def test_mean_and_std(root: Path) -> None:
    data = module(root, mean=(0.5, 0.25, 0.125), std=(0.5, 0.2, 0.1))
    image = next(drain(data.val_dataloader()))["image"][0]
    raw = torch.from_numpy(read_image(data.pairs("val")[0].image).copy()).permute(2, 0, 1) / 255
    expected = (raw - torch.tensor(data.mean)[:, None, None]) / torch.tensor(data.std)[:, None, None]
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=1e-5)


def test_too_few_samples_for_one_batch(root: Path) -> None:
    with pytest.raises(UserError, match=r"has 4 samples for 1 processes, fewer than one batch of 5 for each"):
        module(root, batch_size=5).train_dataloader()
    data = module(root, batch_size=2)
    data.trainer = SimpleNamespace(world_size=4, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"has 4 samples for 4 processes, fewer than one batch of 2 for each"):
        data.train_dataloader()
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
    data.train_dataloader()


@pytest.mark.parametrize("image_size", [None, (40, 40)])
def test_images_of_different_sizes_are_no_batch(root: Path, image_size: tuple[int, int] | None) -> None:
    pair = module(root).pairs("val")[1]
    Image.fromarray(np.zeros((50, 70, 3), dtype=np.uint8)).save(pair.image)
    Image.fromarray(np.zeros((50, 70), dtype=np.uint8)).save(pair.mask)
    assert len(list(drain(module(root, image_size=image_size).val_dataloader()))) == 2
    with pytest.raises(UserError, match=r"different sizes .*\(50, 70\).*Set data\.init_args\.eval_batch_size to 1\."):
        list(module(root, image_size=image_size, eval_batch_size=2).val_dataloader())


def test_samples_without_a_name_are_a_batch() -> None:
    samples: list[Any] = [{"image": torch.zeros(3, 4, 5), "mask": torch.zeros(4, 5, dtype=torch.long)}] * 2
    batch = collate(samples)
    assert set(batch) == {"image", "mask"}
    assert batch["image"].shape == (2, 3, 4, 5)


def test_palette_and_names_must_agree() -> None:
    class Broken(SegmentationDataModule):
        def __init__(self) -> None:
            self.class_names = ["a", "b"]
            self.palette = [(0, 0, 0)]
            super().__init__()

    with pytest.raises(UserError, match="2 class names, but 1 colours"):
        Broken()
    with pytest.raises(NotImplementedError):
        SegmentationDataModule.files(FolderSegmentation("nowhere", class_names=["a"]), "train")
