"""The command `segvid compare`: runs what is not done yet, measures the cost, writes the report."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segvid.compare.config import Comparison, Run, parse, plan
from segvid.compare.report import console_table, gather, write, write_report
from segvid.errors import UserError


def compare(words: Sequence[str]) -> int:
    """Runs the comparison that the options describe; returns the exit code: 0 if every row is done."""
    if any(word in ("-h", "--help") for word in words):
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(prog="segvid compare", description=Comparison.__doc__)
        parser.add_argument("--config", action="config", help="file of the comparison (configs/compare/*.yaml)")
        parser.add_class_arguments(Comparison)
        parser.print_help()
        return 0
    comparison, base = parse(words)
    runs = plan(comparison, base)
    output = Path(comparison.output)
    output.mkdir(parents=True, exist_ok=True)
    console = Console(markup=False)  # a reason or a path may hold brackets
    command = shlex.join(["segvid", "compare", *words])
    done = sum(finished(run) is not None for run in runs)
    console.print(f"{comparison.title}: {len(runs)} runs, {done} done already. All files: {output}", highlight=False)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)
    try:
        for index, run in enumerate(runs):
            label = f"[{index + 1}/{len(runs)}] {run.label}"
            result = finished(run)
            if result is None:
                result = execute(run, comparison, label, console)
                write_report(gather(comparison, runs, command), output)
            outcome = (
                f"mIoU {100 * result['mIoU']:.2f}" if result["status"] == "done" else f"failed: {result['reason']}"
            )
            console.print(f"{label}: {outcome}", highlight=False)
        console.print("Measuring parameters, operations, latency and memory, all models in turns ...")
        measure(runs, output)
    except KeyboardInterrupt:
        write_report(gather(comparison, runs, command), output)
        console.print(f"Interrupted. The same command goes on where it stopped; so far: {output / 'report.html'}")
        return 130
    results = gather(comparison, runs, command)
    write_report(results, output)
    console.print(console_table(results))
    console.print(f"Report with pictures: {output / 'report.html'} (also report.md, results.csv, results.json)")
    return 0 if all(row["status"] == "done" for row in results["rows"]) else 1


def interrupt(number: int, frame: object) -> None:
    """SIGTERM is Ctrl-C: the training that runs is stopped too, and saves."""
    raise KeyboardInterrupt


def finished(run: Run) -> dict[str, Any] | None:
    """The result of a run that is done and was made from the same configuration."""
    result = read_json(run.folder / "result.json")
    return result if result.get("fingerprint") == run.fingerprint and result["status"] == "done" else None


def read_json(file: Path) -> dict[str, Any]:
    """The content of a file of a run; empty if there is none, or a machine stopped in the middle of it."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content


def execute(run: Run, comparison: Comparison, label: str, console: Console) -> dict[str, Any]:
    """Runs one training in a process of its own and shows how far it is; gives its result."""
    spec_file = run.folder / "spec.json"
    spec = {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "words": run.words,
        "checkpoint": run.checkpoint,
        "folder": str(run.folder),
        "fingerprint": run.fingerprint,
        "images": comparison.images,
    }
    if spec_file.is_file() and read_json(spec_file).get("fingerprint") != run.fingerprint:
        shutil.rmtree(run.folder)  # made from another configuration
    run.folder.mkdir(parents=True, exist_ok=True)
    write(spec_file, json.dumps(spec, indent=1) + "\n")
    for stale in ("result.json", "progress.json"):
        (run.folder / stale).unlink(missing_ok=True)
    with (run.folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "segvid.compare.run", str(spec_file)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            show_progress(process, run.folder / "progress.json", label, console)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    file = run.folder / "result.json"
    result = read_json(file)
    if result:
        return result
    reason = f"stopped with exit code {process.returncode}; see {run.folder / 'log.txt'}"
    if process.returncode < 0:
        reason = f"killed by signal {-process.returncode}" + (" (out of memory?)" if process.returncode == -9 else "")
    result = {"name": run.name, "variant": run.variant, "seed": run.seed, "fingerprint": run.fingerprint}
    result |= {"status": "failed", "reason": reason}
    write(file, json.dumps(result, indent=1) + "\n")
    return result


def show_progress(process: "subprocess.Popen[bytes]", file: Path, label: str, console: Console) -> None:
    """Waits for the process; on a terminal a bar, elsewhere a line every half minute."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps  loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    said = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=1, completed=0, loss=float("nan"))
        while process.poll() is None:
            time.sleep(0.2)
            if not file.is_file():
                continue
            state = json.loads(file.read_text())
            loss = float("nan") if state["loss"] is None else state["loss"]
            progress.update(task, completed=state["step"], total=state["steps"], loss=loss)
            if not console.is_terminal and time.monotonic() - said > 30:
                said = time.monotonic()
                console.print(f"{label}: step {state['step']} of {state['steps']}, loss {loss:.3f}", highlight=False)


def measure(runs: Sequence[Run], output: Path) -> None:
    """Measures the cost of every row in one process, unless that is done already for all of them as they are.

    Raises:
        UserError: the process failed.
    """
    rows: dict[str, list[str]] = {}  # a head costs the same under every variant
    for run in runs:
        rows.setdefault(run.name, [w for w in run.words if not w.startswith("--seed_everything")])
    spec_file, result_file = output / "cost_spec.json", output / "cost.json"
    spec = {"rows": rows, "fingerprints": [run.fingerprint for run in runs], "output": str(result_file)}
    text = json.dumps(spec, indent=1) + "\n"
    if result_file.is_file() and spec_file.is_file() and spec_file.read_text() == text:
        if not any("reason" in row for row in json.loads(result_file.read_text())["rows"].values()):
            return
        result_file.unlink()
    spec_file.write_text(text)
    log = output / "cost_log.txt"
    with log.open("w") as file:
        code = subprocess.call(
            [sys.executable, "-m", "segvid.compare.cost", str(spec_file)], stdout=file, stderr=subprocess.STDOUT
        )
    if code:
        raise UserError(f"measuring the cost failed with exit code {code}; see {log}.")
