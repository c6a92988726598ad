"""The task in Python: a plain Trainer, data and parts of one's own, checkpoints that the commands take, mistakes."""

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from segvid.allowed import MORE
from segvid.backbones import Backbone, ConvNet
from segvid.cli import main
from segvid.errors import UserError
from segvid.segmentation import (
    CrossEntropy,
    Dice,
    DistanceAccuracy,
    EvaluationReport,
    PredictionPanels,
    SegmentationTask,
    WeightedSum,
    load_trained,
)
from segvid.segmentation.heads import DANetHead, DeepLabV3PlusHead, FCNHead

EXAMPLE = """\
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from segvid.backbones import ConvNet
from segvid.segmentation import CrossEntropy, SegmentationTask
from segvid.segmentation.heads import DANetHead


class Squares(LightningDataModule):
    class_names = ["dark", "bright"]
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # kept in the checkpoint: the commands prepare images alike

    def train_dataloader(self):
        images = (torch.rand(32, 3, 6, 8) - 0.5).repeat_interleave(8, 2).repeat_interleave(8, 3) / 0.25
        return DataLoader([{"image": image, "mask": (image[0] > 0).long()} for image in images], batch_size=8)

    val_dataloader = train_dataloader


task = SegmentationTask(ConvNet((8, 12, 16)), DANetHead, num_classes=2, loss=CrossEntropy([1.0, 2.0]))
trainer = Trainer(max_epochs=2, accelerator="cpu")
trainer.fit(task, datamodule=Squares())
trainer.save_checkpoint("squares.ckpt")  # segvid predict --ckpt_path squares.ckpt photos
logits = task.eval()(torch.rand(1, 3, 48, 64))  # (1, 2, 48, 64)
"""
Batch = dict[str, Any]


def batches(count: int = 2, **changes: Any) -> list[Batch]:
    """Noise of three classes, without names."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(2, 3, 24, 32, generator=generator),
            "mask": torch.randint(3, (2, 24, 32), generator=generator),
            **changes,
        }
        for _ in range(count)
    ]


def loader(samples: list[Any]) -> DataLoader[Any]:
    return DataLoader(samples, batch_size=None)  # type: ignore[arg-type]


def make_trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


def trained(folder: Path, task: SegmentationTask) -> Path:
    """The checkpoint of two steps."""
    trainer = make_trainer(folder, max_steps=2)
    trainer.fit(task, loader(batches()), loader(batches()))
    trainer.save_checkpoint(folder / "mine.ckpt")
    return folder / "mine.ckpt"


def picture(folder: Path) -> Path:
    file = folder / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(file)
    return file


# Names


@pytest.mark.parametrize(
    "package", ["segvid.segmentation", "segvid.data", "segvid.backbones", "segvid.segmentation.heads"]
)
def test_every_name_of_a_package_can_be_imported_from_it(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="nowhere"):
        module.nowhere  # noqa: B018


def test_heads_alone_need_none_of_lightning() -> None:
    code = "import sys; from segvid.segmentation.heads import DANetHead; assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# A plain Trainer and data of one's own


def test_the_example_of_the_readme_and_the_commands_on_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLE.strip().splitlines()) < 28
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)
    assert names["logits"].shape == (1, 2, 48, 64)
    task = names["task"]
    assert float(names["trainer"].callback_metrics["val/mIoU"]) == pytest.approx(task.scores["val"].mIoU)
    scene = picture(tmp_path)
    assert main(["predict", "--ckpt_path", "squares.ckpt", str(scene)]) == 0
    pixels = np.asarray(Image.open(scene)).astype(np.float32).transpose(2, 0, 1)
    expected = task((torch.from_numpy(pixels)[None] / 255 - 0.5) / 0.25).argmax(1)[0].numpy()
    np.testing.assert_array_equal(np.asarray(Image.open("predictions/masks/picture.png")), expected)
    assert load_trained(Path("squares.ckpt")).class_names == ["dark", "bright"]
    assert main(["attention", "--ckpt_path", "squares.ckpt", "--image", str(scene)]) == 0
    assert main(["export", "--ckpt_path", "squares.ckpt", "--output", "squares.ts"]) == 0
    assert "does not say how images are normalised" not in capsys.readouterr().err


def test_loaders_and_callbacks_of_ones_own_need_no_data_module(tmp_path: Path) -> None:
    task = SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3)
    trainer = make_trainer(tmp_path, EvaluationReport(), PredictionPanels(2), max_steps=2, logger=True)
    trainer.fit(task, loader(batches()), loader(batches()))
    assert task.data.class_names == ["class 0", "class 1", "class 2"]
    trainer.validate(task, loader(batches()), verbose=False)
    trainer.test(task, loader(batches()), verbose=False)
    assert {file.name for file in tmp_path.rglob("*.json")} == {"val.json", "test.json"}
    assert len(list(tmp_path.rglob("panels/*.png"))) == 1


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_without_a_logger_nothing_is_written(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    distance = DistanceAccuracy()
    trainer = make_trainer(tmp_path, EvaluationReport(), PredictionPanels(2), distance)
    samples = batches(distance=torch.rand(2, 24, 32) * 20)
    getattr(trainer, stage)(SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3), loader(samples), verbose=False)
    assert distance.bins
    assert not list(tmp_path.iterdir())


def test_a_data_module_of_ones_own_that_says_something_else(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        class_names = ("a", "b")

        def train_dataloader(self) -> Any:
            return loader(batches())

    task = SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3)
    with pytest.raises(UserError, match="Data: field class_names: 2 entries, but the model has 3 classes"):
        make_trainer(tmp_path, max_steps=1).fit(task, datamodule=Data())
    Data.class_names = ("a", "b", "c")  # type: ignore[assignment]
    Data.std = torch.tensor([0.5, 0.0, 0.5])  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"Data: field std.1: Input should be greater than 0 \(found: 0.0\)"):
        make_trainer(tmp_path, max_steps=1).fit(task, datamodule=Data())


# Checkpoints of tasks that were built in Python


class Pooled(nn.Module):
    """A mechanism of one's own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    "head", [FCNHead, partial(DANetHead, channels=8), partial(DeepLabV3PlusHead, channels=8, rates=(1, 2, 3))]
)
def test_a_checkpoint_says_how_its_parts_are_made(head: Any, tmp_path: Path) -> None:
    loss = WeightedSum([CrossEntropy([1.0, 2.0, 3.0]), Dice()], weights=[1.0, 0.5])
    auxiliary = partial(FCNHead, in_index=-2, channels=4)
    task = SegmentationTask(ConvNet([4, 6, 8]), head, 3, auxiliary_head=auxiliary, loss=loss, head_lr_multiplier=3.0)
    file = trained(tmp_path, task)
    model = load_trained(file)
    image = torch.randn(1, 3, 40, 56)
    assert torch.equal(model.task(image), task.eval()(image))
    whole = SegmentationTask.load_from_checkpoint(file, weights_only=True)  # with what training needs
    assert torch.equal(whole.eval()(image), task(image))
    mask = torch.randint(3, (1, 40, 56))
    assert torch.equal(whole.loss(task(image), mask), loss(task(image), mask))
    assert whole.head_lr_multiplier == 3.0
    # in Python the parts can also be given, instead of those of the record
    other = SegmentationTask.load_from_checkpoint(file, backbone=ConvNet([4, 6, 8]), head=head, weights_only=True)
    assert torch.equal(other.eval()(image), task(image))


def test_a_checkpoint_that_does_not_say_it_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Local(FCNHead):
        pass

    for head in (Local, partial(DeepLabV3PlusHead, context=lambda channels: Pooled(channels))):
        task = SegmentationTask(ConvNet([4, 6, 8]), head, 3)
        file = trained(tmp_path, task)
        assert main(["predict", "--ckpt_path", str(file), str(picture(tmp_path))]) == 1
        (error,) = capsys.readouterr().err.strip().splitlines()
        assert "was built in Python, and does not say how to build its head." in error
        again = SegmentationTask.load_from_checkpoint(file, backbone=ConvNet([4, 6, 8]), head=head, weights_only=True)
        image = torch.randn(1, 3, 40, 56)
        assert torch.equal(again.eval()(image), task.eval()(image))


OWN = """
from torch import nn
from segvid.backbones import Backbone
from segvid.segmentation import SegmentationLoss
from segvid.segmentation.heads.base import SegmentationHead

class MyBackbone(Backbone):
    def __init__(self, width, *more, depth=1, **options):
        super().__init__()
        layers = [nn.Conv2d(width if i else 3, width, 3, stride=2, padding=1) for i in range(depth)]
        self.body = nn.Sequential(*layers)
        self.measure()
    def forward(self, image):
        return [self.body(image)]

class MyHead(SegmentationHead):
    def __init__(self, in_channels, num_classes, *, kernel=1):
        super().__init__(in_channels, num_classes)
        self.conv = nn.Conv2d(in_channels[-1], num_classes, kernel, padding=kernel // 2)
    def forward(self, features):
        return self.conv(features[-1])

class MyLoss(SegmentationLoss):
    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(nn.Parameter.__new__(nn.Parameter, __import__("torch").tensor(float(scale))))
    def forward(self, logits, mask):
        return self.scale * logits.square().mean()
"""


def test_parts_of_ones_own_package_work_with_allow_import_and_only_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").touch()
    (tmp_path / "ownpackage" / "parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(os.environ, MORE, "")
    parts = importlib.import_module("ownpackage.parts")
    task = SegmentationTask(parts.MyBackbone(6, depth=2), partial(parts.MyHead, kernel=3), 3, loss=parts.MyLoss(2))
    file = trained(tmp_path, task)
    words = ["predict", "--ckpt_path", str(file), str(picture(tmp_path)), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "ownpackage" in capsys.readouterr().err
    assert main([*words, "--allow_import", "ownpackage"]) == 0
    said = capsys.readouterr().err
    assert f"{file} does not say how images are normalised: ImageNet's" in said
    assert (tmp_path / "out" / "masks" / "picture.png").is_file()
    model = load_trained(file).task
    image = torch.randn(1, 3, 24, 32)
    assert torch.equal(model(image), task.eval()(image))
    assert SegmentationTask.load_from_checkpoint(file, weights_only=True).loss.scale == 2


# Mistakes


class OneTensor(Backbone):
    def __init__(self, measured: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        if measured:
            self.measure()
        else:
            self.channels, self.strides = (4,), (4,)

    def forward(self, image: Tensor) -> Any:
        return self.conv(image)


class Unmeasured(ConvNet):
    def measure(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SegmentationTask(ConvNet((4, 6, 8)), FCNHead([6, 8], 3), 3), "head is of the type FCNHead, not what"),
        (
            lambda: SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3, auxiliary_head=FCNHead([6, 8], 3)),  # type: ignore[arg-type]
            "auxiliary_head is of the type FCNHead, not what makes one: give the class itself",
        ),
        (lambda: SegmentationTask(ConvNet((4, 6, 8)), "FCNHead", 3), "head is of the type str"),  # type: ignore[arg-type]
        (lambda: SegmentationTask(ConvNet((4, 6, 8)), lambda *_: nn.Conv2d(1, 1, 1), 3), "head makes one of the type"),  # type: ignore
        (lambda: SegmentationTask(nn.Conv2d(3, 4, 1), FCNHead, 3), "backbone is of the type Conv2d; give"),  # type: ignore[arg-type]
        (lambda: SegmentationTask(Unmeasured(), FCNHead, 3), r"call self.measure\(\) at the end"),
        (
            lambda: SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3, loss=nn.CrossEntropyLoss()),  # type: ignore[arg-type]
            "loss is of the type CrossEntropyLoss; give",
        ),
        (lambda: OneTensor(), r"OneTensor.forward gives no list of maps .*return \[x\]"),
        (
            lambda: SegmentationTask(OneTensor(measured=False), FCNHead, 3)(torch.zeros(1, 3, 16, 16)),
            "OneTensor gives one tensor where a head takes a list of maps",
        ),
        (lambda: FCNHead([8], 3)(torch.zeros(1, 8, 4, 4)), "FCNHead takes a list of feature maps"),
        (lambda: FCNHead(8, 3), "in_channels is 8; FCNHead takes the channels of every map of the backbone"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parts_are_a_sentence(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda b: (b["image"], b["mask"]), r'The loader gives a (tuple|list); a batch is \{"image"'),
        (lambda b: {"image": b["image"], "label": b["mask"]}, r"gives the keys \['image', 'label'\]; a batch is"),
        (lambda b: b | {"mask": b["mask"].unsqueeze(1)}, r"mask \(2, 1, 24, 32\) torch.int64; a batch is"),
        (lambda b: b | {"mask": b["mask"].byte()}, r"mask \(2, 24, 32\) torch.uint8; a batch is"),
        (lambda b: b | {"image": b["image"].byte()}, r"image \(2, 3, 24, 32\) torch.uint8"),
        (lambda b: b | {"mask": b["mask"] + 1}, "A mask has the label 3; labels go from 0 to 2, and 255 is ignored"),
        (lambda b: b | {"mask": b["mask"] + 254}, "A mask has the label 256"),
        (lambda b: b | {"mask": b["mask"] - 1}, "A mask has the label -1"),
        (
            lambda b: b | {"mask": b["mask"] + 1, "name": ["a.png", "\x1bb.png"]},
            r"A mask has the label 3 \(one of a.png, \\x1bb.png\); labels",
        ),
    ],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_wrong_batches_are_a_sentence(changed: Any, said: str, stage: str, tmp_path: Path) -> None:
    task = SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3)
    right, wrong = loader(batches()), loader([batches()[0], changed(batches()[0])])
    trainer = make_trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    with pytest.raises(UserError, match=said):
        trainer.fit(task, wrong, right) if stage == "fit" else trainer.validate(task, wrong, verbose=False)


def test_ignored_labels_are_no_wrong_labels(tmp_path: Path) -> None:
    sample = batches()[0]
    sample["mask"][:, :5] = 255
    trainer = make_trainer(tmp_path)
    trainer.validate(SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3), loader([sample]), verbose=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_wrong_label_on_a_gpu_is_a_sentence(tmp_path: Path) -> None:
    wrong = loader(batches(mask=torch.full((2, 24, 32), 7)))
    trainer = make_trainer(tmp_path, accelerator="gpu", max_epochs=1)
    with pytest.raises(UserError, match="A mask has the label 7"):
        trainer.fit(SegmentationTask(ConvNet((4, 6, 8)), FCNHead, 3), wrong)
