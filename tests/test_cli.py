"""The command line from end to end, as a user types it: training, evaluation, resuming, and every way to mistype."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segvid.cli import main
from segvid.data import DigitScenes
from segvid.segmentation.heads import CCNetHead, DANetHead
from segvid.segmentation.task import SegmentationTask
from segvid.segmentation.trained import load_trained
from tests.small_runs import RECIPE, ROOT, UNEQUAL, words

# The first validation is the best, whatever comes after.
FIRST_IS_BEST = ["--checkpoint.monitor=epoch", "--checkpoint.mode=min"]


def test_a_run_is_one_folder(run: Path) -> None:
    assert [f.name for f in run.parent.parent.iterdir()] == ["DigitScenes-CCNetHead"]
    assert [f.name for f in run.parent.iterdir()] == ["version_0"]
    for name in ("config.yaml", "metrics.csv", "val.json", "val.csv", "val_confusion.png", "panels/step_0000016.png"):
        assert (run / name).is_file(), name
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert list(run.glob("events.out.tfevents.*"))
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/loss", "val/mIoU", "lr-AdamW/backbone"} <= set(header)


def test_the_panels_are_in_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    assert events.Tags()["images"] == ["val/predictions"]
    assert len(events.Images("val/predictions")) == 2


def test_figures_of_a_run_agree_with_each_other(run: Path) -> None:
    figures = json.loads((run / "val.json").read_text())
    counts = torch.tensor(figures["confusion"])
    assert counts.sum() == 8 * 48 * 48
    assert (counts.sum(dim=0) > 0).sum() > 1, "all predictions are one class: no test here would see a difference"
    rows = (run / "val.csv").read_text().splitlines()
    assert rows[0] == "class,IoU,accuracy,Dice,pixels"
    assert rows[1].startswith("background,")
    assert rows[-1].split(",")[0] == "mean"
    assert float(rows[-1].split(",")[1]) == figures["mIoU"]
    present = [value for value in figures["iou"] if value is not None]
    assert figures["mIoU"] == pytest.approx(sum(present) / len(present))


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_evaluating_the_last_checkpoint_gives_the_figures_of_the_end_of_training(
    command: str, stage: str, run: Path
) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert main([command, "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint)]) == 0
    file = run / "evaluations" / f"{stage}-last" / f"{stage}.json"
    again, first = json.loads(file.read_text()), json.loads((run / "val.json").read_text())
    assert again.pop("checkpoint") == str(checkpoint)
    assert again.pop("stage") == stage
    assert again == {key: value for key, value in first.items() if key not in ("checkpoint", "stage")}
    assert again["step"] == 16


def test_the_head_of_the_config_is_tested_not_that_of_the_checkpoint(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Lightning itself would take the checkpoint's hyper-parameters and test recurrence 2, whatever the config says.
    built: list[SegmentationTask] = []
    original = SegmentationTask.on_test_epoch_end

    def remember(task: SegmentationTask) -> None:
        built.append(task)
        original(task)

    monkeypatch.setattr(SegmentationTask, "on_test_epoch_end", remember)
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    root = f"--trainer.default_root_dir={tmp_path}"
    for recurrence in (1, 2):
        option = f"--model.init_args.head.init_args.recurrence={recurrence}"
        assert main(["test", *words("ccnet"), checkpoint, root, option]) == 0
        assert isinstance(built[-1].head, CCNetHead)
        assert built[-1].head.context.recurrence == recurrence
    # another head does not fit the weights: said, and no number printed
    capsys.readouterr()
    assert main(["test", *words("danet"), checkpoint, root]) == 1
    said = capsys.readouterr()
    assert "mIoU" not in said.out
    assert "does not fit the model" in said.err
    assert "Traceback" not in said.err
    assert len(built) == 2


def test_a_checkpoint_is_data_and_rebuilds_its_model(run: Path) -> None:
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["hyper_parameters"]["num_classes"] == 11
    task = SegmentationTask.load_from_checkpoint(path, weights_only=True)
    assert isinstance(task.head, CCNetHead)
    assert task.backbone.channels == (6, 8)
    scenes = DigitScenes(train_scenes=32, val_scenes=8, size=48, digits=2).dataset("val", augmented=False)
    counts = torch.zeros(11, 11, dtype=torch.int64)
    for sample in [scenes[i] for i in range(8)]:
        with torch.no_grad():
            prediction = task.eval()(sample["image"][None]).argmax(1)[0]
        counts += torch.bincount((11 * sample["mask"] + prediction).flatten(), minlength=121).view(11, 11)
    assert counts.tolist() == json.loads((run / "val.json").read_text())["confusion"]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert "num_classes" not in config["model"]["init_args"]
    assert "in_channels" not in config["model"]["init_args"]["head"]["init_args"]


def test_resume_goes_on_in_the_same_folder_with_the_same_schedule(tmp_path: Path) -> None:
    options = [*words("fcn"), "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
    through, halves = tmp_path / "through", tmp_path / "halves"
    assert main(["fit", *options, "--trainer.max_epochs=2", f"--trainer.default_root_dir={through}"]) == 0
    # stopped after one of two epochs; the schedule is that of two
    schedule = "--model.init_args.lr_scheduler.init_args.total_steps=16"
    assert main(["fit", *options, schedule, "--trainer.max_epochs=1", f"--trainer.default_root_dir={halves}"]) == 0
    (folder,) = halves.glob("*/version_0")
    assert main(["resume", str(folder), "--trainer.max_epochs=2"]) == 0
    assert [f.name for f in folder.parent.iterdir()] == ["version_0"]
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    (other,) = through.glob("*/version_0/checkpoints/last.ckpt")
    expected = torch.load(other, weights_only=True)
    assert last["global_step"] == expected["global_step"] == 16
    rates = [group["lr"] for group in last["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([group["lr"] for group in expected["optimizer_states"][0]["param_groups"]])
    assert rates[0] < 1e-3


def steps_of(folder: Path) -> dict[str, int]:
    """The step of every checkpoint of a run."""
    files = (folder / "checkpoints").iterdir()
    return {file.stem: torch.load(file, weights_only=True)["global_step"] for file in files}


def test_the_last_checkpoint_is_the_last_not_the_best(tmp_path: Path) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *FIRST_IS_BEST]
    assert main(["fit", *words("fcn"), *options, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert steps_of(next(tmp_path.glob("*/version_0"))) == {"best": 8, "last": 16}


def test_a_training_that_stops_between_validations_is_evaluated_and_kept(tmp_path: Path) -> None:
    options = ["--trainer.max_steps=12", "--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=1"]
    assert main(["fit", *words("fcn"), *UNEQUAL, *options, f"--trainer.default_root_dir={tmp_path / 'a'}"]) == 0
    (folder,) = tmp_path.glob("a/*/version_0")
    assert steps_of(folder)["last"] == 12
    first = json.loads((folder / "val.json").read_text())
    assert first["step"] == 12
    checkpoint = ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    assert main(["validate", "--config", str(folder / "config.yaml"), *checkpoint]) == 0
    again = json.loads((folder / "evaluations" / "val-last" / "val.json").read_text())
    assert again["confusion"] == first["confusion"]
    assert again["step"] == 12


def test_a_stopped_training_is_resumed_with_nothing_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]
    options += [*UNEQUAL, *FIRST_IS_BEST]
    original = SegmentationTask.training_step

    def power_cut(task: SegmentationTask, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if task.global_step == 12:
            raise RuntimeError("power cut")
        return original(task, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", power_cut)
        patch.chdir(tmp_path)
        with pytest.raises(RuntimeError, match="power cut"):
            main(["fit", *words("fcn"), *options])
    (folder,) = tmp_path.glob("runs/*/version_0")
    assert steps_of(folder) == {"best": 8, "last": 8}
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert next(value for key, value in state.items() if key.startswith("Checkpoints"))["best_k_models"]
    # by another path, and a second time although it is done: the best stays the best, the figures stay
    for again in range(2):
        assert main(["resume", str(folder)]) == 0
        assert steps_of(folder) == {"best": 8, "last": 16}, again
        figures = json.loads((folder / "val.json").read_text())
        assert figures["step"] == 16
        with (folder / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert {int(row["step"]) for row in rows if row["train/loss"]} == set(range(16))
        rates = {int(row["step"]): float(row["lr-AdamW/backbone"]) for row in rows if row["lr-AdamW/backbone"]}
        assert rates == pytest.approx({step: 0.02 * (1 - step / 16) ** 0.9 for step in range(16)})


def test_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "validate", "test"):
        assert main([command, *words("fcn"), "--ckpt_path", str(tmp_path / "no.ckpt")]) == 1
        assert f"segvid {command}: there is no checkpoint {tmp_path / 'no.ckpt'}" in capsys.readouterr().err


def test_overrides_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.init_args.head", "NonLocalHead", "--model.init_args.head.init_args.channels=12"]
    assert main(["fit", *words("danet"), *options, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    head = config["model"]["init_args"]["head"]
    assert head["class_path"].endswith("NonLocalHead")
    assert head["init_args"]["channels"] == 12
    assert config["data"]["init_args"]["train_scenes"] == 32
    assert config["weights_only"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.init_args.head.init_args.chanels=3"], r"'chanels' is not accepted.*Did you mean channels"),
        (["--model.init_args.head", "DANetHed"], "no class DANetHed. Did you mean DANetHead"),
        (["--data", "VOCC"], "no class VOCC. Did you mean VOC"),
        (["--trainer.max_stepz=3"], "unrecognized arguments: --trainer.max_stepz"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data", "FolderSegmentation", "--data.root", "/nowhere"], "There is no folder /nowhere: correct data"),
        (["--data", "VOC", "--data.root", "/nowhere"], "/nowhere"),
        (["--model.init_args.loss.init_args.class_weights=[1,2]"], "2 class weights, but there are 11 classes"),
        (["--model.init_args.lr_interval=week"], "use 'step' or 'epoch'"),
        (["--model.init_args.head.init_args.dropout=7"], "dropout probability has to be between 0 and 1"),
        (
            ["--model.init_args.backbone=ResNet", "--model.init_args.backbone.init_args.weights=missing.pth"],
            r"No file 'missing.pth' \(backbone.init_args.weights\)",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    options: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import re

    shipped = [word for word in words() if "widths" not in word or "ResNet" not in " ".join(options)]
    assert main(["fit", *shipped, f"--trainer.default_root_dir={tmp_path}", *options]) == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("segvid fit: ")
    assert re.search(message, line), line


def test_a_misspelt_key_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "head.yaml"
    file.write_text("model: {class_path: SegmentationTask, init_args: {hed: {class_path: DANetHead}}}\n")
    assert main(["fit", "--config", RECIPE, "--config", str(file)]) == 1
    assert "Did you mean head" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--model.init_args.inference.window=null",
        "--model.init_args.backbone.init_args.weights=null",
        "--model.init_args.inference.stride=None",
    ],
)
def test_null_on_the_command_line_is_none_at_any_depth(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """jsonargparse 4.53 hands a nested null over as the text "None"."""
    (tmp_path / "more.yaml").write_text(
        "model: {class_path: SegmentationTask, init_args: {inference: {window: [8, 8], stride: [4, 4]},"
        " backbone: {class_path: ResNet, init_args: {name: resnet18, weights: imagenet}}}}\n"
    )
    assert main(["fit", *words("danet"), "--config", str(tmp_path / "more.yaml"), option, "--print_config"]) == 0
    arguments = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    key = option.split("=")[0].split(".")[-1]
    found = arguments["backbone"]["init_args"] if key == "weights" else arguments["inference"]
    assert found[key] is None


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="DANetHed"):
        main(["fit", *words(), "--model.init_args.head", "DANetHed", "--debug"])


def test_a_config_cannot_run_foreign_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Head: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("evil_module.Head", "subprocess.Popen", "os.system"):
        assert main(["fit", *words(), "--model.init_args.head", name]) == 1
        assert "not allowed" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


def test_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 2
    assert main(["fti"]) == 2
    assert "no command 'fti'" in capsys.readouterr().err
    assert main(["resume"]) == 1
    assert main(["resume", str(tmp_path)]) == 1
    assert "is not a run that can be resumed" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert main(["fit", "--help"]) == 0


def test_all_names_of_the_program() -> None:
    folder = Path(sys.executable).parent
    for command in ([sys.executable, "-m", "segvid"], [str(folder / "segvid")], [str(folder / "lightning")]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("segvid ")


def test_help_is_quick() -> None:
    code = "import sys; from segvid.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_heads_are_factories_in_python() -> None:
    assert DANetHead([8, 16], 3).num_classes == 3


def test_where_a_trained_head_looks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One picture for a query; a sheet for --all; the checkpoint alone knows how images are prepared."""
    checkpoint, scene = run / "checkpoints" / "last.ckpt", tmp_path / "scene.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 60, 3), dtype=np.uint8)).save(scene)
    data = torch.load(checkpoint, weights_only=True)["data"]
    assert data["mean"] == (0.5, 0.5, 0.5)
    assert data["std"] == (0.25, 0.25, 0.25)
    options = ["attention", "--ckpt_path", str(checkpoint), "--image", str(scene)]
    assert main([*options, "--point", "50,10", "--output", str(tmp_path / "one.png")]) == 0
    assert main([*options, "--all", "--output", str(tmp_path / "new/all.png")]) == 0
    one, sheet = (Image.open(tmp_path / name) for name in ("one.png", "new/all.png"))
    assert one.width > 100
    assert sheet.width > one.width
    assert sheet.height > one.height
    assert "CCNetHead (head.context: CrissCrossAttention)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--point", "60,10"], "lies outside the image of 60 x 48"),
        (["--point", "left"], "column and row"),
        (["--ckpt_path", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--ckpt_path", __file__], "cannot be read as a checkpoint"),
        (["--image", "nowhere.png"], "no image nowhere.png"),
        (["--pont", "1,1"], "--pont"),
    ],
)
def test_mistakes_of_attention_are_one_sentence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    scene = tmp_path / "scene.png"
    Image.new("RGB", (60, 48)).save(scene)
    usual = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--image", str(scene)]
    assert main(["attention", *usual, *options, "--output", str(tmp_path / "a.png")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "Lower data.init_args.batch_size"),
        (MemoryError(), "Lower data.init_args.batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Lower data.init_args"),
        (OSError(28, "No space left on device", "runs/last.ckpt"), "the disk is full (runs/last.ckpt). Make room"),
    ],
)
def test_want_of_memory_and_of_disk_are_one_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(SegmentationTask, "training_step", fails)
    assert main(["fit", *words("fcn"), f"--trainer.default_root_dir={tmp_path}"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("segvid fit: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_checkpoint_with_other_classes_or_another_head(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    content["hyper_parameters"]["num_classes"] = 7
    torch.save(content, tmp_path / "other.ckpt")
    assert main(["validate", *words("ccnet"), "--ckpt_path", str(tmp_path / "other.ckpt")]) == 1
    assert "it is of a CCNetHead with 7 classes, and the configuration has a CCNetHead and data with 11" in (
        capsys.readouterr().err
    )
    assert main(["fit", *words("fcn"), "--ckpt_path", str(run / "checkpoints/last.ckpt")]) == 1
    assert "it is of a CCNetHead with 11 classes, and the configuration has a FCNHead" in capsys.readouterr().err


def test_files_that_are_no_checkpoints(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    torch.save({"state_dict": {}}, tmp_path / "weights.ckpt")
    for name, said in (
        ("cut", "damaged, cut off"),
        ("text", "damaged, cut off"),
        ("weights", "does not hold a model"),
    ):
        file = str(tmp_path / f"{name}.ckpt")
        for command in (["validate", *words("ccnet")], ["predict", str(run / "val_confusion.png")]):
            assert main([*command, "--ckpt_path", file]) == 1
            line = capsys.readouterr().err.strip().splitlines()[-1]
            assert file in line
            assert said in line


def test_nothing_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 1
    assert "give a recipe and a head, --config RECIPE.yaml --config HEAD.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_untrained_weights_are_not_evaluated(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, *words("fcn")]) == 1
    assert "name the weights to evaluate: --ckpt_path" in capsys.readouterr().err


def test_broken_weights_are_not_evaluated_and_not_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One step of a huge learning rate, the last of its epoch: the next to look at the weights is the validation."""
    rate = ["--model.init_args.optimizer.init_args.lr=1e30", "--model.init_args.lr_scheduler.init_args.warmup_steps=0"]
    epochs = ["--data.init_args.train_scenes=4", "--trainer.check_val_every_n_epoch=1", "--trainer.max_epochs=2"]
    assert main(["fit", *words("fcn"), *rate, *epochs, f"--trainer.default_root_dir={tmp_path}"]) == 1
    assert "Scores of the model are no numbers at step 1" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_weights_only_are_no_training_to_go_on_with(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    for key in ("optimizer_states", "lr_schedulers", "loops"):
        del content[key]
    torch.save(content, tmp_path / "weights.ckpt")
    assert main(["fit", *words("ccnet"), "--ckpt_path", str(tmp_path / "weights.ckpt")]) == 1
    assert "holds weights only" in capsys.readouterr().err
    assert (
        main(
            [
                "validate",
                *words("ccnet"),
                "--ckpt_path",
                str(tmp_path / "weights.ckpt"),
                "--trainer.logger=false",
                f"--trainer.default_root_dir={tmp_path}",
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--data.init_args.batch_size=0"],
        ["--data.init_args.num_workers=-1"],
        ["--model.init_args.optimizer.init_args.lr=-1"],
        ["--model.init_args.head.init_args.channels=0"],
        ["--model.init_args.head.init_args.in_index=7"],
        ["--trainer.devices=0"],
        ["--trainer.check_val_every_n_epoch=0"],
        ["--trainer.default_root_dir=/proc/nowhere"],
        ["--checkpoint.monitor=val/miou", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"],
        ["--ckpt_path=last"],
    ],
)
def test_impossible_values_are_one_sentence(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *words("fcn"), f"--trainer.default_root_dir={tmp_path}", *options]) == 1
    said = capfd.readouterr()
    assert "Traceback" not in said.err + said.out
    assert said.err.strip().splitlines()[-1].startswith("segvid fit: ")


def test_averaged_weights_are_what_is_evaluated_saved_and_resumed(tmp_path: Path) -> None:
    """The figures of the training are those of its checkpoint; a training without averaging ends with others."""
    figures = []
    for name, extra in (("ema", ["--config", str(ROOT / "configs/trainer/ema.yaml")]), ("plain", [])):
        root = ["--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path / name}"]
        assert main(["fit", *words("fcn"), *extra, *UNEQUAL, *root]) == 0
        folder = tmp_path / name / "DigitScenes-FCNHead" / "version_0"
        figures.append(json.loads((folder / "val.json").read_text())["confusion"])
        checkpoint = folder / "checkpoints" / "last.ckpt"
        assert main(["validate", "--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint)]) == 0
        again = json.loads((folder / "evaluations" / "val-last" / "val.json").read_text())
        assert again["confusion"] == figures[-1]
    assert figures[0] != figures[1]
    folder = tmp_path / "ema" / "DigitScenes-FCNHead" / "version_0"
    before = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["current_model_state"]
    assert main(["resume", str(folder), "--trainer.max_epochs=2"]) == 0  # nothing to do: all as it was
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    after = content["current_model_state"]
    assert all(torch.equal(after[key], value) for key, value in before.items())
    used = load_trained(folder / "checkpoints/last.ckpt").task.state_dict()  # by predict and export
    assert all(torch.equal(used[key], value) for key, value in content["state_dict"].items())
    assert not all(torch.equal(used[key], after[key]) for key in used)


def test_early_stopping(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    patience = "--trainer.callbacks.init_args.patience=1"
    rate = "--model.init_args.optimizer.init_args.lr=0"
    config = ["--config", str(ROOT / "configs/trainer/early_stopping.yaml"), patience, rate]
    root = ["--trainer.max_epochs=9", "--trainer.check_val_every_n_epoch=1", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words("fcn"), *config, *root]) == 0
    checkpoint = tmp_path / "DigitScenes-FCNHead/version_0/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 8
