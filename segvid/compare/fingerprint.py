"""What the result of a run depends on: the resolved configuration, the data's files, and the files that it names.

Not on comments, the order of options, defaults that are written out, or where and how often something is shown.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.compare.config import Run
from segvid.errors import user_message
from segvid.provenance import sha256

if TYPE_CHECKING:
    from segvid.data.segmentation import SegmentationDataModule

# Where output goes, what is shown, how fast data is read. The seed is the run's own.
NO_MATTER = (
    "config",
    "seed_everything",
    "checkpoint",
    "panels",
    "trainer.default_root_dir",
    "trainer.enable_autolog_hparams",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.profiler",
    "data.init_args.num_workers",
)


def identified(runs: Sequence[Run]) -> list[Run]:
    """The runs with their fingerprints, or why they cannot be run; what several have in common is read once."""
    configurations: dict[tuple[str, ...], dict[str, Any]] = {}
    data: dict[str, dict[str, Any]] = {}
    return [identify(run, configurations, data) for run in runs]


def identify(run: Run, configurations: dict[tuple[str, ...], Any], data: dict[str, dict[str, Any]]) -> Run:
    """One run with its fingerprint; what is known of others already is taken from there, and added."""
    words = tuple(word for word in run.words if not word.startswith("--seed_everything"))
    try:
        if words not in configurations:
            configurations[words] = resolve(words)
        configuration = configurations[words]
        splits = ("train", "val") if run.checkpoint is None else ("val",)
        key = text_of([splits, configuration["data"]])
        if key not in data:
            data[key] = describe(configuration["data"], splits)
        made_from = {
            "seed": run.seed,
            "configuration": configuration,
            "data": data[key],
            "files": {file: sha256(Path(file)) for file in sorted(set(files_in(configuration)))},
            "checkpoint": None if run.checkpoint is None else sha256(Path(run.checkpoint)),
        }
    except Exception as error:
        problem = user_message(error) or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return replace(run, problem=problem, made_from={}, fingerprint="")
    digest = hashlib.sha256(text_of(made_from).encode()).hexdigest()[:16]
    return replace(run, problem=None, made_from=made_from, fingerprint=digest)


def resolve(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that the words describe, with all defaults, as plain data; no model is built.

    Raises:
        UserError: it is wrong.
    """
    from segvid.training import SegvidCLI, prepare

    class Parsed(SegvidCLI):
        def instantiate_classes(self) -> None:
            """Leaves it at the configuration."""

    prepare()
    options = [*words, "--seed_everything=false"]  # this process draws nothing
    cli = Parsed(run=False, save_config_callback=None, args=options)
    content: dict[str, Any] = canonical(cli.config.as_dict())
    for path in NO_MATTER:
        *above, last = path.split(".")
        place: Any = content
        for part in above:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place.pop(last, None)
    return content


def describe(configuration: dict[str, Any], splits: Sequence[str]) -> dict[str, Any]:
    """Classes and files of a data set; it is fetched first, if it may be and is not there.

    Raises:
        UserError: it is not there, or not whole.
    """
    data = data_module(configuration)
    data.prepare_data()
    names = {"class_names": list(data.class_names), "palette": [list(colour) for colour in data.palette]}
    try:
        return names | {split: digest_of(data, split) for split in splits}
    except NotImplementedError:  # it generates its samples
        return names


def data_module(configuration: dict[str, Any]) -> "SegmentationDataModule":
    """The data module of a configuration's part `data`."""
    from segvid.data.segmentation import SegmentationDataModule
    from segvid.training import Parser

    parser = Parser()
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True, required=True)
    data: SegmentationDataModule = parser.instantiate(parser.parse_object({"data": configuration}))["data"]
    return data


def digest_of(data: "SegmentationDataModule", split: str) -> str:
    """A digest of path, size and time of the files of a split."""
    content = hashlib.sha256()
    for pair in data.pairs(split):
        for file in (pair.image, pair.mask):
            state = file.stat()
            content.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return content.hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Plain data in which what means the same is the same."""
    if isinstance(value, dict):
        content = {str(key): canonical(item) for key, item in value.items()}
        return {key: item for key, item in content.items() if key != "init_args" or item}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def text_of(content: Any) -> str:
    """Plain data as text, the same for the same data."""
    return json.dumps(content, sort_keys=True)


def files_in(value: Any) -> Iterator[str]:
    """The texts in plain data that name a file that is there, such as weights of a backbone."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from files_in(item)
    elif isinstance(value, str):
        with suppress(OSError, ValueError):  # too long for a path, or none
            if Path(value).is_file():
                yield value


def changes(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two plain data differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from changes(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif before != after:
        yield place
