"""A run is one folder, which nobody else has; what is in it is written whole; without a logger there is none."""

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from segvid.cli import main
from segvid.logs import MetricsWriter
from segvid.training import take_folder
from tests.small_runs import words

STEPS = ["--trainer.max_steps=2", "--data.init_args.num_workers=0"]


def test_a_folder_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_x").mkdir()
    together = threading.Barrier(8)

    def take(_: int) -> Path:
        together.wait()
        return take_folder(tmp_path)

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(8)))
    assert {folder.name for folder in taken} == {f"version_{number}" for number in range(4, 12)}


def test_trainings_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "segvid", "fit", *words("fcn"), *STEPS]
    command += [f"--trainer.default_root_dir={tmp_path}"]
    both = [
        subprocess.Popen([*command, f"--seed_everything={seed}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for seed in (5, 6)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folders = sorted((tmp_path / "DigitScenes-FCNHead").iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed_everything"] for folder in folders]
    assert sorted(seeds) == [5, 6]
    for folder in folders:
        assert json.loads((folder / "val.json").read_text())["step"] == 2
        assert (folder / "checkpoints" / "last.ckpt").is_file()


def test_without_a_logger_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *words("fcn"), *STEPS, "--trainer.logger=false"]) == 0
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
    assert "without a logger nothing is kept" in capsys.readouterr().err
    assert main(["fit", *words("fcn"), *STEPS, "--trainer.logger=false", "--checkpoint.dirpath=kept"]) == 0
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"kept/best.ckpt", "kept/last.ckpt"}


def test_a_run_that_is_refused_keeps_its_config(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "config.yaml").read_bytes()
    assert main(["resume", str(run), "--trainer.max_epochs=3"]) == 1
    assert "total_steps" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_metrics_are_readable_after_every_row(tmp_path: Path) -> None:
    """Columns that come later are added to the rows before; a run goes on with its rows, or begins anew."""
    file = tmp_path / "metrics.csv"
    writer = MetricsWriter(file, keep=True)
    writer.save()
    assert not file.exists()
    for step, metrics in enumerate([{"train/loss": 0.5}, {"train/loss": 0.25}, {"val/mIoU, all": 0.125}]):
        writer.log_metrics(metrics, step)
        writer.save()
    expected = 'step,train/loss,"val/mIoU, all"\n0,0.5,\n1,0.25,\n2,,0.125\n'
    assert file.read_text() == expected
    writer = MetricsWriter(file, keep=True)
    writer.log_metrics({"train/loss": 1.0}, 3)
    writer.save()
    assert file.read_text() == expected + "3,1.0,\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.csv"]
    writer = MetricsWriter(file, keep=False)
    writer.log_metrics({"train/loss": 1.0}, 0)
    writer.save()
    assert file.read_text() == "step,train/loss\n0,1.0\n"
