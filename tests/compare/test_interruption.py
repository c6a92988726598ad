"""A comparison that is interrupted, killed or started twice: one training in one folder, and nothing is lost."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from segvid.cli import main
from segvid.compare.config import Run
from segvid.compare.processes import LOCK
from segvid.compare.records import read_state
from segvid.text import plain
from tests.compare.small import HEADS, results_of, runs_of, until, write_comparison

FIRST, SECOND = "=1+1 [/] $\\x$", "\x1b[31m <b>|_"


class Started:
    """`segvid compare` in a session of its own, as a terminal has it."""

    every: ClassVar[list["subprocess.Popen[bytes]"]] = []

    def __init__(self, file: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "segvid", "compare", "--config", str(file)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Where the tests run in the background, SIGINT is ignored, and children inherit that.
                preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            )
        self.every.append(self.process)

    def said(self) -> str:
        return self.log.read_text()

    def until_trained(self, run: Run) -> int:
        """Waits until the run trains; gives its process."""
        until(lambda: self.process.poll() is not None or read_state(run.folder) is not None, "a training")
        assert self.process.poll() is None, self.said()
        return int(json.loads((run.folder / LOCK).read_text())["pid"])

    def end(self) -> int:
        return self.process.wait(timeout=300)


@pytest.fixture
def comparison(tmp_path: Path) -> Iterator[Path]:
    """A short training, and one of a minute, under names that a terminal or a spreadsheet would obey."""
    overrides = {"trainer.max_epochs": 200, "trainer.check_val_every_n_epoch": 200}
    rows = [
        {"name": FIRST, "config": str(HEADS / "fcn.yaml")},
        {"name": SECOND, "config": str(HEADS / "pspnet.yaml"), "overrides": overrides},
    ]
    heads = "\n".join(f"  - {json.dumps(row)}" for row in rows)
    yield write_comparison(tmp_path, heads, "overrides: {data.init_args.num_workers: 1}\n")
    for process in Started.every:  # of a test that failed; a training ends with its comparison
        if process.poll() is None:
            process.kill()


def test_a_comparison_goes_on_however_it_ended(comparison: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = comparison.parent
    first, second = runs_of(comparison)
    log = second.folder / "log.txt"

    # Ctrl-C on a terminal reaches all its processes; SIGTERM only the one that it is sent to.
    for index, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        running = Started(comparison, folder / "log")
        training = running.until_trained(second)
        if number == signal.SIGINT:
            assert main(["compare", "--config", str(comparison)]) == 1, "two at the same time"
            assert f"in use by process {running.process.pid} on " in capfd.readouterr().err
            os.killpg(running.process.pid, number)
        else:
            running.process.send_signal(number)
        assert running.end() == 130, running.said()
        assert "goes on where it stopped" in running.said()
        assert not Path(f"/proc/{training}").exists(), "the training goes on by itself"
        assert log.read_text().count("saved in") == index + 1
        rows = results_of(folder)
        assert (rows[FIRST]["status"], rows[SECOND]["status"]) == ("done", "not run yet")
        (second.folder / "progress.json").unlink()
    stamp = (first.folder / "result.json").stat().st_mtime_ns
    log.unlink()

    # Killed, while its training hangs.
    running = Started(comparison, folder / "log")
    training = running.until_trained(second)
    os.kill(training, signal.SIGSTOP)
    try:
        running.process.kill()
        running.end()
        (second.folder / "result.json").write_text('{"status": "do')  # a power cut
        again = Started(comparison, folder / "again")
        until(lambda: "waits for" in again.said() or again.process.poll() is not None, "a word that it waits")
        assert f"in use by process {training} on " in again.said()
        assert "segvid.compare.run" not in children(again.process.pid), "two trainings in one folder"
    finally:
        os.kill(training, signal.SIGCONT)
    until(lambda: log.read_text().count("Restoring states") == 2, "a training that goes on")
    assert log.read_text().count("saved in") == 1, "it saves as with SIGTERM"
    assert again.end() == 0, again.said()
    assert (first.folder / "result.json").stat().st_mtime_ns == stamp

    # Names are text.
    assert f"[1/2] {FIRST}, seed 0: mIoU" in again.said()
    assert f"[2/2] {plain(SECOND)}, seed 0: mIoU" in again.said()
    assert "\x1b" not in again.said()
    assert {row["status"] for row in results_of(folder).values()} == {"done"}
    assert results_of(folder)[SECOND]["seeds"][0]["steps"] == 800
    assert (folder / "out/results.csv").read_text().splitlines()[1].startswith(f"'{FIRST},,0,done")
    page = (folder / "out/report.html").read_text()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert f"<td>{FIRST}</td>" in page


def children(parent: int) -> str:
    """The commands of the processes that a process has started."""
    found = subprocess.run(["ps", "--ppid", str(parent), "-o", "args="], capture_output=True, text=True, check=False)
    return found.stdout
