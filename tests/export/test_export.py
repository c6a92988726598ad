"""`segvid export` and `segvid predict --model`, as a user runs them."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segvid.backbones.base import Backbone
from segvid.cli import main
from segvid.errors import UserError
from segvid.export import formats, gate, reading
from segvid.export.exported import load_exported
from segvid.export.formats import SizeRule, size_rule
from segvid.export.graph import InferenceGraph
from segvid.export.record import SUFFIXES
from segvid.segmentation.heads import FCNHead, ISANetHead
from segvid.segmentation.inference import Inference
from segvid.segmentation.trained import load_trained
from tests.small_runs import ROOT

KINDS = tuple(SUFFIXES)


@pytest.fixture(scope="module")
def files(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's last checkpoint in all formats."""
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", "--ckpt_path", last(run), "--format", ",".join(KINDS), "--output", str(folder / "m")]) == 0
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        name for s in SUFFIXES.values() for name in (f"m{s}", f"m{s}.json")
    )
    return folder


def last(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def path(files: Path, kind: str) -> Path:
    return files / f"m{SUFFIXES[kind]}"


def record(file: Path) -> dict[str, Any]:
    kind = {suffix: kind for kind, suffix in SUFFIXES.items()}[file.suffix]
    found: dict[str, Any] = json.loads(reading.described(kind, file.read_bytes())[0])
    return found


def photos(folder: Path) -> Path:
    folder.mkdir()
    for index, size in enumerate([(61, 40), (64, 48), (33, 70)]):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def masks(folder: Path) -> dict[str, list[Any]]:
    return {f.name: np.asarray(Image.open(f)).tolist() for f in sorted((folder / "masks").iterdir())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [[], ["--window", "24", "32", "--stride", "17", "20", "--flip"]])
def test_predicting_from_a_file_is_predicting_from_the_checkpoint(
    kind: str, options: list[str], run: Path, files: Path, tmp_path: Path
) -> None:
    pictures = str(photos(tmp_path / "in"))
    for name, source in (("a", ["--ckpt_path", last(run)]), ("b", ["--model", str(path(files, kind))])):
        assert main(["predict", pictures, *source, *options, "--output", str(tmp_path / name)]) == 0
    assert masks(tmp_path / "a") == masks(tmp_path / "b")
    overlays = [(tmp_path / name / "overlays" / "1.jpg").read_bytes() for name in "ab"]
    assert overlays[0] == overlays[1]


def test_scales_need_an_image_between_whole_numbers(run: Path, files: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    how = Inference(scales=(0.75, 1.25))
    (expected,) = load_trained(Path(last(run))).classes([picture], how)
    (found,) = load_exported(path(files, "torchscript")).classes([picture], how)
    assert (found == expected).mean() > 0.999  # normalised before or after the resize
    with pytest.raises(Exception, match="--input_type float32"):
        load_exported(path(files, "onnx")).classes([picture], how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_what_it_is(kind: str, run: Path, files: Path) -> None:
    inside = record(path(files, kind))
    assert inside == json.loads((files / f"m{SUFFIXES[kind]}.json").read_text())
    assert inside["class_names"][1].startswith("red")
    assert len(inside["palette"]) == 11
    assert inside["model"] == {"backbone": "ConvNet", "head": "CCNetHead"}
    checkpoint = (run / "checkpoints" / "last.ckpt").read_bytes()
    import hashlib

    assert inside["checkpoint"] == {"file": "last.ckpt", "sha256": hashlib.sha256(checkpoint).hexdigest()}
    assert inside["normalisation"]["where"] == "inside the file"
    assert [case["shape"] for case in inside["verified"]][:5] == [list(size) for size in gate.SIZES]
    assert [case["name"] for case in inside["verified"]][5:] == ["the least", "picture"]
    assert all(case["error"] <= gate.ERROR_BOUNDS[kind] for case in inside["verified"])


WITHOUT_SEGVID = """
import sys
sys.modules["segvid"] = None  # importing it fails
import json, numpy as np, torch
extra = {"segvid.json": ""}
module = torch.jit.load(sys.argv[1], _extra_files=extra)
assert json.loads(extra["segvid.json"])["format"] == "torchscript"
image = torch.from_numpy(np.load(sys.argv[2]))
np.savez(sys.argv[3], bytes=module(image).detach().numpy(), floats=module(image.float() / 255).detach().numpy())
"""


def test_torchscript_runs_without_segvid(run: Path, files: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 37, 51), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    words = [str(path(files, "torchscript")), str(tmp_path / "image.npy"), str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_SEGVID, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    model = load_trained(Path(last(run)))
    with torch.no_grad():
        normalised = torch.stack([model.normalised(picture.transpose(1, 2, 0)) for picture in image])
        expected = model.task(normalised).numpy()
    with np.load(tmp_path / "out.npz") as found:
        np.testing.assert_allclose(found["bytes"], expected, atol=1e-5)
        np.testing.assert_allclose(found["floats"], expected, atol=1e-5)


@pytest.mark.parametrize("output_type", ["probabilities", "classes"])
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_other_outputs(output_type: str, kind: str, run: Path, tmp_path: Path) -> None:
    file = tmp_path / f"model{SUFFIXES[kind]}"
    words = ["--output_type", output_type, "--format", kind, "--input_type", "float32", "--output", str(file)]
    assert main(["export", "--ckpt_path", last(run), *words]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    trained, exported = load_trained(Path(last(run))), load_exported(file)
    np.testing.assert_array_equal(
        exported.classes([picture], Inference())[0], trained.classes([picture], Inference())[0]
    )
    windows = Inference(window=(24, 24))
    if output_type == "classes":
        with pytest.raises(Exception, match="no scores to be averaged"):
            exported.classes([picture], windows)
    else:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        np.testing.assert_allclose(exported.run(image.numpy()).sum(axis=1), 1, atol=1e-5)
        np.testing.assert_array_equal(exported.classes([picture], windows)[0], trained.classes([picture], windows)[0])


def test_frozen_and_fused(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.ts"
    assert main(["export", "--ckpt_path", last(run), "--optimize", "--output", str(file)]) == 0
    names = {node.kind() for node in torch.jit.load(file).inlined_graph.nodes()}
    assert "aten::batch_norm" not in names
    assert "aten::_convolution" in names or "aten::conv2d" in names


def test_a_model_without_a_checkpoint(tmp_path: Path) -> None:
    configs = [ROOT / "configs/segmentation/recipes/digits.yaml", ROOT / "configs/segmentation/heads/isanet.yaml"]
    words = [word for config in configs for word in ("--config", str(config))]
    changes = ["--data.init_args.digits", "3", "--model.init_args.backbone.init_args.widths=[4,6,8]"]
    assert main(["export", *words, *changes, "--format", "pt2", "--output", str(tmp_path / "m")]) == 0
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        assert archive.getinfo("archive/data/weights/weight_0").file_size == 4 * 3 * 3 * 3 * 4  # 4 channels
    model = load_exported(tmp_path / "m.pt2")
    assert (model.multiple, model.minimum) == (1, 33)
    with pytest.raises(Exception, match=r"at least 33 pixels; this image or window has 32 x 80"):
        model.classes([np.zeros((32, 80, 3), dtype=np.uint8)], Inference())
    assert model.classes([np.zeros((33, 80, 3), dtype=np.uint8)], Inference())[0].shape == (33, 80)


def damaged(write: Callable[..., str], change: Callable[[InferenceGraph], None]) -> Callable[..., str]:
    """A writer whose file is another model."""

    def write_another(graph: InferenceGraph, *args: Any, **options: Any) -> str:
        changed: InferenceGraph = __import__("copy").deepcopy(graph)
        change(changed)
        return write(changed, *args, **options)

    return write_another


def shift(graph: InferenceGraph) -> None:
    graph.mean += 1e-3


def spoil(graph: InferenceGraph) -> None:
    graph.mean[0, 0] = float("nan")


@pytest.mark.parametrize("change", [shift, spoil])
def test_a_file_that_is_not_equal_is_not_written(
    change: Callable[[InferenceGraph], None],
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(formats, "write_torchscript", damaged(formats.write_torchscript, change))
    file = tmp_path / "model.ts"
    file.write_text("what was there")
    assert main(["export", "--ckpt_path", last(run), "--output", str(file)]) == 1
    assert "model.ts is not written: the torchscript file is not equal to the model" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["model.ts"]
    assert file.read_text() == "what was there"


def test_a_file_that_does_not_run_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(graph: InferenceGraph, image: Tensor, file: Path, *, optimize: bool) -> str:
        file.write_bytes(b"half a file")
        return "written"

    monkeypatch.setattr(formats, "write_torchscript", write)
    words = ["--format", "torchscript,pt2", "--output", str(tmp_path / "model")]
    assert main(["export", "--ckpt_path", last(run), *words]) == 1  # and the other format is written all the same
    assert "model.ts is not written: the torchscript file does not run" in capsys.readouterr().err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.pt2", "model.pt2.json"]


class Unscriptable(Backbone):
    """What TorchScript does not know: a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(3, 6, 3, 2, 1), torch.nn.Conv2d(6, 8, 3, 2, 1)])
        self.measure()

    def maps(self, image: Tensor) -> Iterator[Tensor]:
        for conv in self.convs:
            image = conv(image).relu()
            yield image

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.maps(image))


def test_a_backbone_that_cannot_be_scripted_is_traced_with_its_sizes_free(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Unscriptable()
    graph = InferenceGraph(backbone, FCNHead(backbone.channels, 3), (0.5,) * 3, (0.2,) * 3, "logits").eval()
    how = formats.write_torchscript(graph, formats.example(SizeRule(), "uint8"), tmp_path / "model.ts", optimize=False)
    assert how.startswith("backbone traced")
    picture = np.zeros((70, 50, 3), dtype=np.uint8)
    found = gate.compare(graph, "torchscript", tmp_path / "model.ts", gate.cases(SizeRule(), picture, "uint8"))
    assert gate.passes("torchscript", found)


class MultiplesOf32(Unscriptable):
    def forward(self, image: Tensor) -> list[Tensor]:
        if image.shape[2] % 32 or image.shape[3] % 32:
            raise RuntimeError("multiples of 32, please")
        return super().forward(image)


def test_sizes_that_a_model_takes() -> None:
    def graph(backbone: Backbone, head: Any) -> InferenceGraph:
        return InferenceGraph(backbone, head(backbone.channels, 3), (0.5,) * 3, (0.2,) * 3, "logits").eval()

    for kind in KINDS:
        assert size_rule(graph(MultiplesOf32(), FCNHead), kind).multiple == 32
        assert size_rule(graph(Unscriptable(), FCNHead), kind).minimum == (9 if kind == "pt2" else 1)  # stride 4
        assert size_rule(graph(Unscriptable(), ISANetHead), kind).minimum == (33 if kind == "pt2" else 1)
    rule = SizeRule(32, 40)
    assert [rule.fit(length) for length in (1, 40, 64, 65)] == [64, 64, 64, 96]
    for image in gate.cases(rule, np.zeros((100, 130, 3), dtype=np.uint8), "float32").values():
        assert image.shape[2] % 32 == image.shape[3] % 32 == 0
        assert image.dtype == np.float32


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "tflite"], "--format 'tflite' is unknown; use torchscript, pt2, onnx"),
        (["--image", "no.png"], "there is no image no.png"),
        (["--format", "onnx", "--optimize"], "--optimize is for --format torchscript"),
        (["--compile"], "--compile is for --format pt2"),
        (["--config", "x.yaml"], "not allowed with argument"),
        (["--output_type", "colours"], "--output_type"),
        (
            ["--format", "torchscript", "--output", "m.onnx"],
            "m.onnx is the name of a onnx file; --format is torchscript",
        ),
        (["--output", "."], "--output . is a folder"),
        (["--output", "m.bin"], "m.bin: the name of a torchscript file ends in .ts"),
        (["--outptu", "x"], "unrecognized arguments: --outptu. See segvid export --help"),
        (["word"], "unrecognized arguments: word. See segvid export --help"),
        (["--data.init_args.root", "x", "y"], "unrecognized arguments: y"),
        (["--model.init_args.head=x"], "--model.init_args.head=x is for --config"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", "--ckpt_path", last(run), "--output", str(tmp_path / "m"), *words]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    torch.save({}, tmp_path / "other.ts")
    pictures = str(photos(tmp_path / "in"))
    for name, said in (
        ("text.onnx", "was not written by segvid export"),
        ("other.ts", "was not written by segvid export"),
        ("no.ts", "there is no file"),
    ):
        assert main(["predict", pictures, "--model", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
    assert main(["predict", pictures]) == 1
    assert "--ckpt_path --model" in capsys.readouterr().err


def test_onnx_that_is_not_installed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")

    monkeypatch.setattr(torch.onnx, "export", missing)
    assert main(["export", "--ckpt_path", last(run), "--format", "onnx", "--output", str(tmp_path / "m")]) == 1
    assert "pip install 'segvid[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output_type", ["logits", "classes"])
def test_a_broken_model_is_not_exported(
    output_type: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(last(run), weights_only=True)
    content["state_dict"]["head.classifier.1.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "nan.ckpt")
    words = ["--output_type", output_type, "--output", str(tmp_path / "m.ts")]
    assert main(["export", "--ckpt_path", str(tmp_path / "nan.ckpt"), *words]) == 1
    assert "the scores of the model are no numbers" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["nan.ckpt"]


def test_a_picture_that_is_too_small_does_not_end_the_others(
    run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = photos(tmp_path / "in")
    Image.new("RGB", (3, 2)).save(pictures / "0.png")
    words = ["--model", str(path(files, "pt2")), "--output", str(tmp_path / "out")]
    assert main(["predict", str(pictures), *words]) == 1
    error = capsys.readouterr().err
    assert "0.png" in error
    assert "at least 9 pixels; this image or window has 2 x 3" in error
    assert sorted(f.name for f in (tmp_path / "out" / "masks").iterdir()) == ["1.png", "2.png"]
    assert main(["predict", str(pictures), "--model", str(path(files, "onnx")), "--output", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_not_there(
    kind: str, run: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = str(photos(tmp_path / "in"))
    words = ["--model", str(path(files, kind)), "--output", str(tmp_path / "out")]
    for device in ("nonsense", "meta"):
        assert main(["predict", pictures, *words, "--device", device]) == 1
        assert f"cannot be loaded on {device}" in capsys.readouterr().err


def test_the_ending_says_the_format(run: Path, tmp_path: Path) -> None:
    assert main(["export", "--ckpt_path", last(run), "--output", str(tmp_path / "m.pt2")]) == 0
    assert record(tmp_path / "m.pt2")["format"] == "pt2"


@pytest.mark.slow
@pytest.mark.skipif(__import__("shutil").which("g++") is None, reason="AOTInductor needs a C++ compiler")
def test_compiled_for_this_machine(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.pt2"
    assert main(["export", "--ckpt_path", last(run), "--format", "pt2", "--compile", "--output", str(file)]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    expected = load_trained(Path(last(run))).classes([picture], Inference())[0]
    np.testing.assert_array_equal(
        load_exported(file, allow_native_code=True).classes([picture], Inference())[0], expected
    )
    with pytest.raises(UserError, match="holds native code"):
        load_exported(file)


def test_the_help_needs_no_torch_and_says_what_is_compared() -> None:
    code = "import sys; from segvid.export.command import parse\ntry: parse(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'numpy', 'cv2', 'lightning', 'onnx', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    cases = gate.cases(SizeRule(), np.zeros((5, 5, 3), dtype=np.uint8), "uint8")
    assert f"compared with the model on {len(cases)} inputs ({gate.INPUTS})" in " ".join(done.stdout.split())
    assert sum(name.startswith("noise") for name in cases) == len(gate.SIZES)


def test_what_a_killed_export_left_is_removed_by_the_next_which_says_what_it_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "import os, signal, sys\nfrom segvid.cli import main\nfrom segvid.export import formats\n"
        "formats.write_torchscript = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(sys.argv[1:])"
    )
    words = ["export", "--ckpt_path", last(run), "--output", str(tmp_path / "m.ts")]
    subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=False, cwd=ROOT)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".segvid-export-")
    living = left.with_name(left.name.replace(re.findall(r"-(\d+)-", left.name)[-1], "1"))  # of a process that lives
    mine = tmp_path / ".segvid-export-notes"  # of a person
    elsewhere = tmp_path / ".segvid-export-another_computer-999999999-abc"
    for folder in (living, mine, elsewhere):
        shutil.copytree(left, folder)
    assert main(words) == 0
    expected = {"m.ts", "m.ts.json", living.name, mine.name, elsewhere.name}
    assert {file.name for file in tmp_path.iterdir()} == expected
    said = capsys.readouterr().out  # no terminal: which step it is at, and for how long, also in a log
    assert "\x1b" not in said
    assert "m.ts: step 1 of 2, exporting ...\n" in said
    assert re.search(r"m\.ts: exported in \d+ s; step 2 of 2, comparing on 7 inputs \.\.\.\n", said)
    assert re.search(r"m\.ts: [\d.]+ MB, equal to the model \(compared in \d+ s\)\.\n", said)


def test_names_of_any_kind_are_text(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [
        "sign [/]",
        "road [paved]",
        "$\\x$",
        "\x1b[2J",
        "=1+1",
        "a\nb",
        "\u202e",
        ":smile:",
        "",
        "\U0001f697",
        "[/x]",
    ]
    content = torch.load(last(run), weights_only=True)
    content["data"]["class_names"] = names
    torch.save(content, tmp_path / "names.ckpt")
    output = tmp_path / "out [/x]" / "m[red].ts"
    assert main(["export", "--ckpt_path", str(tmp_path / "names.ckpt"), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "m[red].ts: step 1 of 2" in said
    assert "\x1b" not in said
    assert load_exported(output).class_names == names
    assert record(output)["class_names"] == json.loads(output.with_name("m[red].ts.json").read_text())["class_names"]
    assert main(["export", "--ckpt_path", last(run), "--output", str(tmp_path / "\x1b[2J.bin")]) == 1


def test_a_file_that_predict_does_not_take_unasked_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from segvid.export import check_torchscript

    monkeypatch.setattr(check_torchscript, "ATEN", check_torchscript.ATEN - {"conv2d"})
    file = tmp_path / "m.ts"
    assert main(["export", "--ckpt_path", last(run), "--output", str(file)]) == 0
    assert "segvid predict takes it with --allow_native_code only: it uses aten::conv2d." in capsys.readouterr().out
    with pytest.raises(UserError, match="it uses aten::conv2d"):
        load_exported(file)
    assert load_exported(file, allow_native_code=True)
