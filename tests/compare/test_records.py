"""Files of another content than expected are as if they were not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from segvid.compare.command import finished
from segvid.compare.config import parse, plan
from segvid.compare.records import read_cost, read_result, read_spec, read_state
from segvid.compare.report import gather, write_report
from tests.compare.small import HEADS, seed_result, write_comparison

ODD = ["[]", "null", '"x"', "1", "{}", "", '{"na', "[" * 5000, "NaN", '{"status": "done"}', '{"status": []}', "\x00"]


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
def test_a_file_of_anything_else(content: str, tmp_path: Path) -> None:
    for name in ("result.json", "spec.json", "progress.json", "cost.json"):
        (tmp_path / name).write_text(content)
    assert read_result(tmp_path) is None
    assert read_spec(tmp_path) is None
    assert read_state(tmp_path) is None
    assert read_cost(tmp_path).rows == {}


@pytest.mark.parametrize(
    "change",
    [
        {"mIoU": "high"}, {"mIoU": 1.5}, {"mIoU": float("nan")}, {"iou": [0.5]}, {"iou": 3}, {"palette": [[0, 0, 0]]},
        {"palette": [[0, 0, 256], [0, 0, 0]]}, {"palette": [[0, 0], [0, 0]]}, {"class_names": [1, 2]}, {"images": None},
        {"distance": [{"start": 1}]}, {"distance": {}}, {"head": None}, {"checkpoint": 3}, {"train_seconds": -1},
        {"train_seconds": float("inf")}, {"fingerprint": None}, {"seed": "x"}, {"status": "failed"}, {"status": None},
    ],
)  # fmt: skip
def test_a_result_with_one_wrong_field(change: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(seed_result(0.5, [0.5, None])))
    assert read_result(tmp_path) is not None
    file.write_text(json.dumps(seed_result(0.5, [0.5, None]) | change))
    assert read_result(tmp_path) is None
    for field in seed_result(0.5, [0.5, None]):
        if field != "folder":
            content = seed_result(0.5, [0.5, None])
            del content[field]
            file.write_text(json.dumps(content))
            assert read_result(tmp_path) is None, field


def test_the_report_of_damaged_results(tmp_path: Path) -> None:
    comparison, base = parse(["--config", str(write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}"))])
    runs = plan(comparison, base)
    runs[0].folder.mkdir(parents=True)
    for content in ODD:
        (runs[0].folder / "result.json").write_text(content)
        (tmp_path / "out/cost.json").write_text(content)
        assert finished(runs[0]) is None
        results = gather(comparison, runs, "command")
        assert [row["status"] for row in results["rows"]] == ["not run yet"]
    write_report(results, tmp_path / "out")
    assert "not run yet" in (tmp_path / "out/report.md").read_text()
