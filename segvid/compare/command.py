"""The command `segvid compare`: runs what is not done yet, measures the cost, writes the report."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segvid.compare.config import Comparison, Run, option_parser, parse, plan
from segvid.errors import UserError
from segvid.files import write_json
from segvid.text import console, plain

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 120.0  # seconds for a training whose comparison was killed to end


def compare(words: Sequence[str]) -> int:
    """Runs the comparison that the options describe; returns the exit code: 0 if every row is done."""
    if any(word in ("-h", "--help") for word in words):
        option_parser().print_help()
        return 0
    comparison, base = parse(words)
    runs = plan(comparison, base)
    output = Path(comparison.output)
    from segvid.compare.processes import taken

    with taken(output), stopped_by_signals():
        return carry_out(comparison, runs, output, command_line(words))


def command_line(words: Sequence[str]) -> str:
    """The command that was given, from the folder that it was given in, with the packages that it allows."""
    from segvid.allowed import MORE

    packages = dict.fromkeys(os.environ.get(MORE, "").split())
    allowed = [word for package in packages for word in ("--allow_import", package)]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(['segvid', 'compare', *words, *allowed])}"


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that ends, are Ctrl-C: the training that runs is stopped too, and saves."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # there is no SIGHUP on Windows
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def interrupt(number: int, frame: object) -> None:
    """Ends as Ctrl-C does."""
    raise KeyboardInterrupt


def carry_out(comparison: Comparison, runs: list[Run], output: Path, command: str) -> int:
    """Does what is not done, and reports; returns the exit code."""
    from segvid.compare.fingerprint import identified
    from segvid.compare.report import console_table, gather, write_report

    terminal = console()
    runs = identified(runs)
    done = sum(finished(run) is not None for run in runs)
    title = plain(comparison.title)
    terminal.print(f"{title}: {len(runs)} runs, {done} done already. All files: {plain(output)}", soft_wrap=True)
    try:
        for index, run in enumerate(runs):
            label = f"[{index + 1}/{len(runs)}] {plain(run.label)}"
            if finished(run) is None:
                runs[index] = run = identified([run])[0]  # its files may have changed since
            result = finished(run)
            if result is None:
                result = execute(run, comparison, label, terminal)
                write_report(gather(comparison, runs, command), output)
            elif result["images"] != comparison.images:
                result = repaint(run, comparison, label, terminal)
            terminal.print(f"{label}: {plain(outcome(result))}", soft_wrap=True)
        terminal.print("Measuring parameters, operations, latency and memory, all models in turns ...")
        measure(runs, output)
    except KeyboardInterrupt:
        write_report(gather(comparison, runs, command), output)
        page = plain(output / "report.html")
        terminal.print(f"Interrupted. The same command goes on where it stopped; so far: {page}", soft_wrap=True)
        return 130
    results = gather(comparison, runs, command)
    write_report(results, output)
    terminal.print(console_table(results))
    page = plain(output / "report.html")
    terminal.print(f"Report with pictures: {page} (also report.md, results.csv, results.json)", soft_wrap=True)
    return 0 if all(row["status"] == "done" for row in results["rows"]) else 1


def outcome(result: dict[str, Any]) -> str:
    """What a run came to, in a few words."""
    if result["status"] != "done":
        return f"{result['status']}: {result['reason']}"
    return "mIoU -" if result["mIoU"] is None else f"mIoU {100 * result['mIoU']:.2f}"


def finished(run: Run) -> dict[str, Any] | None:
    """The result of a run that is done and depends on the same."""
    from segvid.compare.records import read_result

    result = read_result(run.folder)
    if result is None or run.problem is not None or result["status"] != "done":
        return None
    return result if result["fingerprint"] == run.fingerprint else None


def execute(run: Run, comparison: Comparison, label: str, terminal: "Console") -> dict[str, Any]:
    """Runs one training in a process of its own and shows how far it is; gives its result."""
    from segvid.compare.processes import taken
    from segvid.compare.records import read_result

    result = {"name": run.name, "variant": run.variant, "seed": run.seed, "fingerprint": run.fingerprint}
    if run.problem is not None:  # what is there stays as it is
        return result | {"status": "failed", "reason": run.problem}

    def wait(owner: str) -> None:
        terminal.print(f"{label}: waits for {plain(run.folder)}, in use {owner}", soft_wrap=True)

    with taken(run.folder, PATIENCE, wait):
        move_aside(run, label, terminal)
    run.folder.mkdir(parents=True, exist_ok=True)
    for stale in ("result.json", "progress.json"):
        (run.folder / stale).unlink(missing_ok=True)
    code = start(run, comparison, label, terminal)
    known = read_result(run.folder)
    if known is not None:
        return known
    reason = f"stopped with exit code {code}; see {run.folder / 'log.txt'}"
    if code < 0:
        reason = f"killed by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    result |= {"status": "failed", "reason": reason}
    write_json(run.folder / "result.json", result)
    return result


def move_aside(run: Run, label: str, terminal: "Console") -> None:
    """Keeps what was made from something else under another name."""
    from segvid.compare.fingerprint import changes
    from segvid.compare.processes import LOCK
    from segvid.compare.records import read_spec

    spec = read_spec(run.folder)
    if spec is not None and spec.fingerprint == run.fingerprint:
        return
    if not any(file.name != LOCK for file in run.folder.iterdir()):
        return
    now = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    aside = run.folder.with_name(f"{run.folder.name}.before-{now}")
    while aside.exists():  # in the same second
        aside = aside.with_name(f"{aside.name}-")
    run.folder.rename(aside)
    different = [] if spec is None else list(changes(spec.made_from, run.made_from))
    what = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
    reason = f"is of another state ({what})" if what else "is not known to be of this comparison"
    terminal.print(f"{label}: what is there {plain(reason)}; it is kept as {plain(aside)}", soft_wrap=True)


def repaint(run: Run, comparison: Comparison, label: str, terminal: "Console") -> dict[str, Any]:
    """Makes only the pictures of a run again, as many as are wanted now; gives its result."""
    code = start(run, comparison, f"{label}, pictures", terminal)
    if code:
        log = run.folder / "log.txt"
        terminal.print(f"{label}: its pictures could not be made again; see {plain(log)}", soft_wrap=True)
    result = finished(run)
    assert result is not None  # it stays
    return result


def start(run: Run, comparison: Comparison, label: str, terminal: "Console") -> int:
    """Starts the process of a run and waits for it; gives its exit code."""
    from segvid.compare.records import Spec

    spec = Spec(
        run.name,
        run.variant,
        run.seed,
        list(run.words),
        run.checkpoint,
        str(run.folder),
        run.fingerprint,
        comparison.images,
        run.made_from,
    )
    file = run.folder / "spec.json"
    write_json(file, asdict(spec))
    with (run.folder / "log.txt").open("a") as log:
        command = [sys.executable, "-m", "segvid.compare.run", str(file), str(os.getpid())]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            show_progress(process, run.folder, label, terminal)
        except KeyboardInterrupt:
            terminal.print("Stopping after this step ...")
            process.terminate()
            process.wait()
            raise
    return process.returncode


def show_progress(process: "subprocess.Popen[bytes]", folder: Path, label: str, terminal: "Console") -> None:
    """Waits for the process; on a terminal a bar, elsewhere a line every half minute."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from segvid.compare.records import read_state

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps  loss {task.fields[loss]:.3f}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    said = time.monotonic()
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        task = progress.add_task(label, total=1, completed=0, loss=float("nan"))
        while process.poll() is None:
            time.sleep(0.2)
            state = read_state(folder)
            if state is None:
                continue
            loss = float("nan") if state.loss is None else state.loss
            progress.update(task, completed=state.step, total=state.steps, loss=loss)
            if not terminal.is_terminal and time.monotonic() - said > 30:
                said = time.monotonic()
                terminal.print(f"{label}: step {state.step} of {state.steps:.0f}, loss {loss:.3f}", soft_wrap=True)


def measure(runs: Sequence[Run], output: Path) -> None:
    """Measures the cost of every row in one process, unless that is done already for all of them as they are.

    Raises:
        UserError: the process failed.
    """
    from segvid.compare.records import CostSpec, read_cost
    from segvid.files import read_json

    rows: dict[str, list[str]] = {}  # a head costs the same under every variant
    for run in runs:
        if run.problem is None:
            rows.setdefault(run.name, [w for w in run.words if not w.startswith("--seed_everything")])
    if not rows:
        return
    spec_file, result_file = output / "cost_spec.json", output / "cost.json"
    spec = CostSpec(rows, [run.fingerprint for run in runs], str(result_file))
    try:
        same = read_json(spec_file, CostSpec) == spec
    except UserError:
        same = False
    known = read_cost(output).rows
    if same and known.keys() == rows.keys() and not any(row.reason for row in known.values()):
        return
    result_file.unlink(missing_ok=True)
    write_json(spec_file, asdict(spec))
    log = output / "cost_log.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "segvid.compare.cost", str(spec_file), str(os.getpid())]
        code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT)
    if code:
        raise UserError(f"measuring the cost failed with exit code {code}; see {plain(log)}.")
