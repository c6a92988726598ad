"""The file that describes a comparison, and the single runs that follow from it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from segvid.errors import UserError


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
    heads: list[str | Head]
    title: str = "Comparison of attention heads"
    seeds: list[int] = field(default_factory=lambda: [0])
    budget: dict[str, int] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: str = "runs/compare/comparison"
    images: int = 4


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
        fingerprint: changes when anything that the result depends on changes.
    """

    name: str
    variant: str
    seed: int
    words: tuple[str, ...]
    checkpoint: str | None
    folder: Path
    fingerprint: str

    @property
    def label(self) -> str:
        """Name, variant and seed."""
        return ", ".join(part for part in (self.name, self.variant, f"seed {self.seed}") if part)


def parse(words: Sequence[str]) -> tuple[Comparison, Path]:
    """The comparison that the options describe, and the folder that its files are looked for from.

    Raises:
        UserError: unknown option, missing file, nothing to compare.
    """
    parser = ArgumentParser(prog="segvid compare", exit_on_error=False, description=Comparison.__doc__)
    parser.add_argument("--config", action="config", help="file of the comparison (configs/compare/*.yaml)")
    parser.add_class_arguments(Comparison)
    try:
        options = parser.parse_args(list(words))
    except Exception as error:
        raise UserError(" ".join(str(error).split())[:600]) from error
    if not options.config:
        raise UserError("name the comparison's file: segvid compare --config configs/compare/quickstart.yaml")
    base = Path(str(options.config[0])).resolve().parent
    values = parser.instantiate_classes(options).as_dict()
    values.pop("config")
    heads = [Head(**h) if isinstance(h, dict) else h for h in values.pop("heads")]
    comparison = Comparison(heads=heads, **values)
    if not comparison.heads or not comparison.seeds:
        raise UserError("a comparison needs at least one head and one seed.")
    if set(comparison.budget) - {"max_steps", "max_epochs"} or len(comparison.budget) > 1:
        raise UserError(f"budget is {comparison.budget}; give max_steps or max_epochs.")
    return comparison, base


def plan(comparison: Comparison, base: Path) -> list[Run]:
    """The runs of a comparison, seed by seed, so that an interrupted one has a row for every head early.

    Raises:
        UserError: a file does not exist, or two rows have one name.
    """
    recipe = find(comparison.recipe, base, "recipe")
    heads = [Head(config=head) if isinstance(head, str) else head for head in comparison.heads]
    names = [head.name or Path(head.config).stem for head in heads]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UserError(f"several rows are named {', '.join(sorted(twice))}: give each a name of its own.")
    variants = comparison.variants or {"": {}}
    runs = []
    for seed, (variant, options), (name, head) in product(
        comparison.seeds, variants.items(), zip(names, heads, strict=True)
    ):
        file = find(head.config, base, f"head {name}")
        words = ["--config", str(recipe), "--config", str(file), f"--seed_everything={seed}"]
        words += [f"--{key}={as_word(value)}" for key, value in budget_options(comparison.budget).items()]
        overrides = comparison.overrides | options | head.overrides
        words += [f"--{key}={as_word(value)}" for key, value in overrides.items()]
        checkpoint = None if head.checkpoint is None else str(find(head.checkpoint, base, f"checkpoint of {name}"))
        place = re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{name}-{variant}" if variant else name)
        content = [recipe.read_text(), file.read_text(), *words[4:], checkpoint or "", comparison.images]
        if checkpoint is not None:
            content.append(Path(checkpoint).stat().st_mtime_ns)  # it may be trained anew at the same place
        fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        folder = Path(comparison.output) / "runs" / f"{place}-seed{seed}"
        runs.append(Run(name, variant, seed, tuple(words), checkpoint, folder, fingerprint))
    return runs


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
    for path in (base / file, Path(file)):
        if path.is_file():
            return path.resolve()
    raise UserError(f"there is no file {file!r} ({what}), neither from {base} nor from here.")
