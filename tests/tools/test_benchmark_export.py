"""The latency table has a row for every form."""

import subprocess
import sys
from pathlib import Path

from tests.small_runs import ROOT


def test_table(run: Path) -> None:
    words = ["--ckpt_path", str(run / "checkpoints/last.ckpt"), "--size", "32", "40", "--repeats", "1"]
    command = [sys.executable, str(ROOT / "tools" / "benchmark_export.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {cells[1].strip(): cells[2:-1] for line in done.stdout.splitlines() if len(cells := line.split("│")) > 3}
    assert set(rows) == {"eager", "TorchScript", "TorchScript --optimize", "pt2", "ONNX"}
    assert all(float(cells[0]) >= 0 and float(cells[2]) < 1e-4 for cells in rows.values())
