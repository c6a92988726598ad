"""The benchmark of the heads: what it counts, and the table it writes. No timing is asserted."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from segvid.segmentation import heads
from tests.reference import random_input

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "tools" / "benchmark_heads.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_heads", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_heads"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_table_of_one_head(tmp_path: Path) -> None:
    """FCNHead: 2 * (9 * (2048 * 512 + 512 * 512 + 2560 * 512) + 512 * 19) operations for each of 8 x 8 positions."""
    options = ["--heads", "FCNHead", "--sizes", "8", "--modes", "forward", "--repeats", "1"]
    command = [sys.executable, str(FILE), *options, "--output", str(tmp_path / "out" / "table")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (row,) = csv.DictReader((tmp_path / "out" / "table.csv").open())
    assert (row["head"], row["size"], row["mode"], row["batch"]) == ("FCNHead", "8", "forward", "1")
    expected = 2 * 64 * (9 * (2048 * 512 + 512 * 512 + 2560 * 512) + 512 * 19) / 1e9
    assert float(row["ours_gflop"]) == pytest.approx(expected, rel=1e-6)
    assert float(row["ours_ms"]) > 0
    assert float(row["bound_ms"]) > 0
    report = (tmp_path / "out" / "table.md").read_text()
    assert "| FCNHead | 8 | forward |" in report
    assert f"torch {torch.__version__}" in report


def test_every_peer_belongs_to_a_head_of_ours(benchmark: ModuleType) -> None:
    assert set(benchmark.PEERS) <= set(heads.__all__)


def test_recomputation_does_not_raise_the_bound(benchmark: ModuleType) -> None:
    """A backward pass costs twice the forward; what chunked attention computes again is not counted here."""
    forward = benchmark.formula_flops(benchmark.Case("ours", "NonLocalHead", 40, "forward"))
    train = benchmark.formula_flops(benchmark.Case("ours", "NonLocalHead", 40, "train"))
    assert train == pytest.approx(3 * forward, rel=0.01)


def test_a_batch_norm_on_a_pooled_map_takes_two_samples(benchmark: ModuleType) -> None:
    for head, batch in (("FCNHead", 1), ("PSPNetHead", 2), ("BeyondGridsHead", 1)):
        assert benchmark.smallest_batch([benchmark.Case("ours", head, 8, "train")]) == batch


@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize("mask_size", [(5, 7), (3, 9), (3, 3)], ids=str)
def test_the_stand_in_for_the_peers_mask_follows_its_formula(
    collect: bool, mask_size: tuple[int, int], benchmark: ModuleType
) -> None:
    """Entry (j, i) of collect, (i, j) of distribute: what i predicts for the offset j - i, 0 beyond the mask."""
    height, width = 3, 4
    mask = random_input(2, mask_size[0] * mask_size[1], height, width)
    affinity = benchmark.PSAMaskLoop.apply(mask, 0 if collect else 1, mask_size)
    expected = torch.zeros(2, height * width, height * width, dtype=torch.float64)
    for i in range(height * width):
        for j in range(height * width):
            row, column = (j // width - i // width, j % width - i % width)
            row, column = row + (mask_size[0] - 1) // 2, column + (mask_size[1] - 1) // 2
            if 0 <= row < mask_size[0] and 0 <= column < mask_size[1]:
                offset = mask[:, row * mask_size[1] + column, i // width, i % width]
                expected[(slice(None), j, i) if collect else (slice(None), i, j)] = offset
    expected = expected.reshape(affinity.shape)
    torch.testing.assert_close(affinity, expected)
    upstream = torch.randn_like(expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(output, mask, upstream, retain_graph=True)[0] for output in (affinity, expected))
    )
