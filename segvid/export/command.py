"""The command `segvid export`: a model to files that run elsewhere, each proven equal before it gets its name."""

import argparse
import contextlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.commands.options import Parser, duration
from segvid.errors import UserError
from segvid.export import gate
from segvid.export.archive import Refused
from segvid.export.record import NAME, OUTPUT_TYPES, SUFFIXES, as_json
from segvid.text import console, plain, slug

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from segvid.export.formats import SizeRule
    from segvid.export.graph import InferenceGraph
    from segvid.segmentation.trained import TrainedModel

EPILOG = f"""\
With --config, options with dots change the configuration, as in segvid fit: --data.init_args.root FOLDER.

The file takes RGB images (B, 3, H, W) of any size, uint8 or in 0..1; the normalisation is inside. It is loaded in a
fresh process without segvid and compared with the model on {len(gate.SIZES) + 2} inputs ({gate.INPUTS});
if it differs, it is not written.
Beside it: <output>.json, what the file says of itself, and the measured differences.
"""
PARTIAL = ".segvid-export-"  # with computer and process: the folder of a file that is not proven yet


def export(words: Sequence[str]) -> int:
    """Exports what the options name; returns the exit code: 1 if a format failed."""
    options = parse(words)
    from segvid.data.reading import read_image
    from segvid.export.graph import InferenceGraph
    from segvid.segmentation.trained import load_trained

    model = load_trained(options.ckpt_path) if options.ckpt_path else untrained(options.config, options.overrides)
    if model.task.num_classes > 255 and options.output_type == "classes":
        raise UserError(f"--output_type classes gives bytes, and the model has {model.task.num_classes} classes.")
    picture = sample_picture() if options.image is None else read_image(options.image)
    graph = InferenceGraph(model.task.backbone, model.task.head, model.mean, model.std, options.output_type).eval()
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    shown = console()
    failed = False
    for kind in options.format:
        output = output_file(options.output, kind, len(options.format))
        try:
            export_one(graph, model, kind, output, model.resized(picture), options, shown)
        except UserError as error:
            failed = True
            print(f"segvid export: {plain(output)} is not written: {plain(error)}", file=sys.stderr)
    return int(failed)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = Parser(
        prog="segvid export",
        description="Writes a model as a file that runs without segvid.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt_path", type=Path, help="checkpoint: RUN/checkpoints/best.ckpt")
    what.add_argument("--config", action="append", help="recipe and head of an untrained model; may be repeated")
    parser.add_argument(
        "--format", type=kinds, help="torchscript (also without), pt2, onnx, or several: torchscript,onnx"
    )
    parser.add_argument("--output", type=Path, default=Path("model"), help="file to write (model.ts, .pt2, .onnx)")
    parser.add_argument("--output_type", choices=OUTPUT_TYPES, default="logits", help="what the file gives (logits)")
    parser.add_argument(
        "--input_type", choices=("uint8", "float32"), default="uint8",
        help="of the image: 0 to 255, or 0 to 1 (uint8); TorchScript takes both",
    )  # fmt: skip
    parser.add_argument("--optimize", action="store_true", help="TorchScript: freeze and fuse for inference")
    parser.add_argument("--compile", action="store_true", help="pt2: compile for this machine (needs a C++ compiler)")
    parser.add_argument("--image", type=Path, help="picture to compare on (one that scikit-learn ships)")
    options, others = parser.parse_known_args(words)
    options.overrides = overrides(others, parser)
    if options.overrides and options.ckpt_path:
        raise UserError(f"{plain(options.overrides[0])} is for --config; a checkpoint says itself what its model is.")
    ending = {suffix: kind for kind, suffix in SUFFIXES.items()}.get(options.output.suffix)
    if options.format is None:
        options.format = [ending or "torchscript"]
    elif len(options.format) == 1 and ending not in (None, options.format[0]):
        raise UserError(f"--output {options.output} is the name of a {ending} file; --format is {options.format[0]}.")
    for kind in options.format:
        file = output_file(options.output, kind, len(options.format))
        if file.is_dir() or not file.name or file.with_name(file.name + ".json").is_dir():
            raise UserError(f"--output {file} is a folder; name a file.")
        if file.suffix != SUFFIXES[kind]:
            raise UserError(f"--output {file}: the name of a {kind} file ends in {SUFFIXES[kind]}.")
    if options.image is not None and not options.image.is_file():
        raise UserError(f"there is no image {options.image} (--image).")
    if options.optimize and "torchscript" not in options.format:
        raise UserError("--optimize is for --format torchscript.")
    if options.compile and "pt2" not in options.format:
        raise UserError("--compile is for --format pt2.")
    return options


def overrides(words: Sequence[str], parser: Parser) -> list[str]:
    """The words that change a configuration: options with a dot, each with its value.

    Raises:
        UserError: a word is none of these.
    """
    found: list[str] = []
    for word in words:
        value = bool(found) and found[-1].startswith("--") and "=" not in found[-1] and not word.startswith("--")
        if not value and not re.match(r"--\w+\.[\w.]+\+?(=|$)", word):
            parser.error(f"unrecognized arguments: {plain(word)}")
        found.append(word)
    return found


def kinds(text: str) -> list[str]:
    """The formats of a list with commas."""
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in SUFFIXES]
    if wrong:
        raise UserError(f"--format {wrong[0]!r} is unknown; use {', '.join(SUFFIXES)}, or several with commas.")
    return list(dict.fromkeys(names))


def output_file(output: Path, kind: str, count: int) -> Path:
    """The file of a format: as named; with the format's ending where there are several, or none was given."""
    return output if not output.name or (count == 1 and output.suffix) else output.with_suffix(SUFFIXES[kind])


def untrained(configs: Sequence[str], changes: Sequence[str]) -> "TrainedModel":
    """The model of a configuration with its first weights."""
    from segvid.data.record import data_record
    from segvid.segmentation.task import SegmentationTask
    from segvid.segmentation.trained import describe
    from segvid.training import SegvidCLI, prepare

    prepare()
    words = [word for file in configs for word in ("--config", file)]
    cli = SegvidCLI(run=False, save_config_callback=None, args=[*words, *changes, "--trainer.logger=false"])
    assert isinstance(cli.model, SegmentationTask)
    return describe(cli.model.eval(), data_record(cli.datamodule))


def sample_picture() -> "gate.Array":
    """A photograph (427, 640, 3)."""
    import numpy as np
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image("china.jpg"), dtype=np.uint8)


def export_one(
    graph: "InferenceGraph",
    model: "TrainedModel",
    kind: str,
    output: Path,
    picture: "gate.Array",
    options: argparse.Namespace,
    shown: "Console",
) -> None:
    """Writes one file and its record, if it is equal.

    Raises:
        UserError: it is not, or it cannot be written.
    """
    import json

    from segvid.export import formats

    name = plain(output)
    compiled = kind == "pt2" and options.compile
    rule = formats.size_rule(graph, kind)
    image = formats.example(rule, options.input_type)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(output.parent)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{partial_prefix()}{os.getpid()}-") as folder:
            # Until it is proven equal the file has no place: an old one stays, and nothing half-written is ever left.
            file = Path(folder) / f"model{SUFFIXES[kind]}"
            say(shown, f"{name}: step 1 of 2, exporting{' and compiling, which takes minutes' if compiled else ''} ...")
            started = time.monotonic()
            try:
                if kind == "torchscript":
                    how = formats.write_torchscript(graph, image, file, optimize=options.optimize)
                elif kind == "pt2":
                    how = formats.write_pt2(graph, image, file, compiled=compiled)
                else:
                    how = formats.write_onnx(graph, image, file)
            except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"{kind} cannot express this model. {reason}") from error
            taken = duration(time.monotonic() - started)
            images = gate.cases(rule, picture, options.input_type)
            say(shown, f"{name}: exported in {taken}; step 2 of 2, comparing on {len(images)} inputs ...")
            started = time.monotonic()
            runner = "aoti" if compiled else kind
            found = gate.compare(graph, runner, file, images)
            taken = duration(time.monotonic() - started)
            shown.print(case_table(kind, how, found))
            if not gate.passes(runner, found):
                raise UserError(
                    f"the {kind} file is not equal to the model (allowed: {gate.ERROR_BOUNDS[runner]:g} of the largest "
                    f"score, classes equal on {gate.AGREEMENT_BOUND:.2%})."
                )
            text = json.dumps(record(model, graph, runner, how, rule, found, options), indent=1)
            formats.add_record(kind, file, text)
            doubt = reread(kind, file, text)
            note = Path(folder) / "record.json"
            note.write_text(text + "\n")
            beside = output.with_name(output.name + ".json")
            beside.unlink(missing_ok=True)  # never the record of another file
            file.replace(output)
            note.replace(beside)
    except OSError as error:
        raise UserError(f"{error.strerror or error} ({output}).") from error
    say(shown, f"{name}: {output.stat().st_size / 1e6:.1f} MB, equal to the model (compared in {taken}).")
    if doubt is not None:
        say(shown, f"{name}: segvid predict takes it with --allow_native_code only: {doubt}.")


def say(shown: "Console", text: str) -> None:
    """A line, at once, also in a log."""
    shown.print(text, soft_wrap=True)
    shown.file.flush()


def partial_prefix() -> str:
    """How the folders of this computer's exports begin."""
    return f"{PARTIAL}{slug(platform.node() or 'computer')}-"


def remove_left_over(folder: Path) -> None:
    """Removes what exports that were killed have left, on this computer."""
    for left in folder.glob(f"{PARTIAL}*"):
        process = re.fullmatch(rf"{re.escape(partial_prefix())}([0-9]+)-\w+", left.name)
        if process is None or int(process[1]) == os.getpid():
            continue
        try:
            os.kill(int(process[1]), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):
                shutil.rmtree(left)
        except (OSError, OverflowError):  # it lives, and is another user's
            continue


def reread(kind: str, file: Path, text: str) -> str | None:
    """Why `segvid predict` would not take the file unasked, if it would not.

    Raises:
        UserError: the record in the file is not what was written.
    """
    from segvid.export import reading

    content = file.read_bytes()
    try:
        inside, native = reading.described(kind, content)
    except Refused as error:
        raise UserError(f"the record in the {kind} file cannot be read back: {error}.") from error
    if as_json(inside, NAME) != as_json(text, NAME):
        raise UserError(f"the record in the {kind} file cannot be read back.")
    if native:
        return "it is native code"
    try:
        reading.checked(kind, content)
    except Refused as error:
        return plain(error)
    return None


def case_table(kind: str, how: str, found: Sequence[gate.Case]) -> "Table":
    """The comparisons as a table."""
    from rich.table import Table

    table = Table(title=f"{kind}: {how}", title_justify="left")
    for name in ("input", "batch x height x width", "largest error / largest score", "equal classes"):
        table.add_column(name, justify="left" if name == "input" else "right")
    for case in found:
        error = "-" if case.error is None else f"{case.error:.1e}"
        table.add_row(case.name, " x ".join(map(str, case.shape)), error, f"{100 * case.agreement:.4f} %")
    return table


def record(
    model: "TrainedModel",
    graph: "InferenceGraph",
    runner: str,
    how: str,
    rule: "SizeRule",
    found: Sequence[gate.Case],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What the file says of itself; `Record` is the part that is read back."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    import torch

    import segvid
    from segvid.provenance import commit, sha256

    types = "uint8 or float32" if runner == "torchscript" else options.input_type
    return {
        "format": runner,
        "how": how,
        "model": {"backbone": type(graph.backbone).__name__, "head": type(graph.head).__name__},
        "checkpoint": None
        if options.ckpt_path is None
        else {"file": options.ckpt_path.name, "sha256": sha256(options.ckpt_path)},
        "input": {
            "type": types,
            "shape": "RGB (batch, 3, height, width)",
            "range": "uint8: 0 to 255; float32: 0 to 1; not normalised",
            "multiple": rule.multiple,
            "minimum": rule.minimum,
            "reason": rule.reason,
            "image_size": model.image_size,  # what pictures are resized to before, as in training
        },
        "normalisation": {"mean": list(model.mean), "std": list(model.std), "where": "inside the file"},
        "output": {"type": graph.output_type, "size": "that of the input"},
        "class_names": model.class_names,
        "palette": [list(colour) for colour in model.palette],
        "verified": [asdict(case) for case in found],
        "versions": {"segvid": segvid.__version__, "torch": torch.__version__},
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
