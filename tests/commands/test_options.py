"""What the commands have in common."""

import io

import pytest

from segvid.commands import options
from segvid.commands.options import Parser, Progress, duration
from segvid.errors import UserError
from segvid.text import console


def test_errors_of_the_parser_are_sentences() -> None:
    parser = Parser(prog="segvid predict")
    parser.add_argument("--scale", type=float)
    with pytest.raises(UserError, match=r"argument --scale: invalid float value: 'x'\. See segvid predict --help\."):
        parser.parse_args(["--scale", "x"])


def test_a_log_has_a_line_a_minute_and_no_carriage_return(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(options.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with Progress(console(file=log, width=40), "predict [/]", 10) as progress:
        for _ in range(10):
            now[0] += 25
            progress.advance()
    assert log.getvalue().splitlines() == [
        "predict [/]: 3 of 10 files, 3 min left",
        "predict [/]: 6 of 10 files, 2 min left",
        "predict [/]: 9 of 10 files, 25 s left",
    ]
    assert "\r" not in log.getvalue()


def test_a_terminal_has_a_bar() -> None:
    shown = io.StringIO()
    with Progress(console(file=shown, width=100, force_terminal=True), "check [/]", 2) as progress:
        progress.advance(what="b [bold]")
        progress.advance()
    assert "check [/]" in shown.getvalue()
    assert "2/2" in shown.getvalue()
    assert "b [bold]" in shown.getvalue()


def test_a_work_of_unknown_length() -> None:
    assert Progress(console(file=io.StringIO()), "frames", None, "frames").state(3.0) == "0 frames"


def test_a_number_of_items_that_is_known_better_now() -> None:
    shown = io.StringIO()
    with Progress(console(file=shown, width=100, force_terminal=True), "predict", 9, "pictures") as progress:
        progress.expect(4)
        progress.advance(2)
    assert progress.state(6.0) == "2 of 4 pictures, 6 s left"
    assert "2/4" in shown.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3599, 3661, 7500)] == [
        "0 s",
        "59 s",
        "1 min",
        "1 h 00 min",
        "1 h 01 min",
        "2 h 05 min",
    ]
