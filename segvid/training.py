"""`fit`, `validate`, `test` and `resume`: LightningCLI with segvid's classes, links and defaults."""

import difflib
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelSummary, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

import segvid.backbones
import segvid.data
import segvid.segmentation.heads
import segvid.segmentation.losses
import segvid.segmentation.schedule
from segvid.allowed import check_loggers, explain_refusal, restrict_imports
from segvid.checkpoints import Checkpoints, WholeCheckpointIO
from segvid.data.segmentation import SegmentationDataModule
from segvid.errors import UserError, user_message
from segvid.files import shipped_configs, write_whole
from segvid.logs import ClassCurves, MetricsFile, ModelLines, ProgressLines
from segvid.segmentation.clock import TrainingClock
from segvid.segmentation.distance import DistanceAccuracy
from segvid.segmentation.pictures import PredictionPanels, run_folder
from segvid.segmentation.reporting import EvaluationFolder, EvaluationReport, evaluation_folder
from segvid.segmentation.task import SegmentationTask
from segvid.segmentation.trained import read_checkpoint
from segvid.stopping import GentleStop
from segvid.streams import RandomStreams
from segvid.text import slug

load_yaml = get_loader("yaml")
STOPPED = 128 + signal.SIGTERM  # exit code
DEEPEST = 50  # levels of a configuration

# Warnings that tell a user of this program nothing; each would come with every run.
IRRELEVANT = [
    r".*LightningCLI's args parameter is intended to run from within Python.*",
    r".*Experiment logs directory .* exists and is not empty.*",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*does not have many workers which may be a bottleneck.*",
    r".*The dirpath has changed from .* to .*, therefore.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r"\s*skip_none parameter was deprecated.*",
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",  # the loader goes on where it was
    r".*It is recommended to use `self.log\('(val|test)/.*sync_dist=True.*",  # all processes have the same figures
    r".*`pin_memory` argument is set as true but no accelerator.*",
    r"Image size \(\d+ pixels\) exceeds limit of \d+ pixels.*",  # Pillow's; twice as many are an error, which is told
]

# Lines of Lightning's log, likewise.
CHATTER = (
    "\U0001f4a1 Tip",
    "TPU available: False",
    "HPU available: False",
    "Trainer already configured with model summary callbacks",
    "Loading `train_dataloader` to estimate number of stepping batches",
    "`Trainer.fit` stopped: `max_",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
)


class Parser(LightningArgumentParser):
    """LightningCLI's parser, with errors that name the option and the nearest valid word."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the parser's message, shortened, with a suggestion."""
        raise UserError(explain(message)) from ex

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parses, if the files of the configuration can be read: the parser itself does not name them.

        Raises:
            UserError: one cannot, or an option is wrong.
        """
        words = shipped_configs(args or ())
        for file in config_files(words):
            check_config(file)
        return super().parse_args(words, *more, **options)


class WholeConfig(SaveConfigCallback):
    """Writes `config.yaml` whole: a run without it cannot be resumed. That of a resumed run when all is accepted."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file of a new run, before anything can fail."""
        folder = run_folder(trainer)
        if folder is not None and not (stage == "fit" and (folder / self.config_filename).is_file()):
            self.write(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is trained from here on."""
        folder = run_folder(trainer)
        if folder is not None and trainer.is_global_zero:
            self.write(folder)

    def write(self, folder: Path) -> None:
        """Replaces the file."""
        save = partial(self.parser.save, self.config, skip_none=False, overwrite=True, multifile=False)
        write_whole(folder / self.config_filename, lambda file: save(path=file))


class SegvidCLI(LightningCLI):
    """LightningCLI whose data module tells the task the number of classes, and which writes one folder a run.

    Args:
        folder: the run's folder; a new `runs/<data>-<head>/version_N` when None.
        callbacks: to add to those of the config.
        options: see `LightningCLI`.
    """

    def __init__(self, folder: Path | None = None, callbacks: Sequence[Callback] = (), **options: Any) -> None:
        self.folder = folder
        self.checkpoint: dict[str, Any] = {}  # its content
        self.callbacks = list(callbacks)
        self.report = EvaluationReport()
        self.distance = DistanceAccuracy()
        options.setdefault("save_config_callback", WholeConfig)
        super().__init__(
            SegmentationTask,
            SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,  # the task makes its own parameter groups
            save_config_kwargs={"save_to_log_dir": False},  # WholeConfig does
            **options,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands, and their arguments that are not options."""
        skipped = {"model", "train_dataloaders", "val_dataloaders", "dataloaders", "datamodule"}
        return {"fit": skipped, "validate": skipped, "test": skipped}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The link from data to model, and the callbacks that every run has."""
        # The data are looked for here: between them and a model whose weights may take minutes to fetch.
        parser.link_arguments(
            "data", "model.init_args.num_classes", compute_fn=self.count_classes, apply_on="instantiate"
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(PredictionPanels, "panels")
        parser.add_argument(
            "--accept_other_data",
            type=bool,
            default=False,
            help="take a checkpoint of other classes, normalisation or image size than those of the data at hand",
        )
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/mIoU",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.save_on_train_epoch_end": False,  # at validation: before last.ckpt, which holds the best
                "checkpoint.enable_version_counter": False,
                "checkpoint.auto_insert_metric_name": False,
                "trainer.default_root_dir": "runs",
            }
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults({"weights_only": True})  # a checkpoint is data: unpickling code from it is refused
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})  # the report prints the figures
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters override the config: the wrong head could be tested."""

    def before_instantiate_classes(self) -> None:
        """Looks for the checkpoint before anything is built.

        Raises:
            UserError: there is none, or it is none, or a logger is given what no config may give.
        """
        check_loggers(self.config.as_dict())
        path = self._get(self.config, "ckpt_path")
        if path is not None:
            content = read_checkpoint(Path(path))
            self.checkpoint = content
            if self.subcommand == "fit" and "optimizer_states" not in content:
                raise UserError(f"{path} holds weights only, and a training cannot go on from it (--ckpt_path).")
        elif self.subcommand in ("validate", "test"):
            raise UserError("name the weights to evaluate: --ckpt_path RUN/checkpoints/best.ckpt.")

    def after_fit(self) -> None:
        """Evaluates the weights at the end, if training did not stop at a validation; they may be the best."""
        if self.report.step != self.trainer.global_step and self.trainer.enable_validation:
            figures = dict(self.trainer.callback_metrics)
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            self._get(self.config_init, "checkpoint").count_last_evaluation(self.trainer, figures)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer.

        Raises:
            UserError: a class refused its arguments; jsonargparse would bury what it said in the whole configuration.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, IndexError, ZeroDivisionError) as error:
            message = user_message(error)
            if message is not None:
                raise UserError(message) from error
            cause: BaseException = error
            while cause.__cause__ is not None or cause.__context__ is not None:
                cause = cause.__cause__ or cause.__context__ or cause
            raise UserError(str(cause)) from error

    def check_recorded(self) -> None:
        """Compares model and data with what the checkpoint says of its own.

        Raises:
            UserError: another head, another number of classes, or other data that are not said to be meant.
        """
        recorded = self.checkpoint.get("hyper_parameters", {})
        head = recorded.get("head")
        path = head.get("class_path") if isinstance(head, dict) else None
        name = str(path).rsplit(".", 1)[-1] if path else type(self.model.head).__name__
        classes = recorded.get("num_classes", self.model.num_classes)
        if (name, classes) != (type(self.model.head).__name__, self.model.num_classes):
            raise UserError(
                f"The checkpoint does not fit the model: it is of a {name} with {classes} classes, and the "
                f"configuration has a {type(self.model.head).__name__} and data with {self.model.num_classes}. Use the "
                "config.yaml of its own run."
            )
        self.model.accept_other_data = self._get(self.config, "accept_other_data")
        self.model.check_data(self.checkpoint, self.datamodule, str(self._get(self.config, "ckpt_path")))
        if self.subcommand is not None:
            self.config[self.subcommand]["accept_other_data"] = False  # meant this time, not whenever it is resumed

    def count_classes(self, data: SegmentationDataModule) -> int:
        """The number of classes of the data, which a command needs to be there; an untrained model does without.

        Raises:
            UserError: they are not there.
        """
        if self.subcommand is not None:
            data.find()
        return data.num_classes

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, by default with one folder a run: TensorBoard, CSV, config and checkpoints side by side."""
        self.check_recorded()  # before a folder is made
        config = self._get(self.config_init, "trainer")
        seed = self.run_seed()
        self.datamodule.run_seed = seed
        callbacks: list[Callback] = [TrainingClock(), RandomStreams(seed), self.report, self.distance, *self.callbacks]
        own = _as_list(config.callbacks)
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in own):
            callbacks.append(RichProgressBar(leave=False) if sys.stdout.isatty() else ProgressLines())
        if config.enable_model_summary is not False and not any(isinstance(c, ModelSummary) for c in own):
            callbacks.append(ModelLines())
        logs = config.logger is not False and not config.fast_dev_run
        if logs:
            callbacks += [LearningRateMonitor("step"), ClassCurves()]
            kwargs["logger"] = _as_list(config.logger) if config.logger is not True else False
        elif config.logger is False:
            self.save_config_callback = None
        if not any(isinstance(plugin, CheckpointIO) for plugin in _as_list(config.plugins)):
            kwargs["plugins"] = [*_as_list(config.plugins), WholeCheckpointIO()]
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**kwargs)
        if logs:
            # Those of the config come after: the first one's folder is the run's, which resume and predict read.
            trainer.loggers = [*self.run_loggers(trainer, Path(config.default_root_dir)), *trainer.loggers]
        return trainer

    def run_seed(self) -> int:
        """The seed from which all random numbers of the run follow: its config's, or where that is false any."""
        seed = self._get(self.config, "seed_everything")
        return int(torch.initial_seed() % 2**32) if isinstance(seed, bool) else int(seed)

    def run_loggers(self, trainer: Trainer, root: Path) -> list[Any]:
        """TensorBoard's and `metrics.csv` in the folder of the run, which the first process makes.

        An evaluation has a place in the run of its checkpoint, and no log.
        """
        folder = self.folder
        if self.subcommand in ("validate", "test"):
            return [EvaluationFolder(folder or self.evaluation_folder())]
        if folder is None:
            place = root / f"{folder_name(self.datamodule.name)}-{type(self.model.head).__name__}"
            # The others write nothing; Lightning tells them the first one's folder where they ask for it.
            folder = take_folder(place) if trainer.is_global_zero else place / "of_the_first_process"
        resumed = self.folder is not None and self._get(self.config, "ckpt_path") is not None
        tensorboard = TensorBoardLogger(folder.parent, name="", version=folder.name, default_hp_metric=False)
        return [tensorboard, MetricsFile(folder, keep=resumed)]

    def evaluation_folder(self) -> Path:
        """Where an evaluation is written: in the run of its checkpoint."""
        stage = "val" if self.subcommand == "validate" else "test"
        checkpoint = Path(self._get(self.config, "ckpt_path"))
        return evaluation_folder(checkpoint, stage, self.model.inference, self.config_dump)


def take_folder(place: Path) -> Path:
    """Makes the next `version_N` of a place, which no other program has: a folder is made in one step."""
    place.mkdir(parents=True, exist_ok=True)
    taken = [int(file.name[8:]) for file in place.glob("version_*") if file.name[8:].isdecimal()]
    number = max(taken, default=-1) + 1
    while True:
        folder = place / f"version_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def folder_name(name: str) -> str:
    """The name as a part of a folder's, unchanged where that is harmless: other than slugs it need not be unique."""
    return name if re.fullmatch(r"\w[\w.=-]{0,79}", name, re.ASCII) else slug(name)


def fit(words: Sequence[str]) -> int:
    """Trains."""
    return run("fit", words)


def validate(words: Sequence[str]) -> int:
    """Evaluates on the validation split."""
    return run("validate", words)


def test(words: Sequence[str]) -> int:
    """Evaluates on the test split."""
    return run("test", words)


def resume(words: Sequence[str]) -> int:
    """Goes on with a run."""
    return run("resume", words)


def run(command: str, words: Sequence[str]) -> int:
    """Runs fit, validate, test or resume with the words that follow it; returns the exit code."""
    prepare()
    try:
        if command not in ("fit", "resume"):
            SegvidCLI(args=[command, *words])
            return 0
        folder, words = resume_arguments(words) if command == "resume" else (None, list(words))
        with GentleStop() as stop:
            SegvidCLI(folder, [stop], args=["fit", *words])
    except SIGTERMException:
        # Lightning kills the first process where another one that it has started fails.
        return STOPPED if os.environ.get("LOCAL_RANK", "0") == "0" else 0
    finally:
        leave_processes()
    return 0


def leave_processes() -> None:
    """Ends gloo's threads, which Lightning leaves: else a process may abort as it exits, its work done."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def load_value(text: str) -> Any:
    """YAML of a file or an option; jsonargparse hands a nested `null` over to its own parsers as the text "None".

    Raises:
        yaml.YAMLError: it is none, or so deep that it can only be an attack.
    """
    value = None if text.strip() == "None" else load_yaml(text)
    if depth(value) > DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
    return value


def depth(value: Any) -> int:
    """How many lists and mappings are inside one another."""
    deepest, parts = 0, [(value, 0)]
    while parts:
        part, level = parts.pop()
        deepest = max(deepest, level)
        if level > DEEPEST:
            break
        if isinstance(part, list | dict):
            parts += [(inner, level + 1) for inner in (part.values() if isinstance(part, dict) else part)]
    return deepest


def config_files(words: Sequence[str]) -> list[Path]:
    """The files that `--config FILE` and `--config=FILE` name."""
    named = [after for word, after in pairwise(words) if word in ("-c", "--config")]
    named += [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    return [Path(name) for name in named if Path(name).is_file()]


def check_config(file: Path) -> None:
    """Whether a file of the configuration can be read.

    Raises:
        UserError: it cannot; the message names it.
    """
    try:
        content = load_value(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split())[:300]
        raise UserError(f"{file} is not YAML that can be read ({reason}).") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{file} is no configuration: it holds no mapping (model: ..., data: ...) at its top.")


def prepare() -> None:
    """Settings of the process: what configs may import, float32 precision, which warnings are not worth a line."""
    restrict_imports()
    set_loader("yaml", load_value, (yaml.YAMLError,))
    torch.set_float32_matmul_precision("high")
    for message in IRRELEVANT:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(tells_something)


def tells_something(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's is worth reading: no advertisement, no hardware that is not there."""
    return not record.getMessage().startswith(CHATTER)


def resume_arguments(words: Sequence[str]) -> tuple[Path, list[str]]:
    """`RUN [options]` as the run's folder and the options of the fit that goes on with it."""
    if not words or words[0].startswith("-"):
        raise UserError("name the folder of the run: segvid resume runs/VOC-DANetHead/version_0")
    folder = Path(words[0])
    config, checkpoint = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    for file in (config, checkpoint):
        if not file.is_file():
            raise UserError(f"{folder} is not a run that can be resumed: there is no {file}.")
    return folder, ["--config", str(config), "--ckpt_path", str(checkpoint), *words[1:]]


def explain(message: str) -> str:
    """What is wrong in the parser's many lines, and the nearest valid word to what was not known."""
    noise = ("Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value", "- Expected a path but")
    lines = [line.strip() for line in message.splitlines()]
    lines = [line.removeprefix("- ") for line in lines if line and not line.startswith(noise)]
    lines = [line.replace("Does not validate against any of the Union subtypes", "").strip() for line in lines]
    text = explain_refusal(" ".join(dict.fromkeys(line for line in lines if line)))
    text = re.sub(r"Expected a dot import path string: (\S+)", r"there is no class \1.", text)
    text = text if len(text) <= 500 else text[:500] + " ..."
    unknown = re.findall(
        r"[Uu]nrecognized arguments?: --([\w.]+)|[Oo]ption '([\w.]+)'|Key '([\w.]+)'|"
        r"key \"?'?([\w.]+)'? is not expected|"
        r"no class ([\w.]+)\.|nested key '([\w.]+)'|class_path '([\w.]+)'",
        text,
    )
    if re.search(r"are required: .*data, .*model", text):
        return "no data and no model: give a recipe and a head, --config RECIPE.yaml --config HEAD.yaml."
    if "Did you mean" in text:
        return text  # the message of a nested parser, explained already
    known = known_words()
    words = [part for match in unknown for word in match if word for part in word.split(".") if part not in known]
    near = [word for part in words for word in near_words(part, known)]
    return text + (f" Did you mean {' or '.join(dict.fromkeys(near))}?" if near else "")


def near_words(part: str, known: Sequence[str]) -> list[str]:
    """Up to two words that were meant: misspelt, or given without their end, as DANet."""
    longer = [word for word in known if len(part) > 2 and word.lower().startswith(part.lower())]
    return (difflib.get_close_matches(part, known, n=2, cutoff=0.75) + sorted(longer, key=len))[:2]


def known_words() -> list[str]:
    """Class names and parameter names that a config can hold."""
    words: list[str] = []
    modules = (segvid.segmentation.heads, segvid.backbones, segvid.data, segvid.segmentation.losses)
    for module in modules:
        for name, member in vars(module).items():
            if inspect.isclass(member) and member.__module__.startswith("segvid"):
                words += [name, *inspect.signature(member).parameters]
    for member in (SegmentationTask, SegmentationDataModule, Trainer):
        words += [member.__name__, *inspect.signature(member).parameters]
    return list(dict.fromkeys([*words, "trainer", "model", "data", "checkpoint", "panels", "init_args", "class_path"]))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
