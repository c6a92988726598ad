"""The command `segvid predict`: images, folders, patterns and videos to masks and overlays."""

import argparse
import contextlib
import glob
import io
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.commands.options import Parser, Progress
from segvid.errors import OUT_OF_MEMORY, UserError, user_message
from segvid.files import PARTIAL, remove_partials, write_whole
from segvid.text import console as text_console
from segvid.text import label, plain

if TYPE_CHECKING:
    from segvid.data.reading import Array
    from segvid.export.exported import ExportedModel
    from segvid.predictions import Record
    from segvid.segmentation.inference import Inference
    from segvid.segmentation.trained import TrainedModel

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
VIDEOS = (
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg",
    ".3gp", ".asf", ".flv", ".m2ts", ".mts", ".ogv", ".wmv",
)  # fmt: skip
NAMED_VIDEOS = (".ts",)  # in a folder it may be TypeScript or TorchScript
FORMATS = ("indices", "voc", "cityscapes")
BACKGROUND = ("background", "bg")
NO_MEMORY = re.compile(r"allocate|bad.alloc|(insufficient|not enough|out of) memory", re.IGNORECASE)
EPILOG = """\
what is written below --output:
  indices     masks/<name>.png, palette images of class indices, and overlays/<name>.jpg
  voc         results/VOC2012/Segmentation/comp6_test_cls/<name>.png, as the VOC server takes it
  cityscapes  <name>_labelIds.png, grey images of label ids, as the Cityscapes server takes it
  videos      videos/<name>.mp4, the frames with the classes over them, upright, with square pixels and their own times;
              with --frames also frames/<name>/000001.png ..., palette images as in masks/
With --confidence, grey images of the probability of the predicted class (255 is 1): confidence/<name>.png of images,
frames_confidence/<name>/000001.png ... of frames. legend.png says which colour is which class; where the class named
"background" or "bg" is predicted, overlays show the picture as it is.

What is there already is not predicted again, unless its picture or video has changed (.segvid-predict.json knows).
Hidden files (.name) in folders and patterns are left out. Exit code 1: a file could not be predicted, or is damaged.
"""


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
        return self.path.suffix.lower() in (*VIDEOS, *NAMED_VIDEOS)


def predict(words: Sequence[str]) -> int:
    """Predicts what the options name; returns the exit code: 1 if a file could not be predicted."""
    options = parse(words)
    sources = find_sources(options.inputs)
    inside = options.output.resolve()  # results of an earlier run are no images to predict
    outside = [source for source in sources if inside not in source.path.resolve().parents]
    if not outside:
        raise UserError(f"all that is to be predicted lies in {plain(options.output)}: choose another --output.")
    check_outputs(outside, options)
    if options.format != "indices" and any(source.is_video for source in outside):
        raise UserError(f"--format {options.format} is of images: leave videos out.")
    return predict_all(outside, options)


def predict_all(sources: Sequence[Source], options: argparse.Namespace) -> int:
    """Predicts the files that are not done already; returns the exit code."""
    from segvid.predictions import Record, stamp_of
    from segvid.provenance import sha256
    from segvid.segmentation.inference import Inference

    how = Inference(
        window=None if options.window is None else tuple(options.window),
        stride=None if options.stride is None else tuple(options.stride),
        scales=tuple(options.scales),
        flip=options.flip,
    )
    model = load(options)
    names = ("format", "window", "stride", "scales", "flip", "opacity")
    origin = {"model": sha256(options.model or options.ckpt_path)} | {name: getattr(options, name) for name in names}
    record = Record(options.output, origin)
    waiting = []
    for source in sources:
        stamp, files = stamp_of(source.path), outputs(source, options)
        record.check(stamp, files)
        if not record.is_done(stamp, files):
            waiting.append(source)
    remove_partials({options.output, *(file.parent for source in sources for file in outputs(source, options))})
    record.begin()
    console = text_console()
    console.print(f"{len(sources)} files, {len(sources) - len(waiting)} done already.")
    legend = options.output / "legend.png"
    if waiting and options.format == "indices" and not legend.exists():
        write_legend(model, legend)
    failed = predict_waiting(waiting, model, how, options, record)
    console.print(f"{len(waiting) - failed} files predicted into {plain(options.output)}", soft_wrap=True)
    return 1 if failed else 0


def predict_waiting(
    waiting: Sequence[Source],
    model: "TrainedModel | ExportedModel",
    how: "Inference",
    options: argparse.Namespace,
    record: "Record",
) -> int:
    """Predicts files one after another; returns how many of them failed."""
    import torch

    from segvid.data.reading import DataError
    from segvid.data.video import count_frames
    from segvid.predictions import stamp_of

    console = text_console()
    failed = 0
    weights = [count_frames(source.path) if source.is_video else 1 for source in waiting]
    with Progress(console, "predict", sum(weights), unit="pictures") as progress:
        for source, weight in zip(waiting, weights, strict=True):
            end = progress.done + weight

            def tick(name: str = source.path.name, end: int = end) -> None:
                assert progress.total is not None
                if progress.done >= end:  # more than the header says
                    progress.expect(progress.total + 1)
                progress.advance(1, name)

            def note(text: str, path: Path = source.path) -> None:
                console.print(f"{plain(path)}: {plain(text)}", soft_wrap=True)

            said = None
            try:
                stamp = stamp_of(source.path)
                files = predict_one(source, model, how, options, tick, note)
                record.add(stamp, files)
            except DataError as error:  # one bad file does not end the others
                said = str(error) if str(source.path) in str(error) else f"{source.path}: {error}"
            except Exception as error:
                if not no_memory(error):
                    raise
                said = f"{source.path}: is too large for the memory. Give a --window, or make it smaller."
            if said is not None:
                failed += 1
                print(f"segvid predict: {plain(said)}", file=sys.stderr)
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
            if progress.done < end:  # fewer
                assert progress.total is not None
                progress.expect(progress.total - end + progress.done)
    return failed


def no_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch, OpenCV or onnxruntime is want of memory."""
    return user_message(error) == OUT_OF_MEMORY or (
        not isinstance(error, UserError | OSError) and bool(NO_MEMORY.search(str(error)))
    )


def load(options: argparse.Namespace) -> "TrainedModel | ExportedModel":
    """The model that the options name, on the device that they name.

    Raises:
        UserError: it cannot be loaded, or cannot give what is asked for.
    """
    import torch

    from segvid.data.cityscapes import TRAIN_IDS
    from segvid.segmentation.trained import load_trained

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: TrainedModel | ExportedModel
    if options.model is not None:
        from segvid.export.exported import load_exported

        model = load_exported(options.model, options.device or "cpu", allow_native_code=options.allow_native_code)
        if options.confidence and model.output_type == "classes":
            raise UserError(f"{plain(options.model)} gives classes, no --confidence: export it with logits.")
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
    return model


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
    parser.add_argument("--frames", action="store_true", help="also the masks of the frames of videos")
    parser.add_argument("--confidence", action="store_true", help="also the probability of the predicted class")
    parser.add_argument("--window", type=int, nargs=2, metavar=("H", "W"), help="slide a window of this size")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="its steps (two thirds of it)")
    parser.add_argument(
        "--scales", type=numbers, default=[1.0], metavar="S,S", help="average over these sizes: 0.75,1.0,1.25 (1.0)"
    )
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--opacity", type=float, default=0.5, help="of the classes in overlays, 0 to 1 (0.5)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (a GPU where there is one; --model: cpu)")
    options = parser.parse_args(words)
    if not 0 <= options.opacity <= 1:
        raise UserError(f"--opacity is {options.opacity}; give a number from 0 to 1.")
    if options.window is not None and min(options.window) < 1:
        raise UserError(f"--window {' '.join(map(str, options.window))}: give positive sizes.")
    if options.format != "indices" and options.confidence:
        raise UserError(f"--confidence is of --format indices: the servers do not take it (--format {options.format}).")
    return options


def numbers(text: str) -> list[float]:
    """The positive numbers of a list with commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(math.isfinite(scale) and scale > 0 for scale in found):
        raise UserError(f"--scales {plain(text)}: give positive numbers with commas, for example 0.75,1.0,1.25.")
    return found


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files that the arguments name: files themselves, all images and videos below folders, matches of patterns.

    Hidden files are taken only where they are named themselves: macOS puts a `._a.jpg`, which is none, beside `a.jpg`.

    Raises:
        UserError: an argument names nothing.
    """
    found: list[Source] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in (*IMAGES, *VIDEOS)
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not files:
                raise UserError(f"there is no image or video below {plain(text)}.")
            found += [Source(file, file.relative_to(path).with_suffix("")) for file in files]
        elif path.is_file():
            found.append(Source(path, Path(path.stem)))
        else:
            matches = (Path(match) for match in glob.glob(text, recursive=True))  # noqa: PTH207
            files = sorted(match for match in matches if match.is_file() and not match.name.startswith("."))
            if not files:
                raise UserError(f"there is no file, folder or match for '{plain(text)}'.")
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
                    f"{plain(taken[file])} and {plain(source.path)} would both be written as {plain(file)}: predict "
                    "them into different --output folders."
                )


def outputs(source: Source, options: argparse.Namespace) -> list[Path]:
    """The files that are written for a source; folders of the frames of a video."""
    output: Path = options.output
    if source.is_video:
        found = [output / "videos" / f"{source.name}.mp4"]
        if options.frames:
            found.append(output / "frames" / source.name)
        if options.confidence:
            found.append(output / "frames_confidence" / source.name)
        return found
    if options.format == "voc":
        return [output / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls" / f"{source.name.name}.png"]
    if options.format == "cityscapes":
        return [output / f"{source.name.name.removesuffix('_leftImg8bit')}_labelIds.png"]
    found = [output / "masks" / f"{source.name}.png", output / "overlays" / f"{source.name}.jpg"]
    return [*found, output / "confidence" / f"{source.name}.png"] if options.confidence else found


def predict_one(
    source: Source,
    model: "TrainedModel | ExportedModel",
    how: "Inference",
    options: argparse.Namespace,
    tick: Callable[[], None],
    note: Callable[[str], None],
) -> list[Path]:
    """Predicts one file and writes its results, each whole or not at all; returns them.

    Raises:
        DataError: the file cannot be read.
    """
    import numpy as np
    from PIL import Image

    from segvid.data.cityscapes import TRAIN_IDS
    from segvid.data.reading import palette_image, read_image, voc_palette

    files = outputs(source, options)
    if source.is_video:
        predict_video(source, files[0], model, how, options, tick, note)
        return files
    picture = read_image(source.path, upright=True)
    classes, confidence = classes_of(picture, model, how, options.confidence)
    if options.format == "cityscapes":
        images = [Image.fromarray(np.array(TRAIN_IDS, dtype=np.uint8)[classes])]
    elif options.format == "voc":
        images = [palette_image(classes, voc_palette(256))]
    else:
        shown = blend(picture, classes, model, options.opacity)
        images = [palette_image(classes, model.palette), Image.fromarray(shown)]
        if confidence is not None:
            images.append(Image.fromarray(confidence))
    for file, image in zip(files, images, strict=True):
        write_whole(file, lambda partial, image=image: image.save(partial, quality=92))  # type: ignore[misc]
    tick()
    return files


def classes_of(
    picture: "Array", model: "TrainedModel | ExportedModel", how: "Inference", with_confidence: bool
) -> "tuple[Array, Array | None]":
    """The class index of every pixel, and on request its probability times 255."""
    import torch

    if not with_confidence:
        return model.classes([picture], how)[0], None
    (scores,) = model.scores_of([picture], how)
    shares = torch.softmax(scores.float(), dim=0).amax(dim=0)
    return scores.argmax(dim=0).byte().cpu().numpy(), (255 * shares).round().byte().cpu().numpy()


def blend(picture: "Array", classes: "Array", model: "TrainedModel | ExportedModel", opacity: float) -> "Array":
    """The colours of the classes over the picture, (H, W, 3), but not that of the background."""
    import numpy as np

    from segvid.data.reading import colour

    mixed = (1 - opacity) * picture.astype(np.float32) + opacity * colour(classes, model.palette).astype(np.float32)
    clear = np.isin(classes, [index for index, name in enumerate(model.class_names) if is_background(name)])
    return np.where(clear[..., None], picture, np.round(mixed).astype(np.uint8))


def is_background(name: str) -> bool:
    """Whether it is the name of the class of all that is no class, which overlays leave as it is."""
    return name.strip(" _").lower() in BACKGROUND


def write_legend(model: "TrainedModel | ExportedModel", file: Path) -> None:
    """The colours and names of the classes as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    entries = []
    for name, (red, green, blue) in zip(model.class_names, model.palette, strict=False):
        shown = f"{label(name)} (the picture as it is)" if is_background(name) else label(name)
        entries.append(Patch(facecolor=(red / 255, green / 255, blue / 255), edgecolor="grey", label=shown))
    figure = plt.figure(figsize=(1, 1))
    figure.legend(handles=entries, loc="center", ncols=math.ceil(len(entries) / 30), frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    write_whole(file, lambda partial: partial.write_bytes(content.getvalue()))


def predict_video(
    source: Source,
    file: Path,
    model: "TrainedModel | ExportedModel",
    how: "Inference",
    options: argparse.Namespace,
    tick: Callable[[], None],
    note: Callable[[str], None],
) -> None:
    """The video with the classes over every frame, H.264, and on request folders of masks and confidences.

    Raises:
        DataError: it cannot be read, is damaged, or has no picture: then nothing of it stays.
    """
    import av
    import numpy as np
    from PIL import Image

    from segvid.data.reading import DataError, palette_image
    from segvid.data.video import frames

    output: Path = options.output

    def save(partial: Path, masks: Path | None, shares: Path | None) -> None:
        with av.open(f"file:{partial}", "w", format="mp4") as out:
            stream: Any = None
            durations: dict[int, int] = {}

            def write(frame: Any) -> None:
                for packet in stream.encode(frame):
                    packet.duration = durations.pop(packet.pts, packet.duration)  # that of the last one, above all
                    out.mux(packet)

            for number, frame in enumerate(frames(source.path, note), start=1):
                if stream is None:
                    stream = out.add_stream("libx264", rate=frame.rate)
                    stream.height, stream.width = (length - length % 2 for length in frame.picture.shape[:2])  # 4:2:0
                    stream.pix_fmt = "yuv420p"
                    stream.max_b_frames = 0  # packets come in the order of their times
                    stream.codec_context.time_base = frame.time_base
                    if min(stream.height, stream.width) == 0:
                        raise DataError(source.path, "is a pixel wide or high: that cannot be written as a video.")
                classes, confidence = classes_of(frame.picture, model, how, options.confidence)
                if masks is not None:
                    palette_image(classes, model.palette).save(masks / f"{number:06d}.png")
                if shares is not None and confidence is not None:
                    Image.fromarray(confidence).save(shares / f"{number:06d}.png")
                shown = blend(frame.picture, classes, model, options.opacity)[: stream.height, : stream.width]
                encoded = av.VideoFrame.from_ndarray(np.ascontiguousarray(shown), format="rgb24")
                encoded.pts, encoded.time_base = frame.time, frame.time_base
                durations[frame.time] = frame.duration
                write(encoded)
                tick()
            write(None)

    with contextlib.ExitStack() as stack:
        masks = stack.enter_context(whole_folder(output / "frames" / source.name)) if options.frames else None
        shares = None
        if options.confidence:
            shares = stack.enter_context(whole_folder(output / "frames_confidence" / source.name))
        try:
            write_whole(file, lambda partial: save(partial, masks, shares))
        except av.error.FFmpegError as error:
            raise DataError(source.path, f"cannot be written as H.264 ({error.strerror}).") from error


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder for pictures by number, which gets its name when all of them are there.

    Raises:
        UserError: it cannot be written, or there is one with other files in it.
    """
    partial = folder.with_name(f"{PARTIAL}{os.getpid()}-{folder.name}")
    try:
        partial.mkdir(parents=True)
        yield partial
        if folder.is_dir():
            for file in folder.glob("*.png"):
                if file.stem.isdigit():
                    file.unlink()
            folder.rmdir()  # never with files that are not of segvid predict
        partial.rename(folder)
    except OSError as error:
        raise UserError(f"{plain(folder)} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
