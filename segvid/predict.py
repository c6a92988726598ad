"""The command `segvid predict`: images, folders, patterns and videos to masks and overlays."""

import argparse
import glob
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segvid.data.cityscapes import TRAIN_IDS
from segvid.data.reading import Array, DataError, read_image, voc_palette
from segvid.errors import UserError
from segvid.files import write_whole
from segvid.provenance import sha256
from segvid.segmentation.inference import Inference
from segvid.segmentation.pictures import colour
from segvid.segmentation.trained import TrainedModel, load_trained

if TYPE_CHECKING:
    from segvid.export.exported import ExportedModel

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
FORMATS = ("indices", "voc", "cityscapes")
ORIGIN = ".segvid-predict.json"  # in the output folder: what its results were made with
EPILOG = """\
what is written below --output:
  indices     masks/<name>.png, palette images of class indices, and overlays/<name>.jpg
  voc         results/VOC2012/Segmentation/comp6_test_cls/<name>.png, as the VOC server takes it
  cityscapes  <name>_labelIds.png, grey images of label ids, as the Cityscapes server takes it
  videos      videos/<name>.mp4, the frames with the classes over them
What is there already is not predicted again.
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise UserError(f"{message}. See segvid predict --help.")


@dataclass(frozen=True)
class Source:
    """A file to predict.

    Args:
        path: of the image or video.
        name: relative path without ending, under which the results are written.
    """

    path: Path
    name: Path

    @property
    def is_video(self) -> bool:
        """Whether it is a video by its ending."""
        return self.path.suffix.lower() in VIDEOS


def predict(words: Sequence[str]) -> int:
    """Predicts what the options name; returns the exit code: 1 if a file could not be predicted."""
    options = parse(words)
    console = Console(markup=False)
    inside = options.output.resolve()  # results of an earlier run are no images to predict
    sources = [source for source in find_sources(options.inputs) if inside not in source.path.resolve().parents]
    check_outputs(sources, options)
    if options.format != "indices" and any(source.is_video for source in sources):
        raise UserError(f"--format {options.format} is of images: leave videos out.")
    how = Inference(
        window=None if options.window is None else tuple(options.window),
        stride=None if options.stride is None else tuple(options.stride),
        scales=tuple(options.scales),
        flip=options.flip,
    )
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: TrainedModel | ExportedModel
    if options.model is not None:
        from segvid.export.exported import load_exported

        model = load_exported(options.model, options.device or "cpu", allow_native_code=options.allow_native_code)
    else:
        model = load_trained(options.ckpt_path)
        try:
            model.task.to(device)
            torch.zeros(1, device=device).cpu()  # where nothing can be computed, as on "meta"
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise UserError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if len(model.class_names) > 255:
        raise UserError(f"masks hold bytes, and this model has {len(model.class_names)} classes.")
    if options.format == "cityscapes" and len(model.class_names) != len(TRAIN_IDS):
        raise UserError(
            f"--format cityscapes needs the {len(TRAIN_IDS)} classes of Cityscapes; this model has "
            f"{len(model.class_names)}."
        )
    file = options.model or options.ckpt_path
    names = ("format", "window", "stride", "scales", "flip", "opacity")
    check_origin(options.output, {"model": sha256(file)} | {name: getattr(options, name) for name in names})
    waiting = [source for source in sources if not all(file.is_file() for file in outputs(source, options))]
    console.print(f"{len(sources)} files, {len(sources) - len(waiting)} done already.", highlight=False)
    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("files", total=len(waiting))
        for source in waiting:
            progress.update(task, description=source.path.name)
            try:
                predict_one(source, model, how, options)
            except DataError as error:  # one bad file does not end the others
                said = str(error) if str(source.path) in str(error) else f"{source.path}: {error}"
                failed.append(said)
                print(f"segvid predict: {said}", file=sys.stderr)
            progress.advance(task)
    console.print(f"{len(waiting) - len(failed)} files predicted into {options.output}", highlight=False)
    return 1 if failed else 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(
        prog="segvid predict",
        description="Predicts the class of every pixel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="+", help="images, videos, folders or patterns such as 'frames/*.jpg'")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt_path", type=Path, help="checkpoint: RUN/checkpoints/best.ckpt")
    what.add_argument("--model", type=Path, help="file that segvid export wrote: model.ts, model.pt2 or model.onnx")
    parser.add_argument(
        "--allow_native_code", action="store_true",
        help="--model: trust the file as a program: a compiled .pt2, or operators that segvid does not know",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder to write into (predictions)")
    parser.add_argument("--format", choices=FORMATS, default="indices", help="what is written (indices)")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="slide a window of this size")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="its steps (two thirds of it)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="average over these sizes (1.0)")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the classes in overlays, 0 to 1 (0.5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (a GPU where there is one; --model: cpu)")
    options = parser.parse_args(words)
    if not 0 <= options.opacity <= 1:
        raise UserError(f"--opacity is {options.opacity}; give a number from 0 to 1.")
    if not all(math.isfinite(scale) and scale > 0 for scale in options.scales):
        raise UserError(f"--scales {' '.join(map(str, options.scales))}: give positive numbers.")
    if options.window is not None and min(options.window) < 1:
        raise UserError(f"--window {' '.join(map(str, options.window))}: give positive sizes.")
    return options


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that the arguments name: files themselves, all images and videos below folders, matches of patterns.

    Raises:
        UserError: an argument names nothing.
    """
    found: list[Source] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*IMAGES, *VIDEOS) and p.is_file())
            if not files:
                raise UserError(f"there is no image or video below {text}.")
            found += [Source(file, file.relative_to(path).with_suffix("")) for file in files]
        elif path.is_file():
            found.append(Source(path, Path(path.stem)))
        else:
            files = sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).is_file())  # noqa: PTH207
            if not files:
                raise UserError(f"there is no file, folder or match for {text!r}.")
            root = Path(os.path.commonpath([file.parent for file in files]))
            found += [Source(file, file.relative_to(root).with_suffix("")) for file in files]
    return list({source.path: source for source in found}.values())


def check_outputs(sources: Sequence[Source], options: argparse.Namespace) -> None:
    """Every result has a file of its own.

    Raises:
        UserError: two would be written to one file.
    """
    taken: dict[Path, Path] = {}
    for source in sources:
        for file in outputs(source, options):
            if taken.setdefault(file, source.path) != source.path:
                raise UserError(
                    f"{taken[file]} and {source.path} would both be written as {file}: predict them into different "
                    "--output folders."
                )


def check_origin(output: Path, origin: dict[str, Any]) -> None:
    """What lies in the folder already is of the same model and options.

    Raises:
        UserError: it is not.
    """
    note = output / ORIGIN
    if not note.is_file():
        write_whole(note, lambda partial: partial.write_text(json.dumps(origin, indent=1) + "\n"))
        return
    try:
        before = json.loads(note.read_text())
    except ValueError:
        before = {}
    changed = [name for name in origin if before.get(name) != origin[name]]
    if changed:
        raise UserError(
            f"{output} holds predictions with another {', '.join(changed)}, and what is done is not predicted again. "
            "Choose another --output, or delete that folder."
        )


def outputs(source: Source, options: argparse.Namespace) -> list[Path]:
    """The files that are written for a source."""
    output: Path = options.output
    if source.is_video:
        return [output / "videos" / f"{source.name}.mp4"]
    if options.format == "voc":
        return [output / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls" / f"{source.name.name}.png"]
    if options.format == "cityscapes":
        return [output / f"{source.name.name.removesuffix('_leftImg8bit')}_labelIds.png"]
    return [output / "masks" / f"{source.name}.png", output / "overlays" / f"{source.name}.jpg"]


def predict_one(
    source: Source, model: "TrainedModel | ExportedModel", how: Inference, options: argparse.Namespace
) -> None:
    """Predicts one file and writes its results, each whole or not at all.

    Raises:
        DataError: the file cannot be read.
    """
    files = outputs(source, options)
    if source.is_video:
        overlay_video(source.path, files[0], model, how, options.opacity)
        return
    picture = read_image(source.path, upright=True)
    (classes,) = model.classes([picture], how)
    if options.format == "cityscapes":
        images = [Image.fromarray(np.array(TRAIN_IDS, dtype=np.uint8)[classes])]
    elif options.format == "voc":
        images = [palette_image(classes, voc_palette(256))]
    else:
        shown = blend(picture, classes, model.palette, options.opacity)
        images = [palette_image(classes, model.palette), Image.fromarray(shown)]
    for file, image in zip(files, images, strict=True):
        write_whole(file, lambda partial, image=image: image.save(partial, quality=92))  # type: ignore[misc]


def palette_image(classes: Array, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Class indices as a palette image."""
    image = Image.fromarray(classes, mode="P")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8)
    image.putpalette(table.tobytes())
    return image


def blend(picture: Array, classes: Array, palette: Sequence[Sequence[int]], opacity: float) -> Array:
    """The colours of the classes over the picture, (H, W, 3)."""
    mixed = (1 - opacity) * picture.astype(np.float32) + opacity * colour(classes, palette).astype(np.float32)
    return np.asarray(np.round(mixed).astype(np.uint8))


def overlay_video(
    source: Path, file: Path, model: "TrainedModel | ExportedModel", how: Inference, opacity: float
) -> None:
    """The video with the classes over every frame, H.264.

    Raises:
        DataError: it cannot be read, or has no picture.
    """
    import av

    def save(partial: Path) -> None:
        with av.open(str(partial), "w", format="mp4") as out:
            stream = None
            for picture, rate in frames(source):
                if stream is None:
                    stream = out.add_stream("libx264", rate=rate)
                    stream.height, stream.width = (length - length % 2 for length in picture.shape[:2])  # 4:2:0
                    stream.pix_fmt = "yuv420p"
                (classes,) = model.classes([picture], how)
                shown = blend(picture, classes, model.palette, opacity)[: stream.height, : stream.width]
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")))
            if stream is None:
                raise DataError(source, "has no picture.")
            out.mux(stream.encode(None))

    write_whole(file, save)


def frames(source: Path) -> Iterator[tuple[Array, Fraction]]:
    """The pictures of a video (H, W, 3), and its rate.

    Raises:
        DataError: it cannot be read.
    """
    import av

    try:
        with av.open(str(source)) as container:
            if not container.streams.video:
                raise DataError(source, "has no picture.")
            stream = container.streams.video[0]
            rate, count = Fraction(stream.average_rate or 25), 0
            for frame in container.decode(video=0):
                count += 1
                yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8), rate
            if count < 0.95 * stream.frames:  # what the file says; decoders pass over damage silently
                raise DataError(source, f"is damaged: {count} of its {stream.frames} frames can be read.")
    except av.error.FFmpegError as error:
        raise DataError(source, f"cannot be read as a video ({error.strerror}).") from error
