"""Every command and every piece of Python in the README runs, in the order in which a newcomer would type them."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from segvid.cli import main
from segvid.compare.config import parse, plan
from tests.data.miniature import make_cityscapes, make_folder, make_sbd, make_voc

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()

# What makes a command of the README small enough for a test; the command itself stays as it is written.
TINY = {
    "digits.yaml": "--data.init_args.val_scenes 8 --model.init_args.backbone.init_args.widths [4,6,8] "
    "--data.init_args.train_scenes 32",
    "voc.yaml": "--data.init_args.batch_size 2 --data.init_args.num_workers 0 "
    "--data.init_args.augmentation.crop_size [33,33] "
    "--model.init_args.backbone ConvNet --model.init_args.backbone.init_args.widths [4,6,8] "
    "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.precision 32-true",
    "cityscapes.yaml": "--data.init_args.num_workers 0 --data.init_args.augmentation.crop_size [33,33] "
    "--model.init_args.backbone ConvNet --model.init_args.backbone.init_args.widths [4,6,8] "
    "--trainer.max_steps 2 --trainer.val_check_interval 2 --trainer.precision 32-true "
    "--trainer.devices 1 --trainer.accelerator cpu",
    "folder.yaml": "--data.init_args.batch_size 2 --data.init_args.eval_batch_size 1 --data.init_args.num_workers 0 "
    "--data.init_args.image_size [32,48] --data.init_args.augmentation.crop_size [32,32] --trainer.max_epochs 1",
}


def commands() -> list[str]:
    """The lines of the README's shell blocks."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def newcomer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configurations and with data where the README says that it lies."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    make_voc(tmp_path / "data/VOC")
    make_sbd(tmp_path / "data/VOC")
    make_cityscapes(tmp_path / "data/cityscapes")
    make_folder(tmp_path / "data/folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_of_the_readme_run(newcomer: Path) -> None:
    ran = 0
    for line in commands():
        words = shlex.split(line)
        if words[0] == "python3":
            assert (ROOT / words[1]).is_file(), line
        elif words[0] == "source":
            assert words[1] == ".venv/bin/activate"
        elif words[:2] == ["segvid", "compare"]:
            assert plan(*parse(words[2:])), line
        elif words[:2] == ["segvid", "attention"]:
            ran += 1
            image = newcomer / words[words.index("--image") + 1]  # the quickstart leaves it there
            image.parent.mkdir(parents=True)
            Image.new("RGB", (64, 64), (90, 120, 40)).save(image)
            assert main([*words[1:], "--output", "attention.png"]) == 0, line
            assert (newcomer / "attention.png").is_file()
        elif words[:2] == ["segvid", "data"]:
            ran += 1
            assert main(words[1:]) == 0, line
        elif words[:2] == ["segvid", "export"]:
            ran += 1
            assert main(words[1:]) == 0, line
        elif words[:2] == ["segvid", "predict"]:
            ran += 1
            (newcomer / "photos").mkdir(exist_ok=True)
            Image.new("RGB", (64, 48), (90, 120, 40)).save(newcomer / "photos" / "a.jpg")
            assert main(words[1:]) == 0, line
            assert (newcomer / words[-1] / "masks" / "a.png").is_file()
        elif words[0] in ("segvid", "lightning"):
            ran += 1
            recipe = next((name for name in TINY if any(name in word for word in words)), None)
            extra = shlex.split(TINY[recipe]) if recipe else []
            assert main([*words[1:], *extra]) == 0, line
        else:
            pytest.fail(f"the README has a command that this test does not know: {line}")
    assert ran >= 8
    assert (newcomer / "runs/DigitScenes-DANetHead/version_0/checkpoints/last.ckpt").is_file()


def test_python_of_the_readme_runs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--output", "danet.ts"]) == 0
    shapes = []
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        names: dict[str, object] = {}
        exec(code, names)
        shapes.append(names["logits"].shape)  # type: ignore[attr-defined]
    assert shapes == [(1, 11, 64, 80), (1, 21, 16, 16), (1, 2, 48, 64)]


def test_comparison_of_the_readme_is_valid(newcomer: Path) -> None:
    text = next(b for b in re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL) if "recipe:" in b)
    checkpoint = newcomer / "runs/DigitScenes-DANetHead/version_0/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    folder = ROOT / "configs" / "compare"
    content = yaml.safe_load(text)
    for file in (content["recipe"], *(h if isinstance(h, str) else h["config"] for h in content["heads"])):
        assert (folder / file).is_file(), file
    # Beside the shipped comparisons, as a reader would save it.
    mine = newcomer / "mine" / "compare" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    (mine.parent.parent / "segmentation").symlink_to(ROOT / "configs" / "segmentation")
    mine.write_text(text)
    runs = plan(*parse(["--config", str(mine)]))
    assert len(runs) == 9
    assert {run.name for run in runs} == {"fcn", "R=1", "trained"}


def test_links_and_pictures_of_the_readme_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_no_path_of_a_machine_in_the_repository() -> None:
    for file in [
        *ROOT.glob("*.md"),
        *ROOT.glob("configs/**/*.yaml"),
        ROOT / "constraints.txt",
        ROOT / "pyproject.toml",
    ]:
        text = file.read_text()
        assert not re.search(r"/(?:work|root|home)/", text), file
        assert os.environ.get("HOME", "/root") not in text, file
