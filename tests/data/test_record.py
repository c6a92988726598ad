"""What a checkpoint says of its data is checked where it is read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segvid.cli import main
from segvid.data.reading import voc_palette
from segvid.data.record import complete
from segvid.errors import UserError

WRONG: list[tuple[Any, str]] = [
    ([1], "field data: Input should be a valid dictionary (found: [1])"),
    ("x", "field data: Input should be a valid dictionary (found: 'x')"),
    ({"mean": [0.5, 0.5]}, "data: field mean.2: Field required"),
    ({"mean": [0.5, float("nan"), 0.5]}, "data: field mean.1: Input should be less than or equal to 1000"),
    ({"mean": "grey"}, "data: field mean: Input should be a valid tuple (found: 'grey')"),
    ({"std": [0.5, 0, 0.5]}, "data: field std.1: Input should be greater than 0 (found: 0)"),
    ({"std": [0.5, float("inf"), 0.5]}, "data: field std.1: Input should be less than or equal to 1000"),
    ({"image_size": [0, 0]}, "data: field image_size.0: Input should be greater than 0 (found: 0)"),
    ({"image_size": 64}, "data: field image_size: Input should be a valid tuple (found: 64)"),
    ({"class_names": ["a", "b"]}, "data: field class_names: 2 entries, but the model has 11 classes."),
    ({"class_names": [["a"]] * 11}, "data: field class_names.0: Input should be a valid string (found: ['a'])"),
    ({"palette": [(0, 0, 0)]}, "data: field palette: 1 entries, but the model has 11 classes."),
    (
        {"palette": [(0, 0, 256)] * 11},
        "data: field palette.0.2: Input should be less than or equal to 255",
    ),
]


@pytest.mark.parametrize(("data", "said"), WRONG)
def test_a_wrong_record_is_a_sentence_that_names_file_and_field(
    data: Any, said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "wrong.ckpt"
    torch.save(torch.load(run / "checkpoints/last.ckpt", weights_only=True) | {"data": data}, file)
    assert main(["predict", "--ckpt_path", str(file), str(run / "val_confusion.png")]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert str(file) in error
    assert said in error


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hyper_parameters": [1]}, "field hyper_parameters: Input should be a valid dictionary"),
        ({"state_dict": [1]}, "field state_dict: Input should be a valid dictionary"),
        ({"global_step": "x"}, "field global_step: Input should be a valid integer"),
        ({"hyper_parameters": {"num_classes": "many"}}, "does not say how to build its backbone and head"),
        ({"num_classes": "many"}, "its model cannot be built"),
        ({"num_classes": -3}, "its model cannot be built"),
        ({"backbone": [1, 2]}, "its model cannot be built"),
        ({"head": {"class_path": 7}}, "its model cannot be built"),
        ({"head": {"class_path": "segvid.segmentation.heads.FCNHead", "init_args": [1]}}, "its model cannot be built"),
        ({"_class_path": 3}, "its model cannot be built"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "validate"])
def test_a_checkpoint_of_wrong_kinds_is_a_sentence(
    change: dict[str, Any],
    said: str,
    command: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    if change.keys() & content.keys():
        content |= change
    else:
        content["hyper_parameters"] |= change
    file = tmp_path / "wrong.ckpt"
    torch.save(content, file)
    if command == "predict":
        assert main(["predict", "--ckpt_path", str(file), str(run / "val_confusion.png")]) == 1
    elif "Input should be" in said:  # what else validate needs is in the config
        assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(file)]) == 1
    else:
        return
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"segvid {command}: ")
    assert not any("Traceback" in line for line in lines)
    assert said in lines[-1]


def test_what_is_not_said_is_assumed() -> None:
    record = complete({"class_names": ("a", "b")}, 2, "here")
    assert record.class_names == ["a", "b"]
    assert record.palette == voc_palette(2)
    assert record.image_size is None
    assert record.mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match="here: field palette: 3 entries, but the model has 2 classes"):
        complete({"palette": voc_palette(3)}, 2, "here")
