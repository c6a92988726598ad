"""Every shipped configuration is parsed and built; heads, their files and the package's list are the same set."""

import re
from pathlib import Path

import pytest
import torch
import yaml

import segvid.attention.context as context
import segvid.segmentation.heads as heads
from segvid.compare.config import parse, plan
from segvid.segmentation.task import SegmentationTask
from segvid.training import SegvidCLI, prepare

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted((CONFIGS / "segmentation" / "recipes").glob("*.yaml"))
HEADS = sorted((CONFIGS / "segmentation" / "heads").glob("*.yaml"))
COMPARISONS = sorted((CONFIGS / "compare").rglob("*.yaml"))
DEEPLAB = sorted((CONFIGS / "segmentation" / "deeplabv3plus").glob("*.yaml"))
# Not contexts by themselves: ASPP is what DeepLabV3+ has anyway, one scale of a pyramid, a fusion of two maps.
NO_CONTEXT = {"ASPP", "AdaptiveContext", "AsymmetricFusion", "CARAFE"}


def stem(path: Path) -> str:
    return path.stem


def build(recipe: Path, head: Path, *options: str) -> SegvidCLI:
    """Model, data and trainer of a recipe and a head, as `fit` builds them."""
    prepare()
    words = ["--config", str(recipe), "--config", str(head), "--trainer.logger=false", "--trainer.accelerator=cpu"]
    if "precision: 16" in recipe.read_text():
        words.append("--trainer.precision=32-true")  # float16 needs a GPU
    if "weights: imagenet" in recipe.read_text():
        words.append("--model.init_args.backbone.init_args.weights=null")  # needs a network
    return SegvidCLI(run=False, save_config_callback=None, args=[*words, *options])


@pytest.mark.parametrize("recipe", RECIPES, ids=stem)
@pytest.mark.parametrize("head", HEADS, ids=stem)
def test_every_recipe_goes_with_every_head(recipe: Path, head: Path) -> None:
    small = [] if "digits" in recipe.name else ["--model.init_args.backbone=ConvNet"]
    cli = build(recipe, head, *small)
    assert type(cli.model.head).__name__ == yaml.safe_load(head.read_text())["model"]["init_args"]["head"]["class_path"]
    assert cli.model.head.num_classes == cli.datamodule.num_classes


@pytest.mark.parametrize("head", HEADS, ids=stem)
def test_every_head_on_the_backbone_of_the_papers(head: Path) -> None:
    cli = build(CONFIGS / "segmentation/recipes/voc.yaml", head, "--model.init_args.backbone.init_args.name=resnet50c")
    task = cli.model
    assert isinstance(task, SegmentationTask)
    assert task.backbone.strides == (4, 8, 8, 8)
    assert (task.auxiliary_head is None) == (head.stem == "emanet")
    with torch.no_grad():
        assert task.eval()(torch.zeros(1, 3, 33, 41)).shape == (1, 21, 33, 41)


def test_heads_files_and_list_are_the_same() -> None:
    named = [yaml.safe_load(f.read_text())["model"]["init_args"]["head"]["class_path"] for f in HEADS]
    assert sorted(named) == sorted(heads.__all__)


@pytest.mark.parametrize("file", [*RECIPES, *HEADS], ids=stem)
def test_no_config_holds_what_is_linked(file: Path) -> None:
    assert not re.search(r"in_channels|num_classes", file.read_text())


@pytest.mark.parametrize("head", HEADS, ids=stem)
def test_headers_name_paper_and_source_of_the_figures(head: Path) -> None:
    header = "".join(line for line in head.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert re.search(r"(CVPR|ICCVW?|ECCV|NeurIPS|ICML|IJCV|et al\.,) \d{4}", header)
    assert (
        f"segvid fit --config configs/segmentation/recipes/voc.yaml --config configs/segmentation/heads/{head.name}"
        in header
    )
    figures = [line for line in header.splitlines() if re.search(r"\d\d\.\d", line)]
    assert figures or "No segmentation result was published" in header
    assert all(line.strip("# ").startswith(("mmsegmentation", "paper")) for line in figures)


@pytest.mark.parametrize("file", COMPARISONS, ids=stem)
def test_comparisons_name_files_that_exist(file: Path) -> None:
    comparison, base = parse(["--config", str(file)])
    runs = plan(comparison, base)
    assert len(runs) == len(comparison.heads) * len(comparison.seeds) * max(len(comparison.variants), 1)
    folder = file.relative_to(CONFIGS / "compare").with_suffix("")
    assert comparison.output == f"runs/compare/{folder}"


def test_the_probe_has_a_row_for_every_head() -> None:
    comparison, base = parse(["--config", str(CONFIGS / "compare" / "probe.yaml")])
    named = {Path(word).stem for run in plan(comparison, base) for word in run.words if "/heads/" in word}
    assert named == {file.stem for file in HEADS}


def test_every_mechanism_has_its_deeplab_file() -> None:
    named = []
    for file in DEEPLAB:
        options = yaml.safe_load(file.read_text())["model"]["init_args"]["head"]["init_args"]
        if "context" in options:
            named.append(options["context"]["class_path"].removeprefix("segvid.attention.context."))
    assert sorted([*named, *NO_CONTEXT]) == sorted(context.__all__)


@pytest.mark.parametrize("file", DEEPLAB, ids=stem)
def test_every_mechanism_inside_deeplab(file: Path) -> None:
    cli = build(CONFIGS / "segmentation/recipes/digits.yaml", file)
    with torch.no_grad():
        assert cli.model.eval()(torch.zeros(2, 3, 33, 41)).shape == (2, 11, 33, 41)
    assert f"--config configs/segmentation/deeplabv3plus/{file.name}" in file.read_text()


@pytest.mark.parametrize("file", sorted((CONFIGS / "compare" / "ablations").glob("*.yaml")), ids=stem)
def test_every_arm_of_an_ablation_is_built(file: Path) -> None:
    """The options of each arm exist, and no two arms are the same head."""
    comparison, base = parse(["--config", str(file)])
    arms = {run.name: run.words for run in plan(comparison, base) if run.seed == 0}
    assert len({tuple(w for w in words if "folder" not in w) for words in arms.values()}) == len(comparison.heads)
    for words in arms.values():
        prepare()
        options = [*words, "--trainer.logger=false", "--trainer.accelerator=cpu"]
        cli = SegvidCLI(run=False, save_config_callback=None, args=options)
        with torch.no_grad():
            assert cli.model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 4, 64, 64)
