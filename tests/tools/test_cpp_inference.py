"""The C++ program gives what Python gives."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segvid.cli import main
from segvid.export.command import sample_picture
from segvid.segmentation.inference import Inference
from segvid.segmentation.trained import load_trained
from tests.small_runs import ROOT

SOURCE = ROOT / "tools" / "cpp_inference"


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and a C++ compiler"
)
@pytest.mark.parametrize("output_type", ["classes", "logits"])
def test_class_map_of_a_photograph(output_type: str, run: Path, tmp_path: Path) -> None:
    model, picture = tmp_path / "model.ts", tmp_path / "image.ppm"
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert main(["export", "--ckpt_path", str(checkpoint), "--output_type", output_type, "--output", str(model)]) == 0
    Image.fromarray(sample_picture()).save(picture)
    build = tmp_path / "build"
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(build), f"-DTORCH_ROOT={Path(torch.__file__).parent}"],
        ["cmake", "--build", str(build)],
        [str(build / "infer"), str(model), str(picture), str(tmp_path / "classes.pgm")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (expected,) = load_trained(checkpoint).classes([sample_picture()], Inference())
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "classes.pgm")), expected)
    picture.write_bytes(picture.read_bytes()[:-1])
    done = subprocess.run([str(build / "infer"), str(model), str(picture), "x.pgm"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"is cut off" in done.stderr
