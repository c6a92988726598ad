"""What a result depends on: nothing else trains anew, and nothing is deleted."""

import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from segvid.cli import main
from segvid.compare.command import move_aside
from segvid.compare.config import Comparison, Run
from segvid.compare.fingerprint import identified
from segvid.text import console
from tests.compare.small import HEADS, results_of, runs_of, seed_result, write_comparison


def fingerprint(file: Path, *words: str) -> str:
    (run,) = identified(runs_of(file, *words))
    assert run.problem is None, run.problem
    return run.fingerprint


def test_what_changes_no_result_changes_no_fingerprint(tmp_path: Path) -> None:
    head = tmp_path / "head.yaml"
    head.write_text((HEADS / "ccnet.yaml").read_text())
    file = write_comparison(tmp_path, "  - head.yaml")
    first = fingerprint(file)
    assert fingerprint(file) == first
    head.write_text("# a comment\n" + head.read_text() + "\n# another\n")
    assert fingerprint(file) == first
    content = yaml.safe_load(head.read_text())
    content["model"]["init_args"]["head"]["class_path"] = "segvid.segmentation.heads.CCNetHead"
    content["model"]["init_args"]["head"].setdefault("init_args", {})["dropout"] = 0.1  # the default, written out
    head.write_text(yaml.safe_dump(content))
    assert fingerprint(file) == first
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"]["loss"]["init_args"]["class_weights"][1] = 1.0
    recipe.write_text(yaml.safe_dump(content, sort_keys=True))
    assert fingerprint(file) == first
    shown = "{panels.images: 0, trainer.enable_progress_bar: false, trainer.default_root_dir: x, trainer.logger: false"
    shown += ", data.init_args.num_workers: 1, trainer.enable_model_summary: false, checkpoint.filename: x}"
    assert fingerprint(file, "--images=7", f"--overrides={shown}", "--title=T") == first
    assert fingerprint(file, f"--output={tmp_path / 'elsewhere'}") == first
    (tmp_path / "moved.yaml").write_text(head.read_text())
    assert fingerprint(file, f"--heads=[{{config: {tmp_path / 'moved.yaml'}, name: other}}]") == first


def test_what_changes_a_result_changes_the_fingerprint(tmp_path: Path) -> None:
    head = tmp_path / "head.yaml"
    head.write_text((HEADS / "fcn.yaml").read_text())
    file = write_comparison(tmp_path, "  - head.yaml")
    found = [fingerprint(file)]
    for words in ("--seeds=[1]", "--overrides={model.init_args.head.init_args.dropout: 0.2}", "--budget.max_steps=3"):
        found.append(fingerprint(file, words))
    head.write_text((HEADS / "danet.yaml").read_text())
    found.append(fingerprint(file))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.003", "lr: 0.004"))
    found.append(fingerprint(file))
    assert len(set(found)) == len(found)


def test_a_checkpoint_is_known_by_its_content(tmp_path: Path) -> None:
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_text("one")
    os.utime(checkpoint, (1, 1))
    file = write_comparison(tmp_path, f"  - {{config: {HEADS / 'fcn.yaml'}, checkpoint: last.ckpt}}")
    (run,) = runs_of(file)
    assert run.checkpoint == str(checkpoint)
    first = fingerprint(file)
    checkpoint.write_text("two")
    os.utime(checkpoint, (1, 1))
    assert fingerprint(file) != first
    checkpoint.write_text("one")
    assert fingerprint(file) == first


def test_weights_that_a_configuration_names_are_known_by_their_content(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_text("one")
    backbone = {"class_path": "ResNet", "init_args": {"name": "resnet18", "weights": str(weights)}}
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    words = f"--overrides={json.dumps({'model.init_args.backbone': backbone})}"
    first = fingerprint(file, words)
    weights.write_text("two")
    assert fingerprint(file, words) != first


@pytest.fixture
def folder_data(tmp_path: Path) -> Path:
    """A comparison of one head on a folder of images."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
            Image.new("L", (8, 8), 1).save(root / kind / split / "a.png")
    (root / "classes.yaml").write_text("class_names: [a, b]\n")
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    recipe = tmp_path / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text())
    content["data"] = {"class_path": "FolderSegmentation", "init_args": {"root": str(root)}}
    recipe.write_text(yaml.safe_dump(content))
    return file


def test_changed_data_is_noticed(folder_data: Path) -> None:
    root = folder_data.parent / "data"
    found = [fingerprint(folder_data)]
    assert fingerprint(folder_data) == found[0]
    for split, kind in (("train", "images"), ("val", "masks")):
        os.utime(root / kind / split / "a.png", (5, 5))
        found.append(fingerprint(folder_data))
    for kind in ("images", "masks"):
        Image.new("L", (8, 8), 1).save(root / kind / "val" / "b.png")
    found.append(fingerprint(folder_data))
    (root / "classes.yaml").write_text("class_names: [a, c]\n")
    found.append(fingerprint(folder_data))
    (root / "classes.yaml").write_text("# comment\nclass_names: [a, c]\npalette: [[0, 0, 0], [1, 1, 1]]\n")
    found.append(fingerprint(folder_data))
    assert len(set(found)) == len(found)


def test_a_checkpoint_that_is_only_evaluated_needs_no_training_images(folder_data: Path) -> None:
    (folder_data.parent / "last.ckpt").touch()
    (folder_data.parent / "data/images/train/a.png").unlink()
    (folder_data.parent / "data/images/train").rmdir()
    (run,) = identified(runs_of(folder_data))
    assert "There is no folder" in str(run.problem)
    assert fingerprint(folder_data, f"--heads=[{{config: {HEADS / 'fcn.yaml'}, checkpoint: last.ckpt}}]")


def done(run: Run) -> None:
    """Leaves a run as if it were done."""
    run.folder.mkdir(parents=True)
    names = {"name": run.name, "fingerprint": run.fingerprint, "seed": run.seed}
    (run.folder / "result.json").write_text(json.dumps(seed_result(0.5, [0.25, 0.75]) | names))
    spec = {"words": run.words, "variant": "", "checkpoint": None, "folder": str(run.folder), "images": 2}
    (run.folder / "spec.json").write_text(json.dumps(names | spec | {"made_from": run.made_from}))
    (run.folder / "mine.txt").write_text("a file of the user's own")


def test_what_is_outdated_moves_aside_and_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    (run,) = identified(runs_of(file))
    done(run)
    move_aside(run, "label", console(width=1000))
    assert (run.folder / "mine.txt").is_file(), "it is up to date"
    (other,) = identified(runs_of(file, "--overrides={model.init_args.head.init_args.dropout: 0.2}"))
    move_aside(other, "label", console(width=1000))
    said = capsys.readouterr().out
    (aside,) = (tmp_path / "out/runs").iterdir()
    assert aside.name.startswith("fcn-seed0.before-20")
    assert sorted(f.name for f in aside.iterdir()) == ["mine.txt", "result.json", "spec.json"]
    assert f"it is kept as {aside}" in said
    assert "(configuration.model.init_args.head.init_args.dropout)" in said
    contents = ["[]", "null", '"x"', "{}", '{"na']
    for content in contents:
        run.folder.mkdir()
        (run.folder / "spec.json").write_text(content)
        move_aside(run, "label", console(width=1000))
        assert "is not known to be of this comparison" in capsys.readouterr().out
    kept = [f.read_text() for f in (tmp_path / "out/runs").glob("fcn-seed0.before-*/spec.json")]
    assert set(contents) < set(kept)
    assert len(kept) == len(contents) + 1


def test_a_mistake_in_the_configuration_leaves_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    (run,) = identified(runs_of(file))
    done(run)
    before = {f.name: f.stat().st_mtime_ns for f in run.folder.iterdir()}
    for mistake in ("{model.init_args.head.init_args.droput: 0.2}", "{data: {class_path: os.system}}", "{no: 1}"):
        assert main(["compare", "--config", str(file), f"--overrides={mistake}"]) == 1
        row = results_of(tmp_path)["fcn"]
        assert row["status"] == "failed"
        assert row["reason"]
    assert "Did you mean dropout" in capsys.readouterr().out
    assert {f.name: f.stat().st_mtime_ns for f in run.folder.iterdir()} == before
    assert [folder.name for folder in (tmp_path / "out/runs").iterdir()] == ["fcn-seed0"]


def test_another_number_of_pictures_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    (run,) = identified(runs_of(file))
    done(run)
    started = []

    def start(run: Run, comparison: Comparison, label: str, terminal: object) -> int:
        started.append((comparison.images, label))
        return 1

    monkeypatch.setattr("segvid.compare.command.start", start)
    monkeypatch.setattr("segvid.compare.command.measure", lambda *_: None)
    assert main(["compare", "--config", str(file), "--images=2"]) == 0
    assert not started
    assert main(["compare", "--config", str(file), "--images=5"]) == 0
    assert started == [(5, "[1/1] fcn, seed 0, pictures")]
    said = capsys.readouterr().out
    assert "[1/1] fcn, seed 0: its pictures could not be made again; see " in said
    assert "[1/1] fcn, seed 0: mIoU 50.00" in said
    assert (run.folder / "mine.txt").is_file()
