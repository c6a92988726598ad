"""The benchmark of the heads: what it counts, and the table it writes. No timing is asserted."""

import csv
import importlib
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
def cases() -> ModuleType:
    """The heads, and what they are compared with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        return importlib.import_module("head_cases")


@pytest.fixture(scope="module")
def costs(cases: ModuleType) -> ModuleType:
    """What is measured of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        return importlib.import_module("head_costs")


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


def test_every_peer_belongs_to_a_head_of_ours(cases: ModuleType) -> None:
    assert set(cases.PEERS) <= set(heads.__all__)


@pytest.mark.parametrize("head", ["NonLocalHead", "DeepLabV3Head"])
def test_recomputation_and_skipped_padding_are_not_in_the_formula(
    head: str, cases: ModuleType, costs: ModuleType
) -> None:
    """A backward pass costs twice the forward; what chunked attention computes again is not counted here."""
    forward = costs.formula_flops(cases.Case("ours", head, 40, "forward"))
    train = costs.formula_flops(cases.Case("ours", head, 40, "train", batch=2)) / 2
    assert train == pytest.approx(3 * forward, rel=0.01)
    if head == "DeepLabV3Head":
        # as wide as its peer's, at each position; that of the pooled map is small
        convolutions = 2048 * 512 * (1 + 3 * 9) + 5 * 512 * 512 + 512 * 19
        assert forward == pytest.approx(2 * 40**2 * convolutions / 1e9, rel=1e-4)


def test_a_batch_norm_on_a_pooled_map_takes_two_samples(cases: ModuleType) -> None:
    for head, batch in (("FCNHead", 1), ("PSPNetHead", 2), ("BeyondGridsHead", 1)):
        assert cases.smallest_batch([cases.Case("ours", head, 8, "train")]) == batch


@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize("mask_size", [(5, 7), (3, 9), (3, 3)], ids=str)
def test_the_stand_in_for_the_peers_mask_follows_its_formula(
    collect: bool, mask_size: tuple[int, int], cases: ModuleType
) -> None:
    """Entry (j, i) of collect, (i, j) of distribute: what i predicts for the offset j - i, 0 beyond the mask."""
    height, width = 3, 4
    mask = random_input(2, mask_size[0] * mask_size[1], height, width)
    affinity = cases.PSAMaskLoop.apply(mask, 0 if collect else 1, mask_size)
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
