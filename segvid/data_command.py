"""The commands `segvid data check` and `segvid data weights`."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segvid.commands.options import Parser
from segvid.errors import UserError
from segvid.files import find_config, write_json
from segvid.text import console as text_console
from segvid.text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from segvid.data.check import DataReport
    from segvid.data.segmentation import SegmentationDataModule

USAGE = """\
usage: segvid data check --config RECIPE [--data.init_args.root ...] [--output check.json]
       segvid data weights --config RECIPE [--method median_frequency|inverse_log]

  check    reads every file of the splits; names missing, damaged and mismatched files, unknown label ids, empty and
           overlapping splits; exit code 1 if anything is wrong
  weights  class weights for a loss from the pixel counts of the training split

  Files are read in --data.init_args.num_workers processes, but no more than there are processors.
"""
SHOWN = 30  # faults in the terminal; all are in --output


def data_command(words: Sequence[str]) -> int:
    """Runs `check` or `weights`; returns the exit code."""
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] not in ("check", "weights"):
        raise UserError(f"there is no command 'data {words[0]}'; use data check or data weights.")
    parser = Parser(prog=f"segvid data {words[0]}", add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config", type=Path, action="append", default=[])
    if words[0] == "check":
        parser.add_argument("--output", type=Path)
    else:
        parser.add_argument("--method", choices=("median_frequency", "inverse_log"), default="median_frequency")
    options, rest = parser.parse_known_args(words[1:])
    if options.help:
        print(USAGE, end="")
        return 0
    data = data_of(options.config, rest)
    console = text_console()
    data.prepare_data()
    from segvid.data.check import check, class_weights

    if words[0] == "weights":
        report = check(data, ["train"], console)
        if report.faults:
            raise UserError(f"{report.faults[0]} Run segvid data check.")
        weights = class_weights(report.splits[0].pixels, options.method)
        for name, weight in zip(data.class_names, weights, strict=True):
            console.print(f"{plain(name)}: {weight:.4f}")
        numbers = ",".join(f"{weight:.4f}" for weight in weights)
        console.print(f"--model.init_args.loss.init_args.class_weights=[{numbers}]", soft_wrap=True)
        console.print(
            "(where the loss is CrossEntropy; in a WeightedSum they belong to its CrossEntropy, in the recipe)"
        )
        return 0
    report = check(data, list(dict.fromkeys(("train", "val", data.test_split))), console)
    show(report, console)
    if options.output is not None:
        write_json(options.output, report.asdict())
    return 1 if report.faults else 0


def data_of(configs: Sequence[Path], rest: Sequence[str]) -> "SegmentationDataModule":
    """The data module that the `data` parts of the configurations and the options describe.

    Raises:
        UserError: a file is missing or wrong, no data set is named, or it is one without files.
    """
    import yaml

    from segvid.data.segmentation import SegmentationDataModule
    from segvid.training import Parser as ConfigParser
    from segvid.training import check_config, prepare

    prepare()
    parser = ConfigParser()
    parser.add_argument("--config", action="config")
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True, required=False)
    words = []
    with tempfile.TemporaryDirectory() as folder:
        for index, config in enumerate(map(find_config, configs)):
            if not config.is_file():
                raise UserError(f"there is no file {config} (--config).")
            check_config(config)
            content = yaml.safe_load(config.read_text(encoding="utf-8"))
            if content is not None and "data" in content:
                part = Path(folder) / f"{index}.yaml"
                part.write_text(yaml.safe_dump({"data": content["data"]}))
                words += ["--config", str(part)]
        options = parser.parse_args([*words, *rest])
    if options.get("data") is None:
        raise UserError("no data set is named: give a recipe, --config configs/segmentation/recipes/voc.yaml.")
    data = parser.instantiate(options)["data"]
    assert isinstance(data, SegmentationDataModule)
    if type(data).files is SegmentationDataModule.files:
        raise UserError(f"{type(data).__name__} generates its samples: there are no files to read.")
    return data


def show(report: "DataReport", console: "Console") -> None:
    """Prints the tables, and the faults."""
    from rich.table import Table

    table = Table(title="Splits")
    for column in ("split", "images", "sizes (width x height)", "labelled pixels", "ignored"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in report.splits:
        common = [f"{width} x {height} ({count})" for (height, width), count in split.sizes.most_common(3)]
        more = f" and {len(split.sizes) - 3} more" if len(split.sizes) > 3 else ""
        labelled = int(split.pixels.sum())
        ignored = f"{100 * split.ignored / max(labelled + split.ignored, 1):.1f} %"
        table.add_row(plain(split.name), str(split.images), ", ".join(common) + more, f"{labelled:,}", ignored)
    console.print(table)
    table = Table(title="Share of the labelled pixels, %")
    table.add_column("class")
    for split in report.splits:
        table.add_column(plain(split.name), justify="right")
    for index, name in enumerate(report.class_names):
        shares = [100 * s.pixels[index] / max(int(s.pixels.sum()), 1) for s in report.splits]
        never = "never"
        table.add_row(
            plain(name),
            *(f"{p:.3f}" if s.pixels[index] else never for p, s in zip(shares, report.splits, strict=True)),
        )
    console.print(table)
    for note in report.notes:
        console.print(f"note: {plain(note)}", soft_wrap=True)
    for fault in report.faults[:SHOWN]:
        console.print(f"error: {plain(fault)}", soft_wrap=True)
    if len(report.faults) > SHOWN:
        console.print(f"... and {len(report.faults) - SHOWN} more; --output FILE.json holds all of them.")
    console.print(f"{len(report.faults)} errors." if report.faults else "No errors.")
