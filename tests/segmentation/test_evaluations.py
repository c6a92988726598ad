"""`validate` and `test`: their place in the run of a checkpoint, its step, and data that are not those of training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from segvid.cli import main
from segvid.data import FolderSegmentation
from segvid.errors import UserError
from segvid.segmentation import Inference, load_trained
from segvid.segmentation.reporting import evaluation_folder
from tests.data.miniature import make_folder
from tests.small_runs import HEADS, ROOT, words

FOLDER = str(ROOT / "configs/segmentation/recipes/folder.yaml")


@pytest.fixture(scope="module")
def own(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the short training, without evaluations."""
    folder = tmp_path_factory.mktemp("own") / "version_3"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("evaluations"))
    return folder


def evaluate(command: str, run: Path, *options: str, name: str = "last") -> int:
    checkpoint = ["--ckpt_path", str(run / "checkpoints" / f"{name}.ckpt")]
    return main([command, "--config", str(run / "config.yaml"), *checkpoint, *options])


# Where an evaluation is written, and what is printed


def test_an_evaluation_lies_in_the_run_of_its_checkpoint_and_is_named_by_its_options(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {file: file.read_bytes() for file in own.rglob("*") if file.is_file()}
    way = ["--model.init_args.inference.window=[24,24]", "--model.init_args.inference.flip=true"]
    assert evaluate("validate", own, *way) == 0
    assert (
        evaluate("validate", own, "--model.init_args.inference.scales=[0.75,1]", "--trainer.precision=bf16-mixed") == 0
    )
    assert evaluate("validate", own, "--data.init_args.val_scenes=5", "--data.init_args.eval_batch_size=2") == 0
    assert evaluate("test", own) == 0
    found = {folder.name for folder in (own / "evaluations").iterdir()}
    assert found == {
        "val-last-window24x24-flip", "val-last-scales0.75_1-precision=bf16-mixed", "val-last-val_scenes=5", "test-last"
    }  # fmt: skip
    for folder in (own / "evaluations").iterdir():
        stage = folder.name.split("-")[0]
        names = {f"{stage}.json", f"{stage}.csv", f"{stage}_confusion.png", "config.yaml", "panels"}
        assert {file.name for file in folder.iterdir()} == names, "and no log"
        assert [file.name for file in (folder / "panels").iterdir()] == ["step_0000016.png"]
        figures = json.loads((folder / f"{stage}.json").read_text())
        assert (figures["step"], figures["stage"]) == (16, stage)
    assert {file: file.read_bytes() for file in before} == before, "what training wrote stays"
    assert list(tmp_path.iterdir()) == []


def test_the_figures_are_printed_once_with_the_step_of_the_checkpoint(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert evaluate("validate", own, "--panels.images=0") == 0
    said = capsys.readouterr().out
    assert said.count("mIoU") == 1
    assert "val/loss" not in said
    assert f"Figures and confusion matrix at step 16: {own / 'evaluations' / 'val-last'}" in said


def test_every_file_of_an_evaluation_is_written_whole(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = set()
    original = Path.replace

    def watch(self: Path, target: Any) -> Path:
        replaced.add(Path(target))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", watch)
    assert evaluate("validate", own, "--model.init_args.inference.flip=true", "--data.init_args.val_scenes=3") == 0
    (place,) = (own / "evaluations").glob("val-last-flip-*")
    files = {file for file in place.rglob("*") if file.is_file()}
    assert len(files) == 5
    assert files <= replaced


def test_a_checkpoint_without_a_run_has_its_evaluations_beside_it(own: Path, tmp_path: Path) -> None:
    shutil.copy(own / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    assert main(["validate", *words("ccnet"), "--ckpt_path", str(tmp_path / "mine.ckpt")]) == 0
    assert (tmp_path / "evaluations" / "val-mine" / "val.json").is_file()
    assert {file.name for file in tmp_path.iterdir()} == {"mine.ckpt", "evaluations"}


def test_the_name_of_an_evaluation_is_one_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {init_args: {root: a}}\nmodel: {init_args: {head: {class_path: A}}}\n")
    checkpoint = tmp_path / "checkpoints" / "best.ckpt"
    names = set()
    for root in ("a", "b", "../../b", "b" * 300, "\x1b[31m", "B"):
        config = {"data": {"init_args": {"root": root}}, "model": {"init_args": {"head": {"class_path": "A"}}}}
        folder = evaluation_folder(checkpoint, "val", Inference(), config)
        assert folder.parent == tmp_path / "evaluations"
        assert len(folder.name) < 100
        names.add(folder.name.lower())
    assert len(names) == 6
    assert "val-best" in names
    (tmp_path / "config.yaml").write_text("[" * 5000)  # no config: the checkpoint lies in no run
    assert evaluation_folder(checkpoint, "val", Inference(), {}).parent == checkpoint.parent / "evaluations"


def test_two_processes_evaluate_into_one_folder(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "version_0"
    shutil.copytree(own, folder, ignore=shutil.ignore_patterns("evaluations"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "segvid"]
    options = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    more = [
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--data.init_args.val_scenes=7",
    ]
    done = subprocess.run(
        [*command, "validate", *options, *more], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("mIoU") == 1
    (place,) = (folder / "evaluations").iterdir()
    assert place.name == "val-last-val_scenes=7"
    shared = json.loads((place / "val.json").read_text())
    assert shared["step"] == 16
    assert evaluate("validate", folder, "--data.init_args.val_scenes=7") == 0
    alone = json.loads((place / "val.json").read_text())
    assert alone["confusion"] == shared["confusion"]
    assert sum(map(sum, alone["confusion"])) == 7 * 48 * 48
    assert alone["loss"] == pytest.approx(shared["loss"], rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["version_0"]


# Data that are not those of training


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training on a folder of images with three classes, resized to 32 x 48."""
    root = tmp_path_factory.mktemp("folder")
    make_folder(root / "data")
    options = [
        "--config", FOLDER, "--config", str(HEADS / "fcn.yaml"), f"--data.init_args.root={root / 'data'}",
        "--data.init_args.class_names=null", "--data.init_args.batch_size=2", "--data.init_args.num_workers=0",
        "--data.init_args.image_size=[32,48]", "--data.init_args.augmentation.crop_size=[32,32]",
        "--model.init_args.backbone=ConvNet", "--model.init_args.backbone.init_args.widths=[4,6,8]",
        "--trainer.max_steps=2", "--trainer.max_epochs=-1", "--trainer.val_check_interval=2",
        "--trainer.check_val_every_n_epoch=null", f"--trainer.default_root_dir={root / 'runs'}",
    ]  # fmt: skip
    assert main(["fit", *options]) == 0
    (folder,) = (root / "runs").glob("*/version_0")
    return folder


OTHER = {
    "names": (
        "--data.init_args.class_names=[disc,ground,bar]",
        "class_names ['ground', 'disc', 'bar'] there, ['disc', 'ground', 'bar'] here",
    ),
    "size": ("--data.init_args.image_size=[64,96]", "image_size [32, 48] there, [64, 96] here"),
    "mean": ("--data.init_args.mean=[0.5,0.5,0.5]", "mean [0.485, 0.456, 0.406] there, [0.5, 0.5, 0.5] here"),
    "std": ("--data.init_args.std=[0.5,0.5,0.5]", "std [0.229, 0.224, 0.225] there, [0.5, 0.5, 0.5] here"),
}


@pytest.mark.parametrize(
    ("command", "other"),
    [*(("validate", name) for name in OTHER), ("test", "names"), ("fit", "names"), ("resume", "names")],
)
def test_other_data_than_those_of_training_are_an_error(
    command: str, other: str, folder_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option, said = OTHER[other]
    before = sorted(folder_run.parent.rglob("*"))
    capsys.readouterr()
    if command == "resume":
        assert main(["resume", str(folder_run), option]) == 1
    else:
        assert evaluate(command, folder_run, option) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert "add --accept_other_data true" in error
    assert sorted(folder_run.parent.rglob("*")) == before, "no folder of a run is left"


def test_other_data_are_taken_where_that_is_meant_and_only_then(
    folder_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what `compare` calls; the config that is kept does not say so for the next time."""
    option, _ = OTHER["size"]
    assert evaluate("validate", folder_run, option, "--accept_other_data=true") == 0
    (place,) = (folder_run / "evaluations").glob("*image_size=64_96*")
    assert yaml.safe_load((place / "config.yaml").read_text())["accept_other_data"] is False
    capsys.readouterr()
    checkpoint = ["--ckpt_path", str(folder_run / "checkpoints" / "last.ckpt")]
    assert main(["validate", "--config", str(place / "config.yaml"), *checkpoint]) == 1
    assert "image_size [32, 48] there" in capsys.readouterr().err


def data_of(folder_run: Path, **options: Any) -> FolderSegmentation:
    root = folder_run.parents[2] / "data"
    return FolderSegmentation(str(root), **{"image_size": (32, 48), "eval_batch_size": 1, **options})


def test_other_data_are_an_error_with_a_plain_trainer(folder_run: Path) -> None:
    checkpoint = folder_run / "checkpoints" / "last.ckpt"
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", **quiet)
    task = load_trained(checkpoint).task
    swapped = data_of(folder_run, class_names=["disc", "ground", "bar"])
    with pytest.raises(UserError, match=r"class_names \['ground', 'disc', 'bar'\] there.*accept_other_data = True"):
        trainer.validate(task, datamodule=swapped, ckpt_path=checkpoint, weights_only=True, verbose=False)
    trainer.validate(task, datamodule=data_of(folder_run), ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert task.evaluated_step == 2
    task.accept_other_data = True
    trainer.validate(task, datamodule=swapped, ckpt_path=checkpoint, weights_only=True, verbose=False)


def test_names_of_classes_are_text_in_the_message(
    folder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(folder_run / "checkpoints" / "last.ckpt", weights_only=True)
    content["data"]["class_names"] = ["\x1b[31mred", "b", "c"]
    torch.save(content, tmp_path / "red.ckpt")
    capsys.readouterr()
    options = ["--config", str(folder_run / "config.yaml"), "--ckpt_path", str(tmp_path / "red.ckpt")]
    assert main(["validate", *options]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "[31mred" in error
