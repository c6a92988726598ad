"""Exported files of an attacker: `segvid predict --model` runs, writes and reads nothing that they ask for."""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from segvid.backbones import ConvNet
from segvid.cli import main
from segvid.errors import UserError
from segvid.export import check_torchscript, formats, reading, run_file
from segvid.export.archive import members
from segvid.export.exported import load_exported
from segvid.export.formats import SizeRule
from segvid.export.graph import InferenceGraph
from segvid.export.record import SUFFIXES
from segvid.segmentation.heads import FCNHead
from segvid.segmentation.inference import Inference

KINDS = tuple(SUFFIXES)
RECORD: dict[str, Any] = {
    "input": {"type": "uint8", "multiple": 1, "minimum": 9, "image_size": None},
    "output": {"type": "logits"},
    "class_names": ["a", "b", "c"],
    "palette": [[0, 0, 0], [255, 0, 0], [0, 255, 0]],
}
CONVNET = re.compile(rb"c__torch__\.segvid\.backbones\.convnet[\w.]*\nConvNet")
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
PICTURE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model in every format, with its record."""
    folder = tmp_path_factory.mktemp("good")
    backbone = ConvNet(widths=(4, 6, 8))
    graph = InferenceGraph(backbone, FCNHead(backbone.channels, 3), (0.5,) * 3, (0.2,) * 3, "logits").eval()
    image = formats.example(SizeRule(), "uint8")
    files = {kind: folder / f"m{suffix}" for kind, suffix in SUFFIXES.items()}
    formats.write_torchscript(graph, image, files["torchscript"], optimize=False)
    formats.write_pt2(graph, image, files["pt2"], compiled=False)
    formats.write_onnx(graph, image, files["onnx"])
    for kind, file in files.items():
        formats.add_record(kind, file, json.dumps(RECORD | {"format": kind}))
        assert load_exported(file).classes([PICTURE], Inference())[0].shape == (24, 30)
    return files


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def saved(marker: Path) -> bytes:
    content = io.BytesIO()
    torch.save({"x": Payload(marker)}, content)
    return content.getvalue()


def packed(files: dict[str, bytes], file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"archive/{name}", data)
    return file


def refused(file: Path, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """predict says in one sentence that it does not take the file."""
    Image.fromarray(PICTURE).save(folder / "picture.png")
    capsys.readouterr()
    output = str(folder / f"out{len(list(folder.iterdir()))}")
    assert main(["predict", str(folder / "picture.png"), "--model", str(file), "--output", output]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1, error


def trusted(file: Path) -> None:
    """Loads and runs the file as a program, whatever becomes of it: it shows that an attack is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(UserError):
            load_exported(file, allow_native_code=True).classes([PICTURE], Inference())


def program(files: dict[str, bytes], change: Callable[[dict[str, Any]], None], name: str = MODEL) -> dict[str, bytes]:
    """The files of a .pt2 with a part of its JSON changed."""
    content = json.loads(files[name])
    change(content)
    return files | {name: json.dumps(content).encode()}


def pickled_weight(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        next(iter(content["config"].values()))["use_pickle"] = True

    return program(files, change, WEIGHTS) | {"data/weights/weight_0": saved(marker)}


def old_weights(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return files | {"data/weights/model.pt": saved(marker)}


def old_constants(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return files | {"data/constants/model.pt": saved(marker)}


def constant(files: dict[str, bytes], marker: Path, kind: str, data: bytes) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        meta = {"path_name": f"{kind}_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        content["config"]["thing"] = meta

    return program(files, change, "data/constants/model_constants_config.json") | {f"data/constants/{kind}_0": data}


def pickled_constant(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return constant(files, marker, "tensor", saved(marker))


def opaque_object(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return constant(files, marker, "opaque_obj", pickle.dumps(Payload(marker)))


def expression(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        values = content["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = f"__import__('os').mkdir('{marker}')"

    return program(files, change)


def expression_of_names(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        text = f"Add.flatten.__func__.__globals__['__builtins__']['__import__']('os').mkdir('{marker}')"
        values = content["graph_module"]["graph"]["sym_int_values"]
        next(iter(values.values()))["as_expr"]["expr_str"] = text

    return program(files, change)


def operator(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        node = content["graph_module"]["graph"]["nodes"][-1]
        node["target"] = "torch.serialization.os.mkdir"
        node["inputs"] = [{"name": "", "arg": {"as_string": str(marker)}, "kind": 1}]

    return program(files, change)


def name_of_the_input(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    evil = json.dumps(f"image=__import__('os').mkdir('{marker}')").encode()
    return files | {MODEL: files[MODEL].replace(b'"image"', evil)}


def name_of_a_weight(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    text = next(iter(json.loads(files[WEIGHTS])["config"]))
    evil = json.dumps(f"""x", getattr(__import__('os'), 'mkdir')('{marker}') or "y""").encode()
    return files | {name: files[name].replace(f'"{text}"'.encode(), evil) for name in (MODEL, WEIGHTS)}


def library(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return files | {"data/aotinductor/model/model.so": b"\x7fELF"}


def shape_of_the_input(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = '[1, {"type": "os.system"}]'

    return program(files, change)


PT2 = {
    pickled_weight: "is pickled",
    old_weights: "has no member 'data/weights/model.pt'",
    old_constants: "has no member 'data/constants/model.pt'",
    pickled_constant: "is pickled",
    opaque_object: "has no member 'data/constants/opaque_obj_0'",
    expression: "is no expression of sizes",
    expression_of_names: "is no expression of sizes",
    operator: "it uses torch.serialization.os.mkdir",
    name_of_the_input: "a strange name",
    name_of_a_weight: "it holds 'x\"",
    shape_of_the_input: "something else than a tensor",
    library: "record: field format: it says pt2",
}
HARMLESS = (shape_of_the_input, library, operator)  # torch would refuse this one, but not every one like it
Attack = Callable[[dict[str, bytes], Path], dict[str, bytes]]


@pytest.mark.parametrize("attack", PT2, ids=lambda attack: attack.__name__)
def test_a_pt2_runs_nothing(
    attack: Attack, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    file = packed(attack(members(good["pt2"].read_bytes()), marker), tmp_path / "m.pt2")
    if attack not in HARMLESS:
        trusted(file)
        assert marker.exists(), "the attack is none"
        marker.rmdir()
    refused(file, PT2[attack], tmp_path, capsys)
    assert not marker.exists()


def test_what_torch_would_run_but_no_model_needs_is_left_out(good: dict[str, Path], tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def change(content: dict[str, Any]) -> None:
        content["guards_code"] = [f"__import__('os').mkdir('{marker}')"]

    files = members(good["pt2"].read_bytes())
    inputs = {"data/sample_inputs/model.pt": saved(marker)}
    for number, attack in enumerate((program(files, change), files | inputs)):
        file = packed(attack, tmp_path / f"{number}.pt2")
        trusted(file)
        assert marker.exists(), "the attack is none"
        marker.rmdir()
        expected = load_exported(good["pt2"]).classes([PICTURE], Inference())[0]
        np.testing.assert_array_equal(load_exported(file).classes([PICTURE], Inference())[0], expected)
        assert not marker.exists()


def forward(files: dict[str, bytes], *lines: str) -> dict[str, bytes]:
    """The files of a .ts whose forward begins with these lines."""
    start = "image: Tensor) -> Tensor:\n"
    (name,) = (name for name, data in files.items() if b"class InferenceGraph(" in data and name.endswith(".py"))
    code = files[name].decode()
    assert start in code
    return files | {name: code.replace(start, start + "".join(f"    {line}\n" for line in lines)).encode()}


def saving(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return forward(files, f'_900 = torch.save(image, "{marker}")')


def saving_under_another_name(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    return forward(files, "_900 = torch.save", f'_901 = _900(image, "{marker}")')


def saving_where_it_is_loaded(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    class Module(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image

        @torch.jit.export
        def __getstate__(self) -> tuple[int, bool]:
            return 1, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[int, bool]) -> None:
            self.training = state[1]

    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Module()), content)
    found = members(content.getvalue()) | {"extra/segvid.json": files["extra/segvid.json"]}
    (name,) = (n for n in found if n.startswith("code/") and n.endswith(".py"))
    line = f'    _900 = torch.save([1], "{marker}")\n'
    code = found[name].decode()
    start = code.index("\n", code.index("-> NoneType:")) + 1
    return found | {name: (code[:start] + line + code[start:]).encode()}


def saving_when_it_fails(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    guard = (
        "class Guard:\n"
        "  def __enter__(self: __torch__.segvid.export.guard.Guard) -> NoneType:\n"
        "    return None\n"
        "  def __exit__(self: __torch__.segvid.export.guard.Guard, a: Any, b: Any, c: Any) -> NoneType:\n"
        f'    _1 = torch.save([1], "{marker}")\n'
        "    return None\n"
    )
    kind = "__torch__.segvid.export.guard.Guard"
    lines = (f"_900 = {kind}.__new__({kind})", "with _900:", '  ops.prim.RaiseException("x", "builtins.ValueError")')
    return forward(files, *lines) | {"code/__torch__/segvid/export/guard.py": guard.encode()}


def reading_a_file(files: dict[str, bytes], marker: Path) -> dict[str, bytes]:
    own = marker.parent / "m.ts"
    return forward(
        files, f'_900 = torch.from_file("{own}", False, 2160, dtype=0)', "image = torch.reshape(_900, [1, 3, 24, 30])"
    )


TORCHSCRIPT = {
    saving: "it uses aten::save",
    saving_under_another_name: "it uses aten::save",
    saving_where_it_is_loaded: "its code would run while it is loaded",
    saving_when_it_fails: "it uses aten::save",
    reading_a_file: "it uses aten::from_file",
}


@pytest.mark.parametrize("attack", TORCHSCRIPT, ids=lambda attack: attack.__name__)
def test_torchscript_writes_and_reads_nothing(
    attack: Attack, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    file = packed(attack(members(good["torchscript"].read_bytes()), marker), tmp_path / "m.ts")
    trusted(file)
    if attack is not reading_a_file:
        assert marker.exists(), "the attack is none"
        marker.unlink()
    refused(file, TORCHSCRIPT[attack], tmp_path, capsys)
    assert not marker.exists()


def test_objects_that_torch_has_built_in_are_not_made(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(good["torchscript"].read_bytes())
    for name in (b"__torch__.torch.classes.profiling\nSourceStats", b"os\nsystem", b"torch\nHalfTensor"):
        data = CONVNET.sub(b"c" + name, files["data.pkl"])
        assert data != files["data.pkl"]
        file = packed(files | {"data.pkl": data}, tmp_path / "m.ts")
        said = name.decode().replace("\n", ".")
        refused(file, f"its data names {said}", tmp_path, capsys)
    made = "_900 = __torch__.torch . classes.profiling.SourceStats"
    file = packed(forward(files, made), tmp_path / "m.ts")
    refused(file, "its code would run while it is loaded", tmp_path, capsys)


def test_memory_beyond_a_tensor_is_not_read(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(good["torchscript"].read_bytes())
    storage = max((name for name in files if name.startswith("data/")), key=lambda name: len(files[name]))
    short = files | {storage: files[storage][:16]}
    refused(packed(short, tmp_path / "m.ts"), "a storage in it is not as long as it says", tmp_path, capsys)

    def pickled(size: bytes, count: int = 4) -> bytes:
        # (storage, offset, size, stride, requires_grad, hooks) of 4 numbers
        return (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK" + bytes([count]) + b"tQK\x00K" + size + b"\x85K\x01\x85\x89)tR."
        )

    check_torchscript.check_pickle(pickled(b"\x04"), "data", {"data/0": bytes(16)})
    for size, count in ((b"\x05", 4), (b"\xff", 4), (b"\x04", 5)):
        with pytest.raises(Exception, match=r"larger than its storage|not as long"):
            check_torchscript.check_pickle(pickled(size, count), "data", {"data/0": bytes(16)})


def test_a_module_is_the_one_that_the_code_takes_it_for(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(good["torchscript"].read_bytes())
    small = b"c__torch__.torch.nn.modules.activation\nReLU"
    data = CONVNET.sub(small, files["data.pkl"])
    assert data != files["data.pkl"]
    refused(packed(files | {"data.pkl": data}, tmp_path / "m.ts"), "is not loaded, and nothing", tmp_path, capsys)


def test_operators_that_take_memory_as_it_lies_are_refused(good: dict[str, Path], tmp_path: Path) -> None:
    files = members(good["torchscript"].read_bytes())
    for call in ("torch.as_strided(image, [9], [9])", "torch.set_(image, image)"):
        file = packed(forward(files, f"image = {call}"), tmp_path / "m.ts")
        with pytest.raises(UserError, match="it uses aten::"):
            load_exported(file)


@pytest.mark.parametrize("suffix", [".onnx", ".ts", ".pt2", ".PT2"])
@pytest.mark.parametrize("said", KINDS)
def test_pickled_weights_run_under_no_name(
    suffix: str, said: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "marker"
    files = pickled_weight(members(good["pt2"].read_bytes()), marker)
    files["extra/segvid.json"] = json.dumps(RECORD | {"format": said}).encode()
    refused(packed(files, tmp_path / f"m{suffix}"), f"m{suffix}", tmp_path, capsys)
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", [".ts", ".pt2", ".onnx", ".bin", ""])
def test_ending_and_content_agree(
    kind: str, other: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if other == SUFFIXES[kind]:
        return
    file = tmp_path / f"m{other}"
    file.write_bytes(good[kind].read_bytes())
    said = "was not written by segvid export as a" if other in SUFFIXES.values() else "no ending of an exported model"
    refused(file, said, tmp_path, capsys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", ["aoti", "torchscript", "pt2", "onnx"])
def test_record_and_content_agree(
    kind: str, said: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == said:
        return
    file = with_record(kind, good[kind], tmp_path, json.dumps(RECORD | {"format": said}))
    refused(file, f"record: field format: it says {said}, and the file is {kind}", tmp_path, capsys)


def with_record(kind: str, good: Path, folder: Path, text: str) -> Path:
    file = folder / f"m{SUFFIXES[kind]}"
    if kind == "onnx":
        file.write_bytes(good.read_bytes())
        formats.add_record("onnx", file, text)
        return file
    return packed(members(good.read_bytes()) | {"extra/segvid.json": text.encode("utf-8", "surrogatepass")}, file)


def test_native_code_is_loaded_only_if_it_is_allowed(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda file: loaded.append(file))
    files = members(good["pt2"].read_bytes())
    files["data/aotinductor/model/model.so"] = b"\x7fELF"
    files["extra/segvid.json"] = json.dumps(RECORD | {"format": "aoti"}).encode()
    file = packed(files, tmp_path / "m.pt2")
    refused(file, "holds native code, which runs as any program does", tmp_path, capsys)
    assert not loaded
    output = str(tmp_path / "allowed")  # a library that is none: it fails where it is run
    words = ["--model", str(file), "--output", output, "--allow_native_code"]
    assert main(["predict", str(tmp_path / "picture.png"), *words]) == 1
    assert loaded == [str(file)]


def zip_of(entries: list[tuple[str, bytes]], file: Path, before: bytes = b"", compressed: bool = False) -> Path:
    content = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", kind) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in entries:
            archive.writestr(name, data)
    file.write_bytes(before + content.getvalue())
    return file


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_archives_that_two_readers_understand_differently_are_refused(
    kind: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [(f"archive/{name}", data) for name, data in members(good[kind].read_bytes()).items()]
    first = entries[0]
    file = tmp_path / f"m{SUFFIXES[kind]}"
    assert load_exported(zip_of(entries, file))
    room = [("archive/x", bytes(70_000_000))]
    for others, options, said in (
        ([first], {}, "two members of its archive have one name"),
        ([(first[0].upper(), b"")], {}, "two members of its archive have one name"),
        ([("other/x", b"")], {}, "more than one folder"),
        ([("archive/../x", b"")], {}, "leads out of it"),
        ([("archive/a\\b", b"")], {}, "strange name"),
        ([("archive/x\x1b[2J", b"")], {}, "strange name"),
        (room, {"compressed": True}, "more than the file has room for"),
        ([], {"before": b"#!/bin/sh\n"}, "it is no archive of torch"),
        ([], {"before": b"PK\x03\x04" * 9}, "does not begin where the file does"),
        ([("archive/more", b"")], {}, "has no member 'more'"),
    ):
        refused(zip_of([*entries, *others], file, **options), said, tmp_path, capsys)  # type: ignore[arg-type]
    file.write_bytes(good[kind].read_bytes()[:-40])
    refused(file, "was not written by segvid export", tmp_path, capsys)


def test_what_was_checked_is_what_is_loaded(
    good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced after it was checked is not read again."""
    marker = tmp_path / "marker"
    file = tmp_path / "m.pt2"
    file.write_bytes(good["pt2"].read_bytes())
    check = reading.checked

    def checked(kind: str, content: bytes) -> bytes:
        found = check(kind, content)
        packed(pickled_weight(members(content), marker), file)
        return found

    monkeypatch.setattr(reading, "checked", checked)
    load_exported(file).classes([PICTURE], Inference())
    assert not marker.exists()


@pytest.mark.parametrize("place", ["../secret", "weights", "*/_ORT_MEM_ADDR_/*"])
def test_onnx_reads_no_other_file(
    place: str,
    good: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = onnx.load(good["onnx"])
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    (tmp_path / "folder").mkdir()
    for secret in (tmp_path / "secret", tmp_path / "folder" / "weights"):
        secret.write_bytes(bytes(len(tensor.raw_data)))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    file = tmp_path / "folder" / "m.onnx"
    file.write_bytes(model.SerializeToString())
    monkeypatch.chdir(tmp_path / "folder")
    refused(file, "its weights are in another file", tmp_path, capsys)


def test_onnx_has_the_operators_of_the_standard(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load(good["onnx"])
    model.graph.node[0].domain = "com.example"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refused(tmp_path / "m.onnx", "it uses com.example.", tmp_path, capsys)


def without(*names: str) -> str:
    record = json.loads(json.dumps(RECORD | {"format": "torchscript"}))
    part = record
    for name in names[:-1]:
        part = part[name]
    del part[names[-1]]
    return json.dumps(record)


def having(value: Any, *names: str) -> str:
    record = json.loads(json.dumps(RECORD | {"format": "torchscript"}))
    part = record
    for name in names[:-1]:
        part = part[name]
    part[names[-1]] = value
    return json.dumps(record)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("null", "record: "),
        ("[]", "record: "),
        ('"x"', "record: "),
        ("{", "it is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        (" " * 10_000_001, "10000001 bytes"),
        (without("input"), "field input: "),
        (without("input", "multiple"), "field input.multiple: "),
        (without("format"), "field format: "),
        (having("tflite", "format"), "field format: "),
        (having(None, "input"), "field input: "),
        (having([], "input"), "field input: "),
        (having(0, "input", "multiple"), "field input.multiple: "),
        (having([0, 0], "input", "image_size"), "field input.image_size.0: "),
        (having([10**12, 1], "input", "image_size"), "field input.image_size.0: "),
        (having("colours", "output", "type"), "field output.type: "),
        (having([], "class_names"), "field class_names: "),
        (having(["a", 2, "c"], "class_names"), "field class_names.1: "),
        (having([[0, 0, 256]], "palette"), "field palette.0.2: "),
        (having([[0, 0, 0]], "palette"), "field palette: 1 colours for 3 classes"),
    ],
    ids=range(21),
)
def test_a_wrong_record_is_one_sentence(
    text: str, said: str, good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_record("torchscript", good["torchscript"], tmp_path, text)
    refused(file, said, tmp_path, capsys)


def test_a_file_that_gives_something_else_than_it_says(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = json.loads(having(["a", "b"], "class_names")) | {"palette": [[0, 0, 0], [9, 9, 9]]}
    file = with_record("torchscript", good["torchscript"], tmp_path, json.dumps(two))
    refused(file, "gives something else than the logits of 2 classes", tmp_path, capsys)
    model = replace(load_exported(good["torchscript"]), output_type="classes")
    for last, allowed in ((2, True), (3, False)):
        model = replace(model, run=lambda _, last=last: np.full((1, 24, 30), last, dtype=np.uint8))  # type: ignore[misc]
        with contextlib.nullcontext() if allowed else pytest.raises(UserError, match="gives class 3"):
            model.classes([PICTURE], Inference())
    files = members(good["torchscript"].read_bytes())
    message = 'ops.prim.RaiseException("[/x]", "builtins.ValueError")'
    refused(packed(forward(files, message), tmp_path / "m.ts"), "fails on an image of 24 x 30", tmp_path, capsys)


def test_a_pt2_that_torch_cannot_load_is_one_sentence(good: dict[str, Path], tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"][-1]["target"] = "torch.ops.aten.add.nonsense"

    file = packed(program(members(good["pt2"].read_bytes()), change), tmp_path / "m.pt2")
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    words = ["predict", str(tmp_path / "picture.png"), "--model", str(file), "--output", str(tmp_path / "out")]
    # In a process of its own: torch's log writes to the standard error that it found when it was imported.
    done = subprocess.run([sys.executable, "-m", "segvid", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "m.pt2 cannot be loaded on cpu" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_names_in_the_record_are_text(
    good: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["sign [/]", "\x1b[2J", "=1+1"]
    file = with_record("torchscript", good["torchscript"], tmp_path, having(names, "class_names"))
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    words = ["--model", str(file), "--output", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "picture.png"), *words]) == 0
    assert "\x1b[2J" not in capsys.readouterr().out
    assert load_exported(file).class_names == names


def test_what_is_checked_still_loads_as_bytes(good: dict[str, Path]) -> None:
    for kind, file in good.items():
        expected = run_file.load(kind, str(file))
        found = run_file.load(kind, reading.checked(kind, file.read_bytes()))
        image = np.ascontiguousarray(PICTURE.transpose(2, 0, 1)[None])
        np.testing.assert_array_equal(found(image), expected(image))
