"""Every head, alone and its mechanism inside DeepLabV3+, on two backbones, in every format, at sizes of all kinds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segvid.backbones import ConvNet, ResNet
from segvid.export import formats, gate, reading, run_file
from segvid.export.graph import InferenceGraph
from segvid.export.record import SUFFIXES
from segvid.training import SegvidCLI, prepare
from tests.small_runs import ROOT

CONFIGS = ROOT / "configs" / "segmentation"
HEADS = sorted((CONFIGS / "heads").glob("*.yaml"))
MODELS = [*HEADS, *sorted((CONFIGS / "deeplabv3plus").glob("*.yaml"))]
BACKBONES = {"convnet": ["ConvNet"], "resnet": ["ResNet", "resnet18"]}
# In every run of the tests; the others are slow: all pairs, a buffer, blocks, a mask of fixed size, sampling, pooling.
QUICK = {"danet", "emanet", "isanet", "psanet", "dgmn", "pspnet"}


def build(config: Path, backbone: str) -> InferenceGraph:
    """The model of a configuration, with statistics of batch norm that are no identity."""
    prepare()
    kind, *name = BACKBONES[backbone]
    words = ["--config", str(CONFIGS / "recipes" / "digits.yaml"), "--config", str(config), "--trainer.logger=false"]
    options = [f"--model.init_args.backbone.init_args.name={n}" for n in name]
    cli = SegvidCLI(run=False, save_config_callback=None, args=[*words, f"--model.init_args.backbone={kind}", *options])
    assert isinstance(cli.model.backbone, ConvNet | ResNet)
    graph = InferenceGraph(cli.model.backbone, cli.model.head, (0.5, 0.4, 0.3), (0.2, 0.3, 0.2), "logits").eval()
    generator = torch.Generator().manual_seed(0)
    for module in graph.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for parameter in graph.parameters():
        parameter.requires_grad_(False)
    return graph


def check(config: Path, backbone: str, kind: str, folder: Path) -> None:
    """Exports, loads from disk and compares as the command does, but in this process: a fresh one takes seconds."""
    graph = build(config, backbone)
    rule = formats.size_rule(graph, kind)
    image, file = formats.example(rule, "uint8"), folder / f"model{SUFFIXES[kind]}"
    if kind == "torchscript":
        assert formats.write_torchscript(graph, image, file, optimize=False) == "scripted"
    elif kind == "pt2":
        formats.write_pt2(graph, image, file, compiled=False)
    else:
        formats.write_onnx(graph, image, file)
    # Also as predict does: what is checked, and cleared of what it need not trust, computes the same.
    run = run_file.load(kind, reading.checked(kind, file.read_bytes()))
    for name, array in gate.cases(rule, np.zeros((40, 50, 3), dtype=np.uint8), "uint8").items():
        expected = graph(torch.from_numpy(array)).numpy()
        case = gate.Case(name, array.shape[:3], *gate.difference(expected, run(array), "logits"))
        assert gate.passes(kind, [case]), case
    # What is not possible stands in the README.
    if rule.reason is not None:
        assert rule.reason in (ROOT / "README.md").read_text()


def name(config: Path) -> str:
    return config.stem if config in HEADS else f"plus_{config.stem}"


@pytest.mark.parametrize("config", HEADS, ids=name)
def test_torchscript(config: Path, tmp_path: Path) -> None:
    check(config, "convnet", "torchscript", tmp_path)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("config", [config for config in HEADS if config.stem in QUICK], ids=name)
def test_other_formats(config: Path, kind: str, tmp_path: Path) -> None:
    check(config, "convnet", kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("config", MODELS, ids=name)
def test_matrix(config: Path, kind: str, backbone: str, tmp_path: Path) -> None:
    check(config, backbone, kind, tmp_path)
