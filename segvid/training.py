"""`fit`, `validate`, `test` and `resume`: LightningCLI with segvid's classes, links and defaults."""

import csv
import difflib
import inspect
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import segvid.backbones
import segvid.data
import segvid.segmentation.heads
import segvid.segmentation.losses
import segvid.segmentation.schedule
from segvid.allowed import explain_refusal, restrict_imports
from segvid.checkpoints import WholeCheckpointIO
from segvid.data.sampling import TrainingSampler
from segvid.data.segmentation import SegmentationDataModule
from segvid.errors import UserError, user_message
from segvid.files import find_config
from segvid.segmentation.clock import TrainingClock
from segvid.segmentation.distance import DistanceAccuracy
from segvid.segmentation.pictures import PredictionPanels
from segvid.segmentation.reporting import EvaluationReport
from segvid.segmentation.task import SegmentationTask
from segvid.segmentation.trained import read_checkpoint
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
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",  # the sampler goes on where it was
    r".*It is recommended to use `self.log\('(val|test)/.*sync_dist=True.*",  # all processes have the same figures
    r".*`pin_memory` argument is set as true but no accelerator.*",
    r"Image size \(\d+ pixels\) exceeds limit of \d+ pixels.*",  # Pillow's; twice as many are an error, which is told
]


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


class Checkpoints(ModelCheckpoint):
    """`best.ckpt`, and `last.ckpt`, the state at every validation and at the end of training, better or worse.

    ModelCheckpoint's own `save_last` goes with the best: a training that gets no better would leave an early state.
    """

    last_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed training that has nothing left to do leaves its checkpoint alone."""
        super().on_train_start(trainer, pl_module)
        self.last_step = trainer.global_step or None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is due."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the last state, if training did not stop at a validation."""
        if trainer.global_step != self.last_step:
            self.write_last(trainer)

    def write_last(self, trainer: Trainer) -> None:
        """Replaces `last.ckpt`."""
        assert self.dirpath is not None  # since setup
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.last_step = trainer.global_step
            trainer.save_checkpoint(Path(self.dirpath) / "last.ckpt", self.save_weights_only)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves a training that is told to stop, which Lightning does after a whole step, and says how to go on."""
        super().on_exception(trainer, pl_module, exception)
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != "fit":
            return
        if trainer.global_step == 0:
            message = "stopped before the first step: nothing to save."
        else:
            if trainer.global_step != self.last_step:
                self.write_last(trainer)
            assert self.dirpath is not None
            file = Path(self.dirpath) / "last.ckpt"
            message = (
                f"stopped at step {trainer.global_step}, saved in {file}. Go on: segvid resume {file.parent.parent}"
            )
        if trainer.is_global_zero:
            print(f"segvid fit: {message}", file=sys.stderr)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Knows its best again, also where the folder has been moved or is named by another path than before."""
        assert self.dirpath is not None
        here = {path: str(Path(self.dirpath) / Path(path).name) for path in state_dict["best_k_models"]}
        if all(Path(path).is_file() for path in here.values()):
            best, kth = (here.get(state_dict[key], "") for key in ("best_model_path", "kth_best_model_path"))
            scores = {here[path]: score for path, score in state_dict["best_k_models"].items()}
            state_dict = state_dict | {"dirpath": self.dirpath, "best_k_models": scores, "last_model_path": ""}
            state_dict |= {"best_model_path": best, "kth_best_model_path": kth}
        super().load_state_dict(state_dict)


class RandomStreams(Callback):
    """Seeds torch anew before every batch, from the run's seed, epoch, batch and process.

    So a training that is resumed, wherever it stopped, has the dropout that it would have had. (Its crops follow from
    seed, epoch and index: `segvid.data.sampling`.)
    """

    def __init__(self) -> None:
        self.seed = torch.initial_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the loader of an epoch that was stopped in the middle anew: Lightning does before it knows of that."""
        loop = trainer.fit_loop
        if 0 < loop.epoch_loop.batch_progress.current.ready < trainer.num_training_batches:
            sampler = getattr(trainer.train_dataloader, "sampler", None)
            if isinstance(sampler, TrainingSampler):
                sampler.set_epoch(trainer.current_epoch)
                assert loop._data_fetcher is not None
                iter(loop._data_fetcher)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds."""
        words = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))


class SegvidCLI(LightningCLI):
    """LightningCLI whose data module tells the task the number of classes, and which writes one folder a run.

    Args:
        folder: the run's folder; a new `runs/<data>-<head>/version_N` when None.
        callbacks: to add to those of the config.
        options: see `LightningCLI`.
    """

    def __init__(self, folder: Path | None = None, callbacks: Sequence[Callback] = (), **options: Any) -> None:
        self.folder = folder
        self.recorded: dict[str, Any] = {}  # what the checkpoint says of its model
        self.callbacks = list(callbacks)
        self.report = EvaluationReport()
        self.distance = DistanceAccuracy()
        super().__init__(
            SegmentationTask,
            SegmentationDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            auto_configure_optimizers=False,  # the task makes its own parameter groups
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
            "data", "model.init_args.num_classes", compute_fn=classes_of_found_data, apply_on="instantiate"
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(PredictionPanels, "panels")
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
        return parser

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters override the config: the wrong head could be tested."""

    def before_instantiate_classes(self) -> None:
        """Looks for the checkpoint before anything is built.

        Raises:
            UserError: there is none, or it is none.
        """
        path = self._get(self.config, "ckpt_path")
        if path is not None:
            content = read_checkpoint(Path(path))
            self.recorded = content["hyper_parameters"]
            if self.subcommand == "fit" and "optimizer_states" not in content:
                raise UserError(f"{path} holds weights only, and a training cannot go on from it (--ckpt_path).")
        elif self.subcommand in ("validate", "test"):
            raise UserError("name the weights to evaluate: --ckpt_path RUN/checkpoints/best.ckpt.")

    def after_fit(self) -> None:
        """Evaluates the weights at the end, if training did not stop at a validation."""
        if self.report.step != self.trainer.global_step and self.trainer.enable_validation:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

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
        self.check_recorded()

    def check_recorded(self) -> None:
        """Compares the model with what the checkpoint says of its own.

        Raises:
            UserError: another head, or another number of classes.
        """
        head = self.recorded.get("head")
        name = head["class_path"].rsplit(".", 1)[-1] if isinstance(head, dict) else type(self.model.head).__name__
        classes = self.recorded.get("num_classes", self.model.num_classes)
        if (name, classes) != (type(self.model.head).__name__, self.model.num_classes):
            raise UserError(
                f"The checkpoint does not fit the model: it is of a {name} with {classes} classes, and the "
                f"configuration has a {type(self.model.head).__name__} and data with {self.model.num_classes}. Use the "
                "config.yaml of its own run."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, by default with one folder a run: TensorBoard, CSV, config and checkpoints side by side."""
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = [TrainingClock(), RandomStreams(), self.report, self.distance, *self.callbacks]
        if config.enable_progress_bar is not False and not any(
            isinstance(c, RichProgressBar | TQDMProgressBar) for c in _as_list(config.callbacks)
        ):
            # A log file takes few lines, not a live display.
            callbacks.append(RichProgressBar(leave=False) if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=10))
        if config.logger is not False:
            if self.folder is not None:
                root, name, version = self.folder.parent, "", self.folder.name
            else:
                root = Path(config.default_root_dir)
                name = f"{folder_name(self.datamodule.name)}-{type(self.model.head).__name__}"
                version = None
            tensorboard = TensorBoardLogger(root, name=name, version=version)
            metrics = CSVLogger(root, name=name, version=tensorboard.version)
            if self.folder is not None and self._get(self.config, "ckpt_path") is not None:
                keep_rows(metrics)
            # Those of the config come after: the first one's folder is the run's, which resume and predict read.
            kwargs["logger"] = [tensorboard, metrics, *(_as_list(config.logger) if config.logger is not True else [])]
            callbacks.append(LearningRateMonitor("step"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in _as_list(config.plugins)):
            kwargs["plugins"] = [*_as_list(config.plugins), WholeCheckpointIO()]
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**kwargs)


def classes_of_found_data(data: SegmentationDataModule) -> int:
    """The number of classes of data that are there.

    Raises:
        UserError: they are not.
    """
    data.find()
    return data.num_classes


def folder_name(name: str) -> str:
    """The name as a part of a folder's, unchanged where that is harmless: other than slugs it need not be unique."""
    return name if re.fullmatch(r"\w[\w.=-]{0,79}", name, re.ASCII) else slug(name)


@rank_zero_only
def keep_rows(logger: CSVLogger) -> None:
    """Goes on with the `metrics.csv` of a resumed run, which Lightning deletes when it opens the folder again."""
    file = Path(logger.log_dir) / "metrics.csv"
    rows = list(csv.DictReader(file.read_text().splitlines())) if file.is_file() else []
    logger.experiment.metrics.extend(rows)
    logger.save()


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
    before = signal.signal(signal.SIGINT, stop_gently) if command in ("fit", "resume") and in_main_thread() else None
    try:
        if command == "resume":
            folder, words = resume_arguments(words)
            SegvidCLI(folder, args=["fit", *words])
        else:
            SegvidCLI(args=[command, *words])
    except SIGTERMException:
        return STOPPED
    finally:
        leave_processes()
        if before is not None:
            signal.signal(signal.SIGINT, before)
    return 0


def leave_processes() -> None:
    """Ends gloo's threads, which Lightning leaves: else a process may abort as it exits, its work done."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()


def in_main_thread() -> bool:
    """Only there may signals be handled."""
    return threading.current_thread() is threading.main_thread()


def stop_gently(number: int, frame: object) -> None:
    """Ctrl-C: the running step is finished and saved, as with SIGTERM; a second one ends at once."""
    print("Stopping after this step; Ctrl-C once more to end at once.", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


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


def shipped_configs(words: Sequence[str]) -> list[str]:
    """The words, with files of `--config FILE` that are not there from where the package has them."""
    found = list(words)
    for index, (word, after) in enumerate(pairwise(words)):
        if word in ("-c", "--config"):
            found[index + 1] = str(find_config(after))
    return [f"--config={find_config(w.removeprefix('--config='))}" if w.startswith("--config=") else w for w in found]


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
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())


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
