"""Help is printed at once, and of the command that was asked for."""

import subprocess
import sys

import pytest

from segvid.cli import COMMANDS, main

HELP = """
import sys
from segvid.cli import main
assert main(sys.argv[1:]) == 0
heavy = {"torch", "lightning", "numpy", "matplotlib", "cv2", "timm"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_imports_nothing_heavy(command: str) -> None:
    """So it takes a fraction of a second, not the seconds of torch and Lightning."""
    words = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: segvid {command or '<command>'}" in done.stdout
    assert len(done.stdout.splitlines()) < 80


def test_the_commands_help_with_their_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command, option in (("resume", "RUN"), ("lr_find", "--lr_find.max_lr"), ("validate", "--ckpt_path")):
        assert main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: segvid {command}")
        assert option in said
        assert "{" not in said


def test_all_options_are_there_for_who_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--help", "all"]) == 0
    assert "--trainer.accumulate_grad_batches" in capsys.readouterr().out


def test_every_command_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n  {command} " in said
    for code in ("0 done", "1 failed", "2 wrong usage", "130", "143"):
        assert code in said


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["\x1b[31mfits"]) == 2
    said = capsys.readouterr().err
    assert "there is no command" in said
    assert "\x1b" not in said
