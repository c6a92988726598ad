"""`pip install segvid`: a wheel, without the clone."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from tests.small_runs import ROOT, TINY


def test_every_package_is_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "segvid").rglob("__init__.py")}
    assert set(settings["packages"]) == found | {"segvid.configs"}


def test_an_installed_package_trains_from_an_empty_folder(tmp_path: Path) -> None:
    """The configurations travel inside of it."""
    source, site, here = tmp_path / "source", tmp_path / "site", tmp_path / "here"
    here.mkdir()
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("segvid", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("segvid-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site)}
    config = ["--config", "configs/segmentation/recipes/digits.yaml", "--config=configs/segmentation/heads/fcn.yaml"]
    steps = [*TINY, "--trainer.max_steps=1", "--data.init_args.num_workers=0"]
    command = [sys.executable, "-m", "segvid", "fit", *config, *steps]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (saved,) = here.glob("runs/*/version_0/config.yaml")
    assert yaml.safe_load(saved.read_text())["data"]["class_path"].endswith("DigitScenes")
    (shipped,) = site.glob("segvid/configs/compare/quickstart.yaml")
    assert "recipe" in shipped.read_text()
