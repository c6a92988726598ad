"""What a training can have besides: compilation, a range test of the learning rate, other loggers, determinism."""

import csv
import functools
import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

import segvid.segmentation.heads as heads
from segvid.backbones import ConvNet
from segvid.cli import main
from segvid.errors import UserError
from segvid.lr_find import steepest
from segvid.segmentation.pictures import PredictionPanels
from segvid.segmentation.task import SegmentationTask
from tests.small_runs import ROOT, UNEQUAL, words

TRAINER = ROOT / "configs" / "trainer"


def task(head: str, **options: Any) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(ConvNet(widths=[8, 12, 16]), getattr(heads, head), 5, **options)


def same_with_and_without(head: str) -> None:
    plain, compiled = task(head), task(head, compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(2, 3, 40, 56)
    for model in (plain, compiled):
        torch.manual_seed(1)  # dropout
        maps = model.supervised_maps(model.backbone, model.head, None, image)
        sum((m.square().mean() for m in maps), torch.zeros(())).backward()
    for ours, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4)
    plain.eval()
    compiled.eval()
    with torch.no_grad():
        for size in ((40, 56), (33, 47)):
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(image), plain(image), atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("head", ["DANetHead", "EMANetHead", "ISANetHead"])
def test_compiled_is_the_same(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of torch.compile but the C++ compiler, which takes minutes; three maps, a moving buffer, any size."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    same_with_and_without(head)


@pytest.mark.slow
@pytest.mark.parametrize("head", heads.__all__)
def test_every_head_is_the_same_compiled(head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    same_with_and_without(head)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_to_machine_code_is_the_same() -> None:
    same_with_and_without("NonLocalHead")


def test_a_compiled_training_leaves_the_checkpoint_of_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations: list[str] = []

    def compile_for_test(function: Any) -> Any:
        compilations.append(function.__name__)
        return real(function, backend="aot_eager")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile_for_test)
    found = {}
    for name, extra in (("plain", []), ("compiled", ["--config", str(TRAINER / "compile.yaml")])):
        options = [*extra, "--trainer.max_steps=2", f"--trainer.default_root_dir={tmp_path / name}"]
        assert main(["fit", *words("fcn"), *options]) == 0
        (file,) = (tmp_path / name).rglob("last.ckpt")
        found[name] = torch.load(file, weights_only=True)["state_dict"]
    assert compilations == ["supervised_maps", "evaluated_map"]
    assert found["plain"].keys() == found["compiled"].keys()
    for key, value in found["plain"].items():
        torch.testing.assert_close(found["compiled"][key], value, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


def test_bfloat16_trains_and_evaluates(tmp_path: Path) -> None:
    precision = ["--trainer.precision=bf16-mixed", "--trainer.max_steps=4", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words("danet"), *UNEQUAL, *precision]) == 0
    (file,) = tmp_path.rglob("last.ckpt")
    weights = torch.load(file, weights_only=True)["state_dict"]
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in weights.values() if v.is_floating_point())


def test_the_steepest_place_is_that_of_the_logarithm() -> None:
    """A loss that falls along a logistic of log(lr) with its middle at 0.01, and explodes."""
    rates = np.logspace(-6, 0, 121)
    losses = 1 / (1 + np.exp(3 * (np.log10(rates) + 2)))
    losses[-3:] = [5, np.inf, np.nan]
    assert steepest(rates, losses) == pytest.approx(0.01, rel=1e-6)
    with pytest.raises(UserError, match="too seldom for a suggestion"):
        steepest(rates[-2:], losses[-2:])


def test_lr_find(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tried = [
        "--lr_find.max_lr=1e6",
        "--lr_find.steps=60",
        "--lr_find.output=found",
        "--trainer.max_epochs=1",
    ]  # the loss explodes on the way
    assert main(["lr_find", *words("fcn"), *tried]) == 0
    said = capsys.readouterr().out
    rate = float(re.search(r"The loss falls the most at a learning rate of (\S+)\.$", said, re.MULTILINE)[1])  # type: ignore[index]
    suggested = re.search(
        r"For AdamW \(weight_decay 0\.01\), a third .* --model\.init_args\.optimizer\.init_args\.lr=(\S+)\. ", said
    )
    assert suggested is not None
    assert float(suggested[1]) == pytest.approx(rate / 3, rel=1e-2)
    with (tmp_path / "found" / "lr_find.csv").open() as file:
        rows = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert len(rows) > 11  # one epoch has 8 steps, 10 are left out
    assert any(math.isclose(rate, lr, rel_tol=5e-3) for lr, _ in rows)
    assert rows[0][0] > 1e-6
    assert all(b[0] / a[0] == pytest.approx(rows[1][0] / rows[0][0]) for a, b in itertools.pairwise(rows))
    assert (tmp_path / "found" / "lr_find.png").stat().st_size > 5000
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lr_find.min_lr=1", "--lr_find.max_lr=0.1"], "0 < min_lr < max_lr"),
        (["--lr_find.steps=5"], "20 are the least that show a curve"),
        (["--trainer.fast_dev_run=true"], "take out trainer.fast_dev_run"),
        (["--lr_find.mni_lr=1"], "mni_lr"),
    ],
)
def test_mistakes_of_lr_find_are_one_sentence(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr_find", *words("fcn"), *options]) == 1
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_logger_of_the_config_comes_after_those_of_the_run(tmp_path: Path) -> None:
    """The run's own folder stays what resume and predict read."""
    (tmp_path / "more.yaml").write_text(
        "trainer:\n  logger:\n    class_path: lightning.pytorch.loggers.CSVLogger\n"
        f"    init_args: {{save_dir: {tmp_path / 'elsewhere'}, name: ''}}\n"
    )
    options = ["--config", str(tmp_path / "more.yaml"), "--trainer.max_steps=2"]
    assert main(["fit", *words("fcn"), *options, f"--trainer.default_root_dir={tmp_path / 'runs'}"]) == 0
    folder = tmp_path / "runs" / "DigitScenes-FCNHead" / "version_0"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "config.yaml").is_file()
    figures = [list(csv.DictReader(file.open())) for file in tmp_path.rglob("metrics.csv")]
    assert len(figures) == 2
    assert figures[0] == figures[1]


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_loggers_that_are_not_installed_are_named(
    name: str, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(TRAINER / f"{name}.yaml"), f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *words("fcn"), *options]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("segvid fit: ")
    assert package in said
    assert "install" in said


class Album(CSVLogger):
    """Takes pictures as W&B's logger does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pictures: list[tuple[str, int, tuple[int, ...]]] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.pictures.append((key, step, images[0].shape))


def test_panels_go_to_loggers_that_take_pictures(tmp_path: Path) -> None:
    from lightning.pytorch import Trainer

    from segvid.data import DigitScenes

    album = Album(tmp_path)
    data = DigitScenes(train_scenes=8, val_scenes=4, size=48, digits=2, batch_size=4)
    trainer = Trainer(
        accelerator="cpu", logger=album, callbacks=[PredictionPanels(2)], max_epochs=1, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(SegmentationTask(ConvNet([4, 6, 8]), heads.FCNHead, data.num_classes), datamodule=data)
    assert album.pictures == [("val/predictions", 2, (432, 588, 3))]


def test_deterministic_trainings_are_equal_to_the_bit(tmp_path: Path) -> None:
    found = []
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        options = ["--config", str(TRAINER / "deterministic.yaml"), f"--seed_everything={seed}"]
        options += ["--trainer.max_steps=6", f"--trainer.default_root_dir={tmp_path / name}"]
        assert main(["fit", *words("ccnet"), *options]) == 0
        torch.use_deterministic_algorithms(False)
        (file,) = (tmp_path / name).rglob("last.ckpt")
        found.append(torch.load(file, weights_only=True)["state_dict"])
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert not all(torch.equal(value, found[2][key]) for key, value in found[0].items())


@pytest.mark.parametrize("file", sorted(TRAINER.glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_additions_say_how_they_are_used(file: Path) -> None:
    assert yaml.safe_load(file.read_text()).keys() <= {"trainer", "model"}
    assert f"--config configs/trainer/{file.name}" in file.read_text()
