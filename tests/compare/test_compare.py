"""`segvid compare`: what is planned, what is run again, what the report says."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from segvid.cli import main
from segvid.compare.charts import Chart, Section
from segvid.compare.command import command_line, finished, measure
from segvid.compare.fingerprint import identified
from segvid.compare.markdown import markdown_report
from segvid.compare.page import html_page
from segvid.compare.report import console_table, csv_text, mean_by_distance, mean_of_known, summarise, write_report
from segvid.compare.run import main as run_one
from segvid.compare.table import main_table
from segvid.errors import UserError
from segvid.segmentation.task import SegmentationTask
from tests.compare.small import HEADS, ROOT, results_of, runs_of, seed_result, write_comparison

# What is planned


def test_plan(tmp_path: Path) -> None:
    heads = f"  - {HEADS / 'fcn.yaml'}\n  - {{name: R=1, config: {HEADS / 'ccnet.yaml'}, overrides: {{a.b: [1, 2]}}}}"
    file = write_comparison(tmp_path, heads, "seeds: [3, 4]\nbudget: {max_steps: 7}\noverrides: {c: x}\n")
    runs = runs_of(file)
    assert [(run.name, run.seed) for run in runs] == [("fcn", 3), ("R=1", 3), ("fcn", 4), ("R=1", 4)]
    assert runs[0].words[:4] == ("--config", str(tmp_path / "recipe.yaml"), "--config", str(HEADS / "fcn.yaml"))
    assert {"--seed_everything=3", "--trainer.max_steps=7", "--trainer.val_check_interval=7", "--c=x"} <= set(
        runs[0].words
    )
    assert "--a.b=[1, 2]" in runs[1].words
    assert "--a.b=[1, 2]" not in runs[0].words
    assert len({run.folder for run in runs}) == 4


def test_variants_are_run_one_after_the_other(tmp_path: Path) -> None:
    variants = "variants: {near: {a: 1, b: 2}, far: {a: 3}}\noverrides: {b: 0}\n"
    heads = f"  - {HEADS / 'fcn.yaml'}\n  - {{config: {HEADS / 'danet.yaml'}, overrides: {{a: 4}}}}"
    runs = runs_of(write_comparison(tmp_path, heads, variants))
    assert [(run.name, run.variant) for run in runs] == [
        ("fcn", "near"), ("danet", "near"), ("fcn", "far"), ("danet", "far"),
    ]  # fmt: skip
    given = [{w for w in run.words if w[:4] in ("--a=", "--b=")} for run in runs]
    assert given == [{"--a=1", "--b=2"}, {"--a=4", "--b=2"}, {"--a=3", "--b=0"}, {"--a=4", "--b=0"}]
    assert [run.folder.name for run in runs] == [
        "fcn-near-seed0",
        "danet-near-seed0",
        "fcn-far-seed0",
        "danet-far-seed0",
    ]
    assert runs[3].label == "danet, far, seed 0"


def test_only_what_is_done_and_was_made_alike_is_not_run_again(tmp_path: Path) -> None:
    (run,) = identified(runs_of(write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")))
    assert finished(run) is None
    run.folder.mkdir(parents=True)
    for status, fingerprint in (("done", run.fingerprint), ("failed", run.fingerprint), ("done", "another")):
        result = seed_result(0.5, [0.5, 0.5], fingerprint=fingerprint) | {"status": status, "reason": "none"}
        (run.folder / "result.json").write_text(json.dumps(result))
        assert (finished(run) is not None) == ((status, fingerprint) == ("done", run.fingerprint))


def test_the_cost_is_measured_again_when_a_model_changes_or_could_not_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = tmp_path / "head.yaml"
    head.write_text((HEADS / "fcn.yaml").read_text())
    file = write_comparison(tmp_path, "  - head.yaml")
    rows: dict[str, Any] = {"head": {"gflops": 1.0}}
    calls = []

    def process(command: list[str], **options: Any) -> int:
        calls.append(command)
        (tmp_path / "cost.json").write_text(json.dumps({"rows": rows}))
        return 0

    monkeypatch.setattr(subprocess, "call", process)
    measure(identified(runs_of(file)), tmp_path)
    measure(identified(runs_of(file)), tmp_path)
    assert len(calls) == 1
    head.write_text((HEADS / "danet.yaml").read_text())
    rows["head"] = {"reason": "no memory"}
    measure(identified(runs_of(file)), tmp_path)
    assert len(calls) == 2
    measure(identified(runs_of(file)), tmp_path)
    assert len(calls) == 3
    rows["head"] = {"gflops": 1.0}
    for content in ("[]", "null", '"x"', '{"rows": []}', '{"rows": {"head": 1}}', '{"ro'):
        (tmp_path / "cost.json").write_text(content)
        measure(identified(runs_of(file)), tmp_path)
    assert len(calls) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe.yaml -> nowhere.yaml", "there is no file 'nowhere.yaml' \\(recipe\\)"),
        ("fcn.yaml -> fnc.yaml", "there is no file .*fnc.yaml' \\(head fnc\\)"),
        ("images: 2 -> imagse: 2", "imagse"),
        ("images: 2 -> budget: {max_time: 2}", "give max_steps or max_epochs"),
        ("images: 2 -> seeds: []", "at least one head and one seed"),
        ("images: 2 -> seeds: many", "seeds"),
        ("images: 2 -> variants: {near: 3}", "variants.near"),
        ("images: 2 -> overrides: {a: " + 5000 * "[" + 5000 * "]" + "}", "nested (too|more)"),
    ],
)
def test_mistakes_in_the_file(change: str, message: str, tmp_path: Path) -> None:
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}")
    before, after = change.split(" -> ")
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(UserError, match=message):
        runs_of(file)


def test_two_rows_of_one_name(tmp_path: Path) -> None:
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}\n  - {HEADS / 'fcn.yaml'}")
    with pytest.raises(UserError, match="several rows are named fcn"):
        runs_of(file)


def test_two_rows_of_one_folder(tmp_path: Path) -> None:
    head = HEADS / "fcn.yaml"
    apart = [f"  - {{name: {name!r}, config: {head}}}" for name in ("a b", "a_b", "A_b", "a/b", "./a")]
    folders = [run.folder.name.lower() for run in runs_of(write_comparison(tmp_path, "\n".join(apart)))]
    assert len(set(folders)) == len(apart)
    heads = f"  - {{name: a, config: {head}}}\n  - {{name: a-b, config: {head}}}"
    file = write_comparison(tmp_path, heads, "variants: {c: {}, b-c: {}}\n")
    with pytest.raises(UserError, match="several rows would have the folder a-b-c-seed0"):
        runs_of(file)
    with pytest.raises(UserError, match="each only once"):
        runs_of(file, "--seeds=[1, 1]")


def test_a_comparison_imports_nothing_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_module.py").write_text("raise SystemExit('imported')\nclass X: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    evil = "{q: {class_path: hostile_module.X, init_args: {a: 1}}}"
    heads = f"  - {{config: {HEADS / 'fcn.yaml'}, overrides: {evil}}}"
    file = write_comparison(tmp_path, heads, f"overrides: {evil}\nvariants: {{v: {evil}}}\n")
    assert '--q={"class_path": "hostile_module.X", "init_args": {"a": 1}}' in runs_of(file)[0].words


def test_no_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 1
    assert "segvid compare: " in capsys.readouterr().err
    assert main(["compare", "--help"]) == 0


# What the report says


def test_rows_are_means_with_the_spread_of_a_sample() -> None:
    seeds = [seed_result(0.5, [0.4, None]), seed_result(0.7, [0.6, 0.9], 1), seed_result(0.6, [0.5, 0.7], 2)]
    row = summarise("x", seeds, {"gflops": 3.0})
    assert row["mIoU"] == pytest.approx(0.6)
    assert row["mIoU_std"] == pytest.approx(0.1)  # n - 1, not n
    assert row["iou"] == pytest.approx([0.5, 0.8])
    assert row["gflops"] == 3.0
    assert row["status"] == "done"
    assert mean_of_known([None, None]) is None
    assert summarise("x", seeds[:1], {})["mIoU_std"] is None


def test_a_failed_seed_is_said_and_not_averaged() -> None:
    failed = {"name": "x", "seed": 1, "status": "failed", "reason": "out of memory"}
    row = summarise("x", [seed_result(0.5, [0.5, 0.5]), failed], {})
    assert (row["status"], row["reason"], row["mIoU"]) == ("failed", "out of memory", 0.5)


def test_what_is_done_of_a_row_is_shown() -> None:
    later = {"name": "x", "seed": 1, "status": "not run yet"}
    failed = {"name": "x", "seed": 1, "status": "failed", "reason": "out of memory"}
    results = hand_made()
    results["rows"] = [
        {"variant": ""} | summarise("half", [seed_result(0.75, [0.5, 1.0]), later], {"gflops": 2.0}),
        {"variant": ""} | summarise("worse", [seed_result(0.75, [0.5, 1.0]), later, failed], {}),
        {"variant": ""} | summarise("none", [later, later], {}),
        {"variant": ""} | summarise("whole", [seed_result(0.5, [0.5, 0.5]), seed_result(0.5, [0.5, 0.5])], {}),
    ]
    assert [row["status"] for row in results["rows"]] == ["not run yet", "failed", "not run yet", "done"]
    lines = main_table(results)[1]
    assert [line.scores for line in lines] == [
        ["75.00 (1 of 2 seeds)"],
        ["75.00 (1 of 3 seeds, failed: out of memory)"],
        ["not run yet"],
        ["50.00 ± 0.00"],
    ]
    assert [line.figures for line in lines] == [["2.00"], ["-"], [], ["-"]]
    assert [line.best for line in lines] == [[False], [False], [False], [True]], "means over fewer seeds are no best"
    assert "75.00 (1 of 2 seeds)" in html_page(results, [Section(results["rows"], {}, [])])


@pytest.mark.parametrize("score", [0.0, None])
def test_where_all_is_zero_nothing_is_best(score: float | None, tmp_path: Path) -> None:
    results = hand_made()
    done = seed_result(0.0, [0.0, None]) | {"mIoU": score}
    results["rows"] = [{"variant": ""} | summarise(name, [done, done], {}) for name in "ab"]
    assert [line.best for line in main_table(results)[1]] == [[False], [False]]
    write_report(results, tmp_path)
    assert 'class="best"' not in (tmp_path / "report.html").read_text()


def test_the_report_says_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / "a folder")
    monkeypatch.setenv("SEGVID_ALLOW_IMPORT", "mine theirs mine")
    said = command_line(["--config", "x.yaml", "--seeds", "[0, 1]"])
    options = "--config x.yaml --seeds '[0, 1]' --allow_import mine --allow_import theirs"
    assert said == f"cd '{tmp_path}/a folder' && segvid compare {options}"


def test_rows_of_other_classes_have_a_line_each(tmp_path: Path) -> None:
    results = hand_made()
    other = seed_result(0.5, [0.1, 0.2, None], class_names=["<b>", "c", "c"], palette=[[1, 2, 3]] * 3)
    results["rows"] = [
        {"variant": ""} | summarise(name, [seed], {})
        for name, seed in (("x", seed_result(0.5, [0.25, 0.75])), ("y", other))
    ]
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    for line in ("| a | 25.0 | - |", "| \\<b\\> | 75.0 | 10.0 |", "| c | - | 20.0 |", "| c | - | - |"):
        assert line in text
    header, x, y = (line.split(",") for line in csv_text(results).splitlines())
    place = header.index("IoU a")
    assert (x[place : place + 4], y[place : place + 4]) == (["0.25", "0.75", "", ""], ["", "0.1", "0.2", ""])


def hand_made() -> dict[str, Any]:
    failed = {"name": "bad", "seed": 0, "status": "failed", "reason": "1 < 2 & more"}
    rows = [
        {"variant": ""}
        | summarise(
            "<good>", [seed_result(0.5, [0.25, 0.75], checkpoint="a.ckpt")], {"latency_ms": 3.25, "input": [4, 5]}
        ),
        {"variant": ""} | summarise("bad", [failed], {}),
    ]
    facts = {"title": "T & <t>", "created": "now", "command": "segvid", "segvid": "1", "commit": None, "torch": "2"}
    facts |= {"cost_device": "CPU", "recipe": "r", "conventions": "C"}
    return facts | {"budget": {}, "overrides": {}, "images": 1, "rows": rows}


def test_the_page_is_self_contained_and_escaped() -> None:
    results = hand_made()
    page = html_page(
        results, [Section(results["rows"], {"latency_ms": Chart("<svg></svg>", b"png")}, [[("<good>", b"png")]])]
    )
    assert "http" not in page
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)', page))
    assert "<script" not in page
    assert '<meta name="viewport" content="width=device-width' in page
    assert "prefers-color-scheme: dark" in page
    assert "<good>" not in page
    assert "&lt;good&gt;" in page
    assert "failed: 1 &lt; 2 &amp; more" in page
    assert ">50.00<" in page
    assert ">3.2<" in page


def test_markdown_and_csv_of_the_same_results(tmp_path: Path) -> None:
    results = hand_made()
    text = markdown_report(results, [Section(results["rows"], {}, [])], tmp_path)
    assert "| \\<good\\> | 50.00 | 3.2 |" in text
    assert "| bad | failed: 1 \\< 2 & more |" in text
    lines = csv_text(results).splitlines()
    header, good, bad = (line.split(",") for line in lines)
    assert dict(zip(header, good, strict=True))["IoU <b>"] == "0.75"
    assert dict(zip(header, bad, strict=True))["reason"] == "1 < 2 & more"
    results["rows"][1]["reason"] = "[4, 8] | and\n[/more]"
    text = markdown_report(results, [Section(results["rows"], {}, [])], tmp_path)
    assert "| bad | failed: \\[4, 8\\] \\| and\\\\n\\[/more\\] |" in text
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["rows"][0]["mIoU"] == 0.5


def test_a_comparison_in_which_all_failed_has_a_report(tmp_path: Path) -> None:
    results = hand_made()
    results["rows"] = results["rows"][1:]
    write_report(results, tmp_path)
    assert "| bad | failed: 1 \\< 2 & more |" in (tmp_path / "report.md").read_text()
    assert "failed: 1 &lt; 2 &amp; more" in (tmp_path / "report.html").read_text()
    table = console_table(results)
    assert [str(column.header) for column in table.columns] == ["head", "mIoU %"]


def test_a_table_of_variants(tmp_path: Path) -> None:
    def distance(*accuracy: float) -> list[dict[str, float]]:
        return [{"start": 8.0 * i, "pixels": 5, "accuracy": a} for i, a in enumerate(accuracy)]

    results = hand_made()
    failed = {"name": "b", "seed": 0, "status": "failed", "reason": "too | large"}
    results["rows"] = [
        {"variant": "near"}
        | summarise("a", [seed_result(0.5, [0.5, 0.5], distance=distance(1, 0.5))], {"gflops": 1.0}),
        {"variant": "near"} | summarise("b", [seed_result(0.75, [0.5, 1.0], distance=distance(0.25))], {"gflops": 2.0}),
        {"variant": "far"} | summarise("a", [seed_result(0.25, [0.5, 0.0])], {"gflops": 1.0}),
        {"variant": "far"} | summarise("b", [failed], {"gflops": 2.0}),
    ]
    headings, (a, b) = main_table(results)
    assert headings == ["near mIoU %", "far mIoU %", "GFLOPs"]
    assert (a.name, a.scores, a.figures, a.best) == ("a", ["50.00", "25.00"], ["1.00"], [False, True])
    assert (b.name, b.scores, b.figures, b.best) == ("b", ["75.00", "failed: too | large"], ["2.00"], [True, False])
    write_report(results, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| b | 75.00 | failed: too \\| large | 2.00 |" in text
    near, far = text.split("## near")[1].split("## far")
    assert "| head | 0+ px | 8+ px |" in near
    assert "| a | 100 | 50 |" in near
    assert "| b | 25 | - |" in near
    assert "+ px" not in far
    assert (tmp_path / "pictures" / "near_accuracy_against_distance.png").is_file()
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h2>") == 2
    assert page.count("accuracy against distance") == 1
    assert '<td class="failed">failed: too | large</td>' in page
    assert "a,far,0,done" in (tmp_path / "results.csv").read_text()
    assert [str(column.header) for column in console_table(results).columns] == ["head", *headings]


def test_accuracy_by_distance_is_the_mean_of_the_seeds_that_have_it() -> None:
    seeds = [
        [{"start": 0.0, "accuracy": 0.5}, {"start": 8.0, "accuracy": 0.25}],
        [{"start": 0.0, "accuracy": 1.0}],
    ]
    assert mean_by_distance(seeds) == [{"start": 0.0, "accuracy": 0.75}, {"start": 8.0, "accuracy": 0.25}]


# What is run


def test_comparison_from_end_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.yaml"
    head = (
        "model: {class_path: SegmentationTask, init_args: {head: {class_path: CCNetHead, init_args: {dropout: %s}}}}\n"
    )
    broken.write_text(head % "7")
    file = write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}\n  - {HEADS / 'danet.yaml'}\n  - broken.yaml")
    assert main(["compare", "--config", str(file)]) == 1
    rows = results_of(tmp_path)
    assert [rows[name]["status"] for name in ("fcn", "danet", "broken")] == ["done", "done", "failed"]
    assert "dropout probability" in rows["broken"]["reason"]
    for name in ("fcn", "danet"):
        row = rows[name]
        assert 0 <= row["mIoU"] <= 1
        assert row["parameters_m"] > 0
        assert row["gflops"] > 0
        assert row["latency_ms"] > 0
        assert row["memory_mb"] > 0
        assert row["images_per_second"] > 0
        assert row["input"] == [48, 48]
    assert rows["danet"]["gflops"] > rows["fcn"]["gflops"] * 0.5
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figcaption>") == 2 * (2 + 2 + 1)  # two images: image, label, two heads, where DANet looks
    assert "dropout probability" in page
    said = capfd.readouterr().out
    assert "[3/3] broken, seed 0: failed" in said

    # again: what is done stays, what failed is tried again, and is mended
    for name in rows:
        cells = f"{100 * rows[name]['mIoU']:.2f}" if name != "broken" else "failed: "
        assert f"| {name} | {cells}" in (tmp_path / "out/report.md").read_text()
        assert f"\n{name},,0,{rows[name]['status']}," in (tmp_path / "out/results.csv").read_text()
    stamp = (tmp_path / "out/runs/danet-seed0/result.json").stat().st_mtime_ns
    broken.write_text(head % "0.5")
    checkpoint = rows["danet"]["seeds"][0]["checkpoint"]
    extra = f"  - {{name: '[/loaded]', config: {HEADS / 'danet.yaml'}, checkpoint: {checkpoint}}}\nseeds:"
    file.write_text(file.read_text().replace("output:", extra + " [0]\noutput:"))
    assert main(["compare", "--config", str(file)]) == 0
    rows = results_of(tmp_path)
    assert all(row["status"] == "done" for row in rows.values())
    assert rows["broken"]["gflops"] > 0
    assert (tmp_path / "out/runs/danet-seed0/result.json").stat().st_mtime_ns == stamp
    loaded, trained = rows["[/loaded]"]["seeds"][0], rows["danet"]["seeds"][0]
    assert trained["accuracy"][0] < 1, "all is background: any weights would have these figures"
    assert (loaded["mIoU"], loaded["iou"]) == (trained["mIoU"], trained["iou"])
    assert loaded["train_seconds"] is None


def test_probe_from_end_to_end(tmp_path: Path) -> None:
    recipe = (ROOT / "configs/segmentation/recipes/probe.yaml").read_text()
    (tmp_path / "probe.yaml").write_text(
        recipe.replace("max_epochs: 6", "max_epochs: 1").replace("_epoch: 3", "_epoch: 1")
    )
    small = "{data.init_args.train_scenes: 64, data.init_args.val_scenes: 8, data.init_args.level: %s}"
    (tmp_path / "comparison.yaml").write_text(
        f"recipe: probe.yaml\nheads: [{HEADS / 'fcn.yaml'}]\nimages: 1\noutput: {tmp_path / 'out'}\n"
        f"variants: {{cue: {small % 'cue'}, relation: {small % 'relation'}}}\n"
    )
    assert main(["compare", "--config", str(tmp_path / "comparison.yaml")]) == 0
    rows = json.loads((tmp_path / "out/results.json").read_text())["rows"]
    assert [(row["variant"], row["status"]) for row in rows] == [("cue", "done"), ("relation", "done")]
    for row in rows:
        (seed,) = row["seeds"]
        pixels = sum(part["pixels"] for part in seed["distance"])
        right = sum(part["pixels"] * part["accuracy"] for part in seed["distance"])
        assert pixels == 8 * 16 * 36  # scenes, cells, pixels of a cell
        assert right / pixels == pytest.approx(seed["aAcc"])
    assert max(part["start"] for part in rows[1]["distance"]) <= 56  # in a row: seven cells at most
    assert (tmp_path / "out/runs/fcn-cue-seed0/val_distance.csv").is_file()
    assert "### Accuracy by distance" in (tmp_path / "out/report.md").read_text()


def test_a_run_that_was_killed_after_its_last_step_is_only_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan_of_run,) = runs_of(write_comparison(tmp_path, f"  - {HEADS / 'fcn.yaml'}"))
    spec = {"name": "fcn", "variant": "", "seed": 0, "checkpoint": None, "fingerprint": "f", "images": 1}
    spec |= {"words": plan_of_run.words, "folder": str(tmp_path / "run")}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    result = tmp_path / "run" / "result.json"
    assert run_one(str(tmp_path / "spec.json")) == 0
    first = json.loads(result.read_text())
    assert first["accuracy"][0] < 1, "all is background: any weights would have these figures"
    result.unlink()
    monkeypatch.setattr(SegmentationTask, "training_step", lambda *_: pytest.fail("trained again"))
    assert run_one(str(tmp_path / "spec.json")) == 0
    again = json.loads(result.read_text())
    assert (again["iou"], again["steps"], again["status"]) == (first["iou"], 4, "done")
    assert again["images_per_second"] > 0
    # One that is done only gets the pictures that are wanted now.
    before = {file.name: file.read_bytes() for file in (tmp_path / "run/pictures").iterdir()}
    assert sorted(before) == ["0_image.png", "0_mask.png", "0_prediction.png"]
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"images": 2}))
    assert run_one(str(tmp_path / "spec.json")) == 0
    assert json.loads(result.read_text()) == again | {"images": 2}
    after = {file.name: file.read_bytes() for file in (tmp_path / "run/pictures").iterdir()}
    assert after.keys() == before.keys() | {"1_image.png", "1_mask.png", "1_prediction.png"}
    assert {name: after[name] for name in before} == before, "the same weights predict the same"
    (tmp_path / "run/checkpoints/last.ckpt").unlink()
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"images": 3}))
    assert run_one(str(tmp_path / "spec.json")) == 1
    assert json.loads(result.read_text()) == again | {"images": 2}, "without its weights it stays as it is"
