"""What a config, or a checkpoint's record of one, may name: both are data, not programs.

jsonargparse imports what a `class_path` names and calls it with the arguments beside it, so a name is as good as a
command. Only the classes below may be named, by role, each because it is of use in a config and starts no process,
evaluates no text and loads no code, whatever its arguments (`tests/test_hostile.py` walks them). No function, no
method, and nothing that is merely imported by an allowed module. `--allow_import` adds a package that the user trusts.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

from jsonargparse import set_parsing_settings

from segvid.errors import UserError

MORE = "SEGVID_ALLOW_IMPORT"  # environment variable, so that the processes of a comparison have it too

# segvid's own, by role: all classes that a package offers in `__all__`, or that a module defines.
OWN = {
    "backbone": "segvid.backbones",
    "head": "segvid.segmentation.heads",
    "mechanism": "segvid.attention.context",
    "data": "segvid.data",
    "model": "segvid.segmentation.task segvid.segmentation.losses segvid.segmentation.schedule "
    "segvid.segmentation.inference",
}
LAYERS = {
    "torch.nn": "AvgPool2d BatchNorm2d Conv2d Dropout2d GELU GroupNorm Identity LeakyReLU MaxPool2d ReLU SiLU "
    "SyncBatchNorm"
}
TRAINING = {
    # without Adafactor's kin that need more than parameter groups: LBFGS wants a closure, SparseAdam sparse gradients
    "torch.optim": "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax Muon NAdam RAdam RMSprop Rprop SGD",
    # without those made of functions or of other schedules
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR ExponentialLR "
    "LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
    # without LambdaCallback and ModelPruning, which take functions
    "lightning.pytorch.callbacks": "BackboneFinetuning BatchSizeFinder DeviceStatsMonitor EMAWeightAveraging "
    "EarlyStopping GradientAccumulationScheduler LearningRateFinder LearningRateMonitor ModelCheckpoint ModelSummary "
    "OnExceptionCheckpoint RichModelSummary RichProgressBar StochasticWeightAveraging TQDMProgressBar Timer",
    "lightning.pytorch.loggers": "CSVLogger MLFlowLogger TensorBoardLogger WandbLogger",
    "lightning.pytorch.profilers": "AdvancedProfiler PassThroughProfiler PyTorchProfiler SimpleProfiler",
    # without DeepSpeedStrategy, whose own configuration file names more
    "lightning.pytorch.strategies": "DDPStrategy FSDPStrategy ModelParallelStrategy SingleDeviceStrategy",
    "lightning.pytorch.plugins.environments": "LightningEnvironment LSFEnvironment MPIEnvironment SLURMEnvironment "
    "TorchElasticEnvironment",
    "lightning.pytorch.plugins.io": "AsyncCheckpointIO TorchCheckpointIO",
    "lightning.pytorch.plugins.precision": "DoublePrecision FSDPPrecision HalfPrecision MixedPrecision",
}
# What a checkpoint's record of a model may name, and where: role of the place, and what may stand inside of it.
MODEL_ROLES = {
    "backbone": (("backbone",), ()),
    "head": (("head",), ("head", "mechanism", "layer")),
    "auxiliary_head": (("head",), ("head", "mechanism", "layer")),
}


def allow(package: str) -> None:
    """Adds a package for this process and those that it starts.

    Raises:
        UserError: it is no name of a package.
    """
    if not all(part.isidentifier() for part in package.split(".")) or package.split(".")[0] == "jsonargparse":
        raise UserError(f"--allow_import {package}: give the name of a package, for example my_heads.")
    os.environ[MORE] = " ".join(dict.fromkeys([*packages(), package]))


def packages() -> list[str]:
    """The packages that the user has added."""
    return os.environ.get(MORE, "").split()


@cache
def classes(role: str) -> dict[str, type]:
    """The classes of a role by the paths that name them: where a config finds them, and where they are defined.

    Args:
        role: "backbone", "head", "mechanism", "data", "model", "layer", or "training" for all that serves the trainer.
    """
    found: dict[str, type] = {}
    places = LAYERS if role == "layer" else TRAINING
    for place in OWN[role].split() if role in OWN else places:
        module = importlib.import_module(place)
        names = _offered(module) if role in OWN else places[place].split()
        for name in names:
            member = getattr(module, name, None)  # an older torch or Lightning may lack it
            if inspect.isclass(member):
                found |= dict.fromkeys((*_paths(member, place), *_paths(member, member.__module__)), member)
    return found


def _offered(module: ModuleType) -> list[str]:
    own = [name for name, member in vars(module).items() if getattr(member, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", own))


def _paths(member: type, place: str) -> list[str]:
    """The class in a module, and in the packages above that have it under the same name."""
    parts = place.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return [
        f"{module}.{member.__name__}"
        for module in above
        if getattr(sys.modules.get(module), member.__name__, None) is member
    ]


def restrict_imports() -> None:
    """From now on jsonargparse refuses every other name before it imports anything, and builds only where a type asks.

    What it allows holds for all that begins with the same path: the attributes of a class are denied one by one.
    """
    listed = _restrict_to_listed()
    now = set(packages())
    set_parsing_settings(  # settings add up: what is not added any more has to be denied
        import_path_denylist=sorted(_ADDED - now - listed), import_path_allowlist=sorted(now)
    )
    _ADDED.update(now)


_ADDED: set[str] = set()  # packages that were ever added in this process


@cache
def _restrict_to_listed() -> frozenset[str]:
    """Applies the list, once; gives its paths."""
    known: dict[str, type] = {}
    for role in (*OWN, "layer", "training"):
        known |= classes(role)
    attributes = [f"{path}.{name}" for path, member in known.items() for name in _attributes(member)]
    set_parsing_settings(
        import_path_denylist=["*", *attributes],
        import_path_allowlist=list(known),
        instantiate_subclass_spec_in_any=False,
    )
    return frozenset(known)


@cache
def _attributes(member: type) -> list[str]:
    return [*dir(member), *dir(type(member))]


def check_loggers(config: object) -> None:
    """Weights & Biases takes `settings` for the process that it starts, a program to run among them: not from a config.

    Raises:
        UserError: there are some.
    """
    if isinstance(config, list | tuple):
        for part in config:
            check_loggers(part)
    if not isinstance(config, dict):
        return
    if str(config.get("class_path", "")).endswith(".WandbLogger"):
        given = (config.get("init_args") or {}) | (config.get("dict_kwargs") or {})
        if "settings" in given:
            raise UserError(
                "trainer.logger: settings of Weights & Biases are not taken from a config, because they can start a "
                "program. Set its environment variables (WANDB_...) instead."
            )
    for part in config.values():
        check_loggers(part)


def check_model(record: dict[str, Any], source: object) -> None:
    """A checkpoint's record of its model names backbones as backbone, heads as head, mechanisms inside of heads.

    Args:
        record: parameters of the task, plain data.
        source: the file that it is from.

    Raises:
        UserError: it names something else.
    """
    for name, value in record.items():
        roles, inside = MODEL_ROLES.get(name, ((), ()))
        _check(value, roles, inside, f"{source}: its model cannot be built. {name}")


def _check(value: object, roles: Iterable[str], inside: Iterable[str], where: str) -> None:
    """Walks a value of the record; every `class_path` in it must be of the roles of its place."""
    if isinstance(value, dict):
        if "class_path" in value:
            path = value["class_path"]
            if not isinstance(path, str) or not (_added(path) or any(path in classes(role) for role in roles)):
                wanted = " or ".join(roles) or "nothing that has to be built"
                raise UserError(f"{where}: {path!r} is not allowed, here may stand {wanted}. {TRUST}")
        for key, part in value.items():
            _check(part, inside if "class_path" in value else roles, inside, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for part in value:
            _check(part, inside, inside, where)


TRUST = "If it is from a package of yours that you trust: --allow_import PACKAGE"


def _added(path: str) -> bool:
    return any(path == package or path.startswith(f"{package}.") for package in packages())


def explain_refusal(text: str) -> str:
    """jsonargparse's message, with what a user can do."""
    return re.sub(
        r"Importing '(([^'.]+)[^']*)' is not allowed, denied by .*? to allow it\.?",
        r"'\1' is not allowed in a config or checkpoint, which may name segvid's own classes and those of torch.optim "
        r"and Lightning that segvid/allowed.py lists. If you trust it: --allow_import \2",
        text,
        flags=re.DOTALL,
    )
