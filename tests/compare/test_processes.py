"""One process has a folder, and no process outlives the one that started it."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from segvid.compare.command import stopped_by_signals
from segvid.compare.processes import LOCK, taken
from segvid.errors import UserError
from tests.compare.small import until


def start(code: str, *words: str) -> "subprocess.Popen[str]":
    """A Python process whose output is read."""
    command = [sys.executable, "-c", code, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


HOLD = (
    "import sys; from pathlib import Path; from segvid.compare.processes import taken\n"
    "with taken(Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
)


def test_a_folder_is_taken_once_and_the_other_says_by_whom(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with taken(folder):
        whom = f"by process {os.getpid()} on {re.escape(socket.gethostname())} since 20"
        with pytest.raises(UserError, match=whom), taken(folder):
            pass
        (folder / LOCK).write_text("[1")
        with pytest.raises(UserError, match="in use by a process that does not say which"), taken(folder):
            pass
    with taken(folder):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    other = start(HOLD, str(tmp_path))
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    told: list[str] = []
    with pytest.raises(UserError, match=f"process {other.pid} on"), taken(tmp_path, 0.05, told.append):
        pass
    assert len(told) == 1
    other.kill()
    other.communicate()
    assert str(other.pid) in (tmp_path / LOCK).read_text()
    with taken(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out cannot be written"), taken(tmp_path / "file" / "out"):
        pass


CHILD = (
    "import os, signal, sys, time; from segvid.compare import processes\n"
    "if sys.argv[2] == 'stubborn': signal.signal(signal.SIGTERM, signal.SIG_IGN); processes.GRACE = 0.1\n"
    "processes.end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)"
)
PARENT = (
    "import os, subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid()), sys.argv[2]])"
)


@pytest.mark.parametrize("kind", ["obedient", "stubborn"])
def test_a_process_ends_with_its_parent_that_is_killed(kind: str) -> None:
    parent = start(PARENT, CHILD, kind)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    # its end of the pipe is closed when it ends
    assert parent.stdout.read() == ""
    state = Path(f"/proc/{child}/stat")
    until(lambda: not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z", "the child's end")


def test_a_process_whose_parent_is_gone_already_does_nothing() -> None:
    orphan = start(CHILD, "1" if os.getpid() != 1 else "2", "obedient")
    assert orphan.communicate(timeout=60)[0] == ""
    assert orphan.returncode == 128 + signal.SIGTERM


def test_signals_are_as_before_after_a_comparison() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def mine(number: int, frame: object) -> None:
        pass

    try:
        signal.signal(signal.SIGTERM, mine)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
        with stopped_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
