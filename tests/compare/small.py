"""Comparisons of trainings that take seconds, and results that no training made."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segvid.compare.config import Run, parse, plan

ROOT = Path(__file__).parent.parent.parent
HEADS = ROOT / "configs" / "segmentation" / "heads"


def write_comparison(folder: Path, heads: str, extra: str = "") -> Path:
    """A comparison of tiny trainings on DigitScenes."""
    (folder / "recipe.yaml").write_text(
        "data: {class_path: DigitScenes, init_args: {train_scenes: 16, val_scenes: 4, batch_size: 4,"
        " eval_batch_size: 2, size: 48, digits: 2}}\n"
        "model: {class_path: SegmentationTask, init_args: {backbone: {class_path: ConvNet,"
        " init_args: {widths: [4, 6, 8]}}, optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.003}},"
        " loss: {class_path: CrossEntropy, init_args: {class_weights: [0.02, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]}}}}\n"
        "trainer: {max_epochs: 1}\n"
    )
    file = folder / "comparison.yaml"
    file.write_text(f"recipe: recipe.yaml\nheads:\n{heads}\noutput: {folder / 'out'}\nimages: 2\n{extra}")
    return file


def runs_of(file: Path, *words: str) -> list[Run]:
    """The runs that are planned."""
    return plan(*parse(["--config", str(file), *words]))


def results_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of the report by their names."""
    return {row["name"]: row for row in json.loads((folder / "out" / "results.json").read_text())["rows"]}


def seed_result(miou: float, iou: list[float | None], seed: int = 0, **more: Any) -> dict[str, Any]:
    """The result of a run, as `result.json` has it."""
    figures: dict[str, Any] = dict.fromkeys(("mIoU", "mAcc", "aAcc", "mDice", "fwIoU"), miou)
    figures |= dict.fromkeys(("iou", "accuracy", "dice"), iou)
    figures |= dict.fromkeys(("train_seconds", "images_per_second", "train_memory_mb", "steps"))
    names = {"class_names": ["a", "<b>"], "palette": [[0, 0, 0], [9, 9, 9]], "head": "FCNHead", "backbone": "ConvNet"}
    run = {"name": "x", "variant": "", "seed": seed, "fingerprint": "f", "status": "done", "images": 2}
    return run | {"folder": "none", "checkpoint": "a.ckpt", "distance": [], **figures, **names, **more}


def until(state: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Waits for a state."""
    limit = time.monotonic() + seconds
    while not state():
        if time.monotonic() > limit:
            pytest.fail(f"not in {seconds:.0f} s: {what}")
        time.sleep(0.02)
