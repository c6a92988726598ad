"""The command `segvid export`: a model to files that run elsewhere, each proven equal before it gets its name."""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import segvid
from segvid.data.reading import Array, read_image
from segvid.data.record import data_record
from segvid.errors import UserError
from segvid.export import formats, gate
from segvid.export.graph import OUTPUT_TYPES, InferenceGraph
from segvid.provenance import commit, sha256
from segvid.segmentation.task import SegmentationTask
from segvid.segmentation.trained import TrainedModel, describe, load_trained

EPILOG = """\
The file takes RGB images (B, 3, H, W) of any size, uint8 or in 0..1; the normalisation is inside. It is loaded in a
fresh process without segvid and compared with the model on six inputs; if it differs, it is not written.
Beside it: <output>.json, what the file says of itself, and the measured differences.
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print."""
        raise UserError(f"{message}. See segvid export --help.")


def export(words: Sequence[str]) -> int:
    """Exports what the options name; returns the exit code: 1 if a format failed."""
    options = parse(words)
    model = load_trained(options.ckpt_path) if options.ckpt_path else untrained(options.config)
    if model.task.num_classes > 255 and options.output_type == "classes":
        raise UserError(f"--output_type classes gives bytes, and the model has {model.task.num_classes} classes.")
    picture = sample_picture() if options.image is None else read_image(options.image)
    graph = InferenceGraph(model.task.backbone, model.task.head, model.mean, model.std, options.output_type).eval()
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    console = Console(markup=False)
    failed = False
    for kind in options.format:
        output = output_file(options.output, kind, len(options.format))
        try:
            export_one(graph, model, kind, output, model.resized(picture), options, console)
        except UserError as error:
            failed = True
            print(f"segvid export: {output} is not written: {error}", file=sys.stderr)
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
    options = parser.parse_args(words)
    ending = {suffix: kind for kind, suffix in formats.SUFFIXES.items()}.get(options.output.suffix)
    if options.format is None:
        options.format = [ending or "torchscript"]
    elif len(options.format) == 1 and ending not in (None, options.format[0]):
        raise UserError(f"--output {options.output} is the name of a {ending} file; --format is {options.format[0]}.")
    for kind in options.format:
        file = output_file(options.output, kind, len(options.format))
        if file.is_dir() or not file.name or file.with_name(file.name + ".json").is_dir():
            raise UserError(f"--output {file} is a folder; name a file.")
    if options.image is not None and not options.image.is_file():
        raise UserError(f"there is no image {options.image} (--image).")
    if options.optimize and "torchscript" not in options.format:
        raise UserError("--optimize is for --format torchscript.")
    if options.compile and "pt2" not in options.format:
        raise UserError("--compile is for --format pt2.")
    return options


def kinds(text: str) -> list[str]:
    """The formats of a list with commas."""
    names = [name.strip() for name in text.split(",")]
    wrong = [name for name in names if name not in formats.SUFFIXES]
    if wrong:
        raise UserError(f"--format {wrong[0]!r} is unknown; use {', '.join(formats.SUFFIXES)}, or several with commas.")
    return list(dict.fromkeys(names))


def output_file(output: Path, kind: str, count: int) -> Path:
    """The file of a format: as named; with the format's ending where there are several, or none was given."""
    return output if not output.name or (count == 1 and output.suffix) else output.with_suffix(formats.SUFFIXES[kind])


def untrained(configs: Sequence[str]) -> TrainedModel:
    """The model of a configuration with its first weights."""
    from segvid.training import SegvidCLI, prepare

    prepare()
    words = [word for file in configs for word in ("--config", file)]
    cli = SegvidCLI(run=False, save_config_callback=None, args=[*words, "--trainer.logger=false"])
    assert isinstance(cli.model, SegmentationTask)
    return describe(cli.model.eval(), data_record(cli.datamodule))


def sample_picture() -> Array:
    """A photograph (427, 640, 3)."""
    from sklearn.datasets import load_sample_image

    return np.asarray(load_sample_image("china.jpg"), dtype=np.uint8)


def export_one(
    graph: InferenceGraph,
    model: TrainedModel,
    kind: str,
    output: Path,
    picture: Array,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Writes one file and its record, if it is equal.

    Raises:
        UserError: it is not, or it cannot be written.
    """
    compiled = kind == "pt2" and options.compile
    rule = formats.size_rule(graph, kind)
    image = formats.example(rule, options.input_type)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".segvid-export-") as folder:
            # Until it is proven equal the file has no place: an old one stays, and nothing half-written is ever left.
            file = Path(folder) / f"model{formats.SUFFIXES[kind]}"
            console.print(f"{output}: exporting ...", highlight=False)
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
            runner = "aoti" if compiled else kind
            found = gate.compare(graph, runner, file, gate.cases(rule, picture, options.input_type))
            console.print(case_table(kind, how, found))
            if not gate.passes(runner, found):
                raise UserError(
                    f"the {kind} file is not equal to the model (allowed: {gate.ERROR_BOUNDS[runner]:g} of the largest "
                    f"score, classes equal on {gate.AGREEMENT_BOUND:.2%})."
                )
            text = json.dumps(record(model, graph, runner, how, rule, found, options), indent=1)
            formats.add_record(kind, file, text)
            if json.loads(formats.read_record(file)) != json.loads(text):
                raise UserError(f"the record in the {kind} file cannot be read back.")
            note = Path(folder) / "record.json"
            note.write_text(text + "\n")
            beside = output.with_name(output.name + ".json")
            beside.unlink(missing_ok=True)  # never the record of another file
            file.replace(output)
            note.replace(beside)
    except OSError as error:
        raise UserError(f"{error.strerror or error} ({output}).") from error
    console.print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, equal to the model.", highlight=False)


def case_table(kind: str, how: str, found: Sequence[gate.Case]) -> Table:
    """The comparisons as a table."""
    table = Table(title=f"{kind}: {how}", title_justify="left")
    for name in ("input", "batch x height x width", "largest error / largest score", "equal classes"):
        table.add_column(name, justify="left" if name == "input" else "right")
    for case in found:
        error = "-" if case.error is None else f"{case.error:.1e}"
        table.add_row(case.name, " x ".join(map(str, case.shape)), error, f"{100 * case.agreement:.4f} %")
    return table


def record(
    model: TrainedModel,
    graph: InferenceGraph,
    runner: str,
    how: str,
    rule: formats.SizeRule,
    found: Sequence[gate.Case],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What the file says of itself."""
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
