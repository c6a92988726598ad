"""Two and three real processes (gloo, CPU) find what one finds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import IMAGES, WAYS, Noise, bases, evaluate

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return evaluate(devices=1)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_count_every_sample_once(world: int, alone: dict[str, Any], tmp_path: Path) -> None:
    """Fewer images than processes, no multiple of them, and a multiple; whole, in windows, at several scales."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed.processes", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / "out" / f"{rank}.json").read_text()) for rank in range(world)]
    for found in ranks:
        assert set(found["evaluation"]) == {f"{way} {count}" for way in WAYS for count in IMAGES}
        for name, result in found["evaluation"].items():
            assert result["confusion"] == alone[name]["confusion"], name
            assert result["loss"] == pytest.approx(alone[name]["loss"], rel=1e-12), name
            assert [part[:2] for part in result["distance"]] == [part[:2] for part in alone[name]["distance"]], name
    joined = torch.tensor(bases(1, 0))
    for found in ranks:
        torch.testing.assert_close(torch.tensor(found["bases"]), joined)
    assert not torch.allclose(torch.tensor(bases(world, 0)), joined), "each part alone has other bases"


def test_what_one_process_counts_is_right(alone: dict[str, Any]) -> None:
    for count in IMAGES:
        labelled = sum(int((Noise(count)[index]["mask"] != 255).sum()) for index in range(count))
        for way in WAYS:
            assert sum(map(sum, alone[f"{way} {count}"]["confusion"])) == labelled
