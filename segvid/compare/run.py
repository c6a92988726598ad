"""One run of a comparison in a process of its own: `python -m segvid.compare.run SPEC.json PARENT`.

A process of its own, because then a head that fails, or that the system kills for its memory, is one row of the table
and not the end of the comparison; because each starts from the same state; and because it is the same program that
`segvid fit` runs.
"""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from segvid.compare.processes import end_with_parent, leave_signals_to_parent, taken
from segvid.compare.records import Spec, read_result
from segvid.data.reading import IGNORED
from segvid.data.record import denormalise
from segvid.errors import UserError, user_message
from segvid.files import read_json, write_json
from segvid.segmentation.attention_maps import attention_maps, mechanisms, overlay
from segvid.segmentation.clock import peak_memory_mb, training_clock
from segvid.segmentation.task import SegmentationTask
from segvid.segmentation.trained import read_checkpoint
from segvid.stopping import GentleStop
from segvid.training import SegvidCLI, prepare


class Progress(Callback):
    """Writes the step for the parent process, at most once a second.

    Args:
        file: where to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.written = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes step, number of steps and loss."""
        if trainer.is_global_zero and time.monotonic() - self.written > 1:
            self.written = time.monotonic()
            loss = float(trainer.callback_metrics.get("train/loss", float("nan")))
            state = {"step": trainer.global_step, "steps": trainer.estimated_stepping_batches, "loss": loss}
            write_json(self.file, state)


def main(spec_file: str) -> int:
    """Trains (or loads) and evaluates; writes `result.json`; returns the exit code.

    Of a run that is done already only the pictures are made again.

    Raises:
        UserError: the specification cannot be read, or another process has the run's folder.
    """
    spec = read_json(Path(spec_file), Spec)
    folder = Path(spec.folder)
    if os.environ.get("LOCAL_RANK", "0") != "0":  # a further process of the same training
        return run(spec, folder)
    with taken(folder, wait=10):
        return run(spec, folder)


def run(spec: Spec, folder: Path) -> int:
    """What `main` does, in a folder that no other process has."""
    result = {"name": spec.name, "variant": spec.variant, "seed": spec.seed, "fingerprint": spec.fingerprint}
    known = read_result(folder)
    try:
        if known is not None and (known["status"], known["fingerprint"]) == ("done", spec.fingerprint):
            paint(spec, folder)
            result = known
        else:
            result |= {"status": "failed"} | execute(spec, folder)
        result["images"] = spec.images
    except Exception as error:
        message = user_message(error)
        reason = message or f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if known is None:
            write_json(folder / "result.json", result | {"status": "failed", "reason": reason})
        if message is None:
            raise
        print(message, file=sys.stderr)
        return 1
    write_json(folder / "result.json", result)
    return 0


def execute(spec: Spec, folder: Path) -> dict[str, Any]:
    """Trains or loads, evaluates, predicts the pictures; gives the figures."""
    prepare()
    progress = Progress(folder / "progress.json")
    last = folder / "checkpoints" / "last.ckpt"
    if spec.checkpoint is not None:
        command = ["validate", *spec.words, "--ckpt_path", spec.checkpoint]
    else:
        command = ["fit", *spec.words, *(["--ckpt_path", str(last)] if last.is_file() else [])]
    cli = SegvidCLI(folder, [progress, GentleStop()], args=[*command, "--trainer.enable_progress_bar=false"])
    task, data = cli.model, cli.datamodule
    assert isinstance(task, SegmentationTask)
    if "val" not in task.scores:
        raise UserError("the training ended without a validation: check trainer.val_check_interval and the budget.")
    trained = spec.checkpoint is None
    clock = training_clock(cli.trainer)
    assert clock is not None  # SegvidCLI adds one
    write_pictures(task, data, folder / "pictures", spec.images)
    return {
        "status": "done",
        "head": type(task.head).__name__,
        "backbone": type(task.backbone).__name__,
        **task.scores["val"].asdict(),
        "distance": [asdict(part) for part in cli.distance.bins],
        "class_names": data.class_names,
        "palette": data.palette,
        "steps": cli.trainer.global_step if trained else None,
        "train_seconds": clock.seconds if trained else None,
        "images_per_second": clock.images_per_second if trained else None,
        "train_memory_mb": peak_memory_mb() if trained else None,
        "checkpoint": spec.checkpoint or str(last),
    }


def paint(spec: Spec, folder: Path) -> None:
    """Predicts the pictures anew with the weights that there are.

    Raises:
        UserError: the weights are not there any more.
    """
    prepare()
    cli = SegvidCLI(run=False, save_config_callback=None, args=[*spec.words, "--trainer.logger=false"])
    weights = read_checkpoint(Path(spec.checkpoint or folder / "checkpoints" / "last.ckpt"))["state_dict"]
    cli.model.load_state_dict(weights)
    write_pictures(cli.model, cli.datamodule, folder / "pictures", spec.images)


def write_pictures(task: SegmentationTask, data: Any, folder: Path, count: int) -> None:
    """Validation images from all over the split, their masks and what the head predicts (masks as class indices)."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = data.dataset("val", augmented=False)
    device = next(task.parameters()).device
    task.eval()
    shown = min(count, len(samples))  # neighbours are often frames of one drive
    for index in range(shown):
        sample = samples[index * len(samples) // shown]
        with torch.no_grad():
            size = sample["mask"].shape
            prediction = task.class_scores(sample["image"].unsqueeze(0).to(device), size).argmax(1)[0]
        picture = Image.fromarray(denormalise(sample["image"], data)).resize((size[1], size[0]))
        picture.save(folder / f"{index}_image.png")
        point = query_point(sample["mask"])
        if mechanisms(task.head):  # the same query for every head
            at = (point[0] * sample["image"].shape[2] // size[1], point[1] * sample["image"].shape[1] // size[0])
            weights = attention_maps(task, sample["image"].to(device), at)[0].weights
            if weights is not None:
                Image.fromarray(overlay(np.asarray(picture), weights, point)).save(folder / f"{index}_attention.png")
        for name, classes in (("mask", sample["mask"]), ("prediction", prediction)):
            Image.fromarray(classes.byte().cpu().numpy()).save(folder / f"{index}_{name}.png")


def query_point(mask: Tensor) -> tuple[int, int]:
    """Column and row of the pixel nearest to the middle of the rarest class of a mask: the same for every head."""
    classes, counts = mask[mask != IGNORED].unique(return_counts=True)
    if not len(classes):
        return mask.shape[1] // 2, mask.shape[0] // 2
    places = (mask == classes[counts.argmin()]).nonzero().float()
    row, column = places[(places - places.mean(dim=0)).square().sum(dim=1).argmin()].int().tolist()
    return column, row


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    leave_signals_to_parent()
    try:
        sys.exit(main(sys.argv[1]))
    except UserError as problem:
        sys.exit(str(problem))
