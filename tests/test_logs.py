"""What a training says in a log that is no terminal, and what TensorBoard shows of it."""

import re
from pathlib import Path

import pytest

from segvid import logs
from segvid.cli import main
from tests.small_runs import UNEQUAL, words

STEPS = ["--data.init_args.num_workers=0", "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]


def test_a_log_has_lines_and_nothing_that_tells_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "INTERVAL", 0.0)  # a line a step
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *words("fcn"), *STEPS, "--trainer.max_epochs=2", root]) == 0
    found = capfd.readouterr()
    said = found.out + found.err
    assert "\r" not in said
    lines = [line for line in found.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 16
    assert re.fullmatch(r"epoch 2 of 2, step 12 of 16, loss [\d.]+, \d+ s left", lines[11])
    assert "head: FCNHead, 2.5 K parameters" in found.out.splitlines()
    for noise in ("FLOPs", "litlogger", "litmodels", "\U0001f4a1", "TPU", "HPU", "estimate number of", "ModelSummary"):
        assert noise not in said, noise
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    config = checkpoint.parent.parent / "config.yaml"
    assert main(["validate", "--config", str(config), "--ckpt_path", str(checkpoint), root]) == 0
    assert "evaluation: batch 2 of 2" in capfd.readouterr().out.splitlines()


def test_a_short_training_has_no_line_of_progress(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = [*STEPS, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words("fcn"), *options]) == 0
    assert "epoch 1" not in capfd.readouterr().out


def test_tensorboard_has_a_curve_of_every_class_that_occurs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["fit", *words("fcn"), *UNEQUAL, *STEPS, "--trainer.max_epochs=2", root]) == 0
    (folder,) = tmp_path.glob("*/version_0")
    events = EventAccumulator(str(folder))
    events.Reload()
    names = events.Tags()["scalars"]
    assert "hp_metric" not in names
    rows = (folder / "val.csv").read_text().splitlines()[1:-1]
    last = {row.split(",")[0]: row.split(",")[1] for row in rows}
    present = {name: float(value) for name, value in last.items() if value not in ("", "nan")}
    curves = {name.removeprefix("val/IoU/") for name in names if name.startswith("val/IoU/")}
    assert curves >= set(present)
    assert 1 < len(curves) < 11
    for name, value in present.items():
        points = events.Scalars(f"val/IoU/{name}")
        assert points[-1].step == 16
        assert points[-1].value == pytest.approx(value)
    assert "val/IoU" not in (folder / "metrics.csv").read_text()
