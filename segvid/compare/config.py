"""The file that describes a comparison, and the single runs that follow from it."""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.errors import UserError
from segvid.files import checked, find_config, shipped_configs
from segvid.text import plain, slug

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

WHOLE = {"extra": "forbid"}  # a field that is misspelt is said


@dataclass
class Head:
    """One row of the comparison.

    Args:
        config: the head's file.
        name: of the row; the file's name without ending when None.
        overrides: options of `fit` for this row alone, for example `model.init_args.head.init_args.recurrence: 1`.
        checkpoint: evaluate this one instead of training.
    """

    config: str
    name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None

    __pydantic_config__ = WHOLE


@dataclass
class Comparison:
    """What is compared. Files are looked for from the comparison's own folder, then from where you are.

    Args:
        recipe: data, training and backbone, the same for all heads.
        heads: files of `configs/segmentation/heads`, or mappings with `config`, `name`, `overrides`, `checkpoint`.
        title: of the report.
        seeds: every head is trained once with each; the table gives mean and spread.
        budget: `max_steps` or `max_epochs` of every training; the recipe's own when empty.
        overrides: options of `fit` for all rows.
        variants: options of `fit` by name: every head is run with each, and the report has a section for each.
        output: folder of the report and of the runs.
        images: validation images that the report shows as every head predicts them.
    """

    recipe: str
    heads: list[Head]
    title: str = "Comparison of attention heads"
    seeds: list[int] = field(default_factory=lambda: [0])
    budget: dict[str, int] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: str = "runs/compare/comparison"
    images: int = 4

    __pydantic_config__ = WHOLE


# For the command line. Bare lists and mappings: where a type says Any, jsonargparse imports what a class_path names.
KINDS: dict[str, object] = {
    "recipe": str,
    "heads": list[str | dict],  # type: ignore[type-arg]
    "title": str,
    "seeds": list[int],
    "budget": dict,
    "overrides": dict,
    "variants": dict,
    "output": str,
    "images": int,
}


@dataclass(frozen=True)
class Run:
    """One training (or evaluation of a checkpoint) of one head with one seed.

    Attributes:
        name: of the row.
        variant: under which it is run; "" where there are none.
        seed: of the training.
        words: configuration of `fit`, without the command.
        checkpoint: evaluated instead of training.
        folder: of the run.
        made_from: what its result depends on (see `segvid.compare.fingerprint`).
        fingerprint: of that.
        problem: why it cannot be run.
    """

    name: str
    variant: str
    seed: int
    words: tuple[str, ...]
    checkpoint: str | None
    folder: Path
    made_from: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str | None = None

    @property
    def label(self) -> str:
        """Name, variant and seed."""
        return ", ".join(part for part in (self.name, self.variant, f"seed {self.seed}") if part)


def option_parser() -> "ArgumentParser":
    """The options of `segvid compare`: what a comparison's file holds."""
    from jsonargparse import ArgumentParser

    described = dict(re.findall(r"^ {8}(\w+): (.+)$", Comparison.__doc__ or "", flags=re.MULTILINE))
    parser = ArgumentParser(prog="segvid compare", exit_on_error=False, description="Compares heads, and reports.")
    parser.add_argument("--config", action="config", help="file of the comparison (configs/compare/*.yaml)")
    for option in fields(Comparison):
        default = option.default if option.default_factory is MISSING else option.default_factory()
        default = None if default is MISSING else default
        parser.add_argument(f"--{option.name}", type=KINDS[option.name], default=default, help=described[option.name])
    return parser


def parse(words: Sequence[str]) -> tuple[Comparison, Path]:
    """The comparison that the options describe, and the folder that its files are looked for from.

    Raises:
        UserError: unknown option, missing file, nothing to compare.
    """
    try:
        options = option_parser().parse_args(shipped_configs(words)).as_dict()
    except RecursionError as error:
        raise UserError("the comparison's file is nested too deeply.") from error
    except Exception as error:
        raise UserError(plain(" ".join(str(error).split()))[:600]) from error
    files = options.pop("config")
    if not files:
        raise UserError("name the comparison's file: segvid compare --config configs/compare/quickstart.yaml")
    values = {name: value for name, value in options.items() if value is not None}
    if isinstance(values.get("heads"), list):
        values["heads"] = [{"config": head} if isinstance(head, str) else head for head in values["heads"]]
    comparison = checked(values, Comparison, plain(files[-1]))
    if not comparison.heads or not comparison.seeds:
        raise UserError("a comparison needs at least one head and one seed.")
    if set(comparison.budget) - {"max_steps", "max_epochs"} or len(comparison.budget) > 1:
        raise UserError(f"budget is {comparison.budget}; give max_steps or max_epochs.")
    return comparison, Path(str(files[0])).resolve().parent


def plan(comparison: Comparison, base: Path) -> list[Run]:
    """The runs of a comparison, seed by seed, so that an interrupted one has a row for every head early.

    Raises:
        UserError: a file does not exist, or two rows have one name or one folder.
    """
    recipe = find(comparison.recipe, base, "recipe")
    heads = [(head.name or Path(head.config).stem, head) for head in comparison.heads]
    twice = repeated([name for name, _ in heads])
    if twice:
        raise UserError(f"several rows are named {', '.join(twice)}: give each a name of its own.")
    if len(set(comparison.seeds)) < len(comparison.seeds):
        raise UserError(f"seeds is {comparison.seeds}: each only once.")
    runs = []
    for seed, (variant, options), (name, head) in product(
        comparison.seeds, (comparison.variants or {"": {}}).items(), heads
    ):
        file = find(head.config, base, f"head {plain(name)}")
        words = ["--config", str(recipe), "--config", str(file), f"--seed_everything={seed}"]
        words += [f"--{key}={as_word(value)}" for key, value in budget_options(comparison.budget).items()]
        overrides = comparison.overrides | options | head.overrides
        words += [f"--{key}={as_word(value)}" for key, value in overrides.items()]
        checkpoint = head.checkpoint and str(find(head.checkpoint, base, f"checkpoint of {plain(name)}"))
        place = f"{slug(name)}-{slug(variant)}" if variant else slug(name)
        folder = Path(comparison.output) / "runs" / f"{place}-seed{seed}"
        runs.append(Run(name, variant, seed, tuple(words), checkpoint, folder))
    twice = repeated([run.folder.name.lower() for run in runs])  # some file systems know no capitals
    if twice:
        raise UserError(f"several rows would have the folder {', '.join(twice)}: give them other names.")
    return runs


def repeated(names: Sequence[str]) -> list[str]:
    """Names that occur more than once, as text."""
    return [plain(name) for name, count in sorted(Counter(names).items()) if count > 1]


def budget_options(budget: dict[str, int]) -> dict[str, Any]:
    """The budget as options of the trainer; a budget in steps is validated at its end, whatever the epoch."""
    if "max_steps" in budget:
        steps = budget["max_steps"]
        return {
            "trainer.max_steps": steps,
            "trainer.max_epochs": -1,
            "trainer.val_check_interval": steps,
            "trainer.check_val_every_n_epoch": None,
        }
    return {f"trainer.{key}": value for key, value in budget.items()}


def as_word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def find(file: str, base: Path, what: str) -> Path:
    """The file, from the comparison's own folder or from here.

    Raises:
        UserError: it is in neither.
    """
    for path in (base / file, find_config(file)):
        with contextlib.suppress(ValueError):  # no path at all: a NUL in it
            if path.is_file():
                return path.resolve()
    raise UserError(f"there is no file {file!r} ({what}), neither from {base} nor from here.")
