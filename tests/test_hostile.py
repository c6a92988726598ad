"""What a stranger's config or checkpoint can do: nothing but be refused."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segvid.allowed import LAYERS, MORE, OWN, TRAINING, classes
from segvid.backbones import SMPEncoder
from segvid.cli import main
from segvid.errors import UserError
from segvid.segmentation.trained import load_trained
from tests.small_runs import words

SOURCE = """
open({mark!r}, "w").close()
from segvid.segmentation.heads import FCNHead
class Head(FCNHead):
    pass
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be found, and the file that it leaves when it runs."""
    mark = tmp_path / "ran"
    (tmp_path / "evil_module.py").write_text(SOURCE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(os.environ, MORE, "")
    sys.modules.pop("evil_module", None)
    yield mark
    sys.modules.pop("evil_module", None)


def commands(checkpoint: Path, picture: Path) -> list[list[str]]:
    file = ["--ckpt_path", str(checkpoint)]
    return [
        ["validate", *words("ccnet"), *file],
        ["test", *words("ccnet"), *file],
        ["fit", *words("ccnet"), *file],
        ["predict", *file, str(picture)],
        ["attention", *file, "--image", str(picture), "--point", "1,1"],
    ]


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("number", range(5))
def test_a_checkpoint_with_foreign_pickles_is_refused(
    number: int, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    checkpoint, mark = tmp_path / "bomb.ckpt", tmp_path / "ran"
    torch.save(content | {"data": Bomb(mark)}, checkpoint)
    assert main(commands(checkpoint, run / "val_confusion.png")[number]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(checkpoint) in error or checkpoint.name in error
    assert "it holds more than data" in error
    assert not mark.exists()


@pytest.mark.parametrize("number", [3, 4])
def test_a_checkpoint_that_names_foreign_classes_is_refused(
    number: int,
    run: Path,
    tmp_path: Path,
    evil: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """predict and attention build the model that the checkpoint describes."""
    monkeypatch.chdir(tmp_path)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"]["head"] = {"class_path": "evil_module.Head", "init_args": {}}
    torch.save(content, tmp_path / "other.ckpt")
    words = commands(tmp_path / "other.ckpt", run / "val_confusion.png")[number]
    assert main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert "evil_module" in error[-1]
    assert "not allowed" in error[-1]
    assert len(error) == 1
    assert not evil.exists()
    assert "evil_module" not in sys.modules


def test_an_option_lets_a_package_of_ones_own_in(
    tmp_path: Path, evil: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["--model.init_args.head", "evil_module.Head", "--trainer.max_steps=2"]
    shipped = [*words("fcn"), f"--trainer.default_root_dir={tmp_path / 'runs'}"]
    assert main(["fit", *shipped, *own, "--allow_import", "other_module"]) == 1
    assert "not allowed" in capsys.readouterr().err
    assert not evil.exists()
    assert main(["fit", *shipped, *own, "--allow_import", "evil_module"]) == 0
    assert evil.exists()
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    assert (
        main(["predict", "--ckpt_path", str(checkpoint), str(tmp_path / "runs"), "--output", str(tmp_path / "o")]) == 0
    )
    monkeypatch.setitem(os.environ, MORE, "")  # and it does not stay, not even in this process
    assert main(["fit", *shipped, *own]) == 1
    assert "not allowed" in capsys.readouterr().err


def test_the_weights_of_a_trained_model_come_from_its_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hub is asked, whatever the checkpoint says that its training began with."""
    import segmentation_models_pytorch as smp

    asked: list[object] = []
    original = smp.encoders.get_encoder

    def get_encoder(name: str, **options: Any) -> Any:
        asked.append(options["weights"])
        return original(name, **options)

    monkeypatch.setattr(smp.encoders, "get_encoder", get_encoder)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    encoder = {"name": "tu-resnet10t", "output_stride": 32, "weights": "imagenet"}
    content["hyper_parameters"]["backbone"] = {"class_path": "segvid.backbones.SMPEncoder", "init_args": encoder}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="does not fit the model"):
        load_trained(tmp_path / "other.ckpt")
    assert asked == [None]


@pytest.mark.parametrize("name", ["tu-hf_hub:someone/model", "tu-local-dir:/tmp/model"])
def test_the_name_of_an_encoder_is_no_address(name: str) -> None:
    with pytest.raises(UserError, match="is no name of segmentation-models-pytorch"):
        SMPEncoder(name)


DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    "text", ["[" * 5000, DEEP, f"model: {{a: {DEEP}}}", f"trainer: {{max_epochs: {DEEP}}}", "- a", "\0", "a: [", "\t"]
)
def test_a_config_that_is_none(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    assert main(["fit", *words("fcn"), "--config", str(file)]) == 1
    for said in capsys.readouterr().err.strip().splitlines():
        assert str(file) in said
        assert len(said) < 500


# A class that jsonargparse would build wherever it may, and that starts a program when it is built.


def program(mark: Path) -> dict[str, Any]:
    place = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
    how = {"entrypoint": "/bin/sh", "args": ["-c", f"touch {mark}"], "env": {}, "stdout": None, "stderr": None}
    return {"class_path": place, "init_args": how | {"local_rank_id": 0, "numa_options": None}}


def test_the_program_of_these_tests_would_run(tmp_path: Path) -> None:
    """Else they would prove nothing."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    handler = SubprocessHandler(**program(tmp_path / "ran")["init_args"])
    handler.proc.wait(timeout=60)
    assert (tmp_path / "ran").exists()


def watch_programs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that are started from now on: a program itself would leave its mark only later."""
    started: list[str] = []
    original = subprocess.Popen.__init__

    def start(self: "subprocess.Popen[bytes]", *args: Any, **options: Any) -> None:
        started.append(str(args))
        original(self, *args, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    return started


HEADS = "segvid.segmentation.heads"
CONTEXT = {"class_path": f"{HEADS}.DeepLabV3PlusHead"}


def records(mark: Path) -> dict[str, dict[str, Any]]:
    """What a checkpoint may say of its model."""
    run = program(mark)
    linear = {"class_path": "torch.nn.Linear", "init_args": {"out_features": 2, "device": run}}
    identity = {"class_path": "torch.nn.Identity", "init_args": {"kwargs": run}, "dict_kwargs": {"a": run}}
    fcn = {"class_path": f"{HEADS}.FCNHead"}
    return {
        "optimizer": {
            "optimizer": {
                "class_path": "torch.distributed.optim.ZeroRedundancyOptimizer",
                "init_args": {"optimizer_class": "torch.optim.SGD", "process_group": run},
            }
        },
        "schedule": {
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LambdaLR", "init_args": {"lr_lambda": linear}}
        },
        "context": {"head": CONTEXT | {"init_args": {"context": linear}}},
        "context itself": {"head": CONTEXT | {"init_args": {"context": run}}},
        "layer": {"head": CONTEXT | {"init_args": {"context": identity}}},
        "head": {"head": run},
        "head of a head": {"head": {"class_path": f"{HEADS}.CARAFEHead", "init_args": {"head": run}}},
        "argument of a head": {"head": fcn | {"init_args": {"dropout": run}}},
        "unknown argument of a head": {"head": fcn | {"dict_kwargs": {"x": run}}},
        "auxiliary head": {"auxiliary_head": run},
        "backbone": {"backbone": run},
        "argument of a backbone": {
            "backbone": {"class_path": "segvid.backbones.ConvNet", "init_args": {"widths": [run, 4, 6]}}
        },
        "number of classes": {"num_classes": run},
        "loss": {"loss": run},
        "unknown argument": {"more": run},
        "class": {"_class_path": program(mark)["class_path"], **program(mark)["init_args"]},
        "loader": {"_class_path": "segvid.segmentation.task.SegmentationTask.load_from_checkpoint"},
        "instantiator": {"_instantiator": "torch.hub.load"},
        "another role": {"head": {"class_path": "segvid.data.VOC", "init_args": {"download": True}}},
        "a function": {"head": {"class_path": "segvid.export.run_file.load", "init_args": {"kind": "torchscript"}}},
        "a function as text": {"head": "torch.hub.load"},
        "a method": {"head": CONTEXT | {"init_args": {"context": f"{HEADS}.FCNHead.load_state_dict"}}},
        "an import of a module": {"head": "segvid.provenance.subprocess.Popen"},
        "the command line": {"head": CONTEXT | {"init_args": {"context": "segvid.cli.main"}}},
    }


@pytest.mark.parametrize("name", list(records(Path())))
def test_a_checkpoint_starts_no_program(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is of training is not even looked at, and the model is as if it were not there; the rest is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, MORE, "")
    started = watch_programs(monkeypatch)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    content["hyper_parameters"] |= records(tmp_path / "ran")[name]
    torch.save(content, tmp_path / "other.ckpt")
    file, picture = ["--ckpt_path", str(tmp_path / "other.ckpt")], str(run / "val_confusion.png")
    ignored = name in ("optimizer", "schedule", "loss", "instantiator")
    for command in (["predict", *file, picture], ["attention", *file, "--image", picture]):
        assert main(command) == (0 if ignored else 1)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if not ignored:
            assert len(said.splitlines()) == 1
            assert "other.ckpt" in said
    if not ignored:
        assert main(["export", *file]) == 1
    assert not [words for words in started if str(tmp_path / "ran") in words or "/bin/sh" in words]
    assert not (tmp_path / "ran").exists()


def options_of(mark: Path) -> dict[str, dict[str, Any]]:
    """What a config may say."""
    run = program(mark)
    launch = {
        "class_path": "torch.distributed.launcher.api.elastic_launch",
        "init_args": {"config": {"class_path": "torch.distributed.launcher.api.LaunchConfig"}, "entrypoint": "/bin/sh"},
    }
    parameters = records(mark)
    names = ("optimizer", "schedule", "context", "head", "head of a head", "argument of a head", "auxiliary head")
    more = ("backbone", "loss", "a function", "a function as text", "a method", "an import of a module")
    return {name: {"model": {"init_args": parameters[name]}} for name in (*names, *more)} | {
        "strategy": {
            "trainer": {
                "strategy": {
                    "class_path": "lightning.pytorch.strategies.DDPStrategy",
                    "init_args": {"ddp_comm_state": run},
                }
            }
        },
        "callback": {"trainer": {"callbacks": [run]}},
        "hook of a callback": {
            "trainer": {
                "callbacks": [
                    {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": launch}}
                ]
            }
        },
        "logger": {"trainer": {"logger": run}},
        "argument of a logger": {
            "trainer": {
                "logger": {
                    "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                    "init_args": {"save_dir": str(mark.parent), "name": run},
                    "dict_kwargs": {"comment": run},
                }
            }
        },
        "profiler": {"trainer": {"profiler": run}},
        "plugin": {"trainer": {"plugins": [run]}},
        "accelerator": {"trainer": {"accelerator": run}},
        "data": {"data": run},
        "argument of data": {"data": {"init_args": {"num_workers": run}}},
        "model": {"model": run},
        "a number": {"trainer": {"max_epochs": run}},
        "torch.load": {"model": {"init_args": {"head": {"class_path": "torch.load", "init_args": {"f": "x.pt"}}}}},
        "jsonargparse": {"model": {"init_args": {"head": "jsonargparse.set_parsing_settings"}}},
    }


@pytest.mark.parametrize("name", list(options_of(Path())))
def test_a_config_starts_no_program(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, MORE, "")
    started = watch_programs(monkeypatch)
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(options_of(tmp_path / "ran")[name]))
    for command in ("fit", "lr_find"):
        code = main([command, *words("fcn"), "--config", "evil.yaml", "--trainer.max_steps=1"])
        said = capsys.readouterr().err
        assert "Traceback" not in said
        if name not in ("strategy", "argument of a logger"):  # there it stays a mapping, of no use and no harm
            assert code == 1, said
            assert len(said.strip().splitlines()) == 1, said
    assert not [words for words in started if str(tmp_path / "ran") in words or "/bin/sh" in words]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["init_args", "dict_kwargs"])
def test_a_config_gives_no_program_to_a_logger(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb.init(settings=...) names the executable of its service."""
    monkeypatch.chdir(tmp_path)
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", place: {"settings": {"x_executable": "/bin/sh"}}}
    for loggers in (logger, [logger]):
        (tmp_path / "evil.yaml").write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
        assert main(["fit", *words("fcn"), "--config", "evil.yaml"]) == 1
        said = capsys.readouterr().err
        assert "settings" in said
        assert len(said.strip().splitlines()) == 1
    assert "not taken from a config" in said or place == "init_args"


# Calls that start a process, evaluate text, load code or unpickle.
DANGEROUS = {
    *("eval", "exec", "__import__", "import_module", "import_object", "find_spec", "load_module", "loads"),
    *("system", "popen", "Popen", "check_call", "check_output", "run", "spawn", "fork", "execv", "execve"),
    *("posix_spawn", "urlopen"),
}
HARMLESS = {"eval": ("self", "self.trainer.model")}  # nn.Module.eval


def test_no_class_that_may_be_named_starts_a_process_or_evaluates_text() -> None:
    seen, found = set(), []
    for role in (*OWN, "layer", "training"):
        for named in classes(role).values():
            for base in set(named.__mro__) - seen - {object}:
                seen.add(base)
                try:
                    tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
                except (TypeError, OSError):  # defined in C
                    continue
                for node in ast.walk(tree):
                    if not isinstance(node, ast.Call):
                        continue
                    called = node.func
                    name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                    owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
                    if name in DANGEROUS and owner not in HARMLESS.get(name, ()):
                        found.append(f"{base.__module__}.{base.__qualname__}: {ast.unparse(node)[:80]}")
                    if ast.unparse(called) == "torch.load" and "weights_only=weights_only" not in ast.unparse(node):
                        found.append(f"{base.__module__}.{base.__qualname__}: {ast.unparse(node)[:80]}")
    assert len(seen) > 150
    assert found == []


def test_what_may_be_named_is_a_class_that_exists() -> None:
    for role in (*OWN, "layer", "training"):
        assert classes(role)
        assert all(inspect.isclass(member) for member in classes(role).values())
    for places in (LAYERS, TRAINING):
        for place, names in places.items():
            module = __import__(place, fromlist=["x"])
            for name in names.split():
                assert f"{place}.{name}" in classes("layer" if places is LAYERS else "training"), name
                assert hasattr(module, name)
