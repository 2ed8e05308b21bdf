"""`neuclip runs`: which folders are runs, what is read of each, which rows meet a condition, in which order."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.report.compare.comparison import compare
from pipeline.report.compare.find import find_runs
from pipeline.report.compare.listing import row, select
from pipeline.report.compare.page import render
from pipeline.report.compare.run import Run
from pipeline.run_files import RECIPE
from tests.compare_support import fabricate_member, fabricate_sweep
from tests.report_support import HOSTILE

opened: list[str] = []
counting = False


def note_open(event, arguments):
    if counting and event == "open" and isinstance(arguments[0], str):
        opened.append(arguments[0])


sys.addaudithook(note_open)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fabricate_sweep(root / "sweep", {"neuclip": 0.55, "openclip": 0.5}, seeds=2)
    fabricate_member(root / "alone" / "birds", "siglip", level=0.3, batch=128)
    (root / "notes").mkdir()
    (root / ".hidden").mkdir()
    fabricate_member(root / ".hidden" / "old")
    return root


def names(rows):
    return [entry["run"] for entry in rows]


def test_runs_are_found_in_sweeps_in_folders_and_by_pattern_each_once(root):
    members = [f"sweep/objective={o},seed={s}" for o in ("neuclip", "openclip") for s in (0, 1)]
    assert [run.name for run in find_runs([root])] == ["alone/birds", *members]
    assert [run.name for run in find_runs([root / "sweep"])] == [name.removeprefix("sweep/") for name in members]
    assert [run.name for run in find_runs([root / "alone" / "birds"])] == ["birds"]
    chosen = find_runs([str(root / "sweep/members/*seed=1"), root / "sweep/members/objective=openclip,seed=1"])
    assert [run.name for run in chosen] == ["objective=neuclip,seed=1", "objective=openclip,seed=1"]
    with pytest.raises(UserError, match="no run in"):
        find_runs([root / "notes"])


def test_a_corpus_beside_the_runs_is_none_though_it_has_a_plan(root, tmp_path):
    corpus = tmp_path / "corpora" / "birds"
    corpus.mkdir(parents=True)
    for name in ("corpus.yaml", "plan.json"):
        (corpus / name).write_text("{}")
    (tmp_path / "runs").symlink_to(root)
    assert not any("corpora" in run.name for run in find_runs([tmp_path]))
    with pytest.raises(UserError, match="no run in"):
        find_runs([corpus])


def test_links_to_runs_are_followed_and_circles_end(root, tmp_path, monkeypatch):
    for name in ("again", "and again"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "birds").symlink_to(root / "alone" / "birds")
    scanned, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: scanned.append(folder) or scandir(folder))
    assert [run.name for run in find_runs([tmp_path])] == ["birds"]
    assert len(scanned) == 1


def test_a_row_says_what_the_files_say(root):
    folder = root / "alone" / "birds"
    summary, aggregate = (read_json(folder / name) for name in ("train/summary.json", "results/aggregate.json"))
    assert row(find_runs([folder])[0]) == {
        "run": "birds", "state": "evaluated", "objective": "siglip", "corpus": "demo", "seed": 0,
        "samples": 200 * 128, "seconds": 64.0, "gpu_hours": 8 * 64 / 3600, "cpu_hours": 0.0,
        "loss": summary["final_loss"], "average": aggregate["average"], "partial_mean": None, "tasks": 3, "of": 3,
        "damaged": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("objective=neuclip", 2),
        ("objective = openclip and seed=1", 1),
        ("objective in (neuclip, siglip)", 3),
        ("average>0.6", 4),
        ("not objective=neuclip", 3),
        ("train.global_batch_size>=128", 1),
        ("train.precision=fp32 and train.micro_batch_size_per_gpu is None", 5),
        ("train.compile", 0),
        ("partial_mean>0", 0),
        ("state=evaluated and gpu_hours<1 and corpus='demo'", 5),
        ("run='alone/birds'", 1),
        ("1<seed", 0),
    ],
)
def test_a_condition_over_columns_and_settings(root, where, expected):
    assert len(select(find_runs([root]), where, None)) == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("averge>0.2", "no run has 'averge'; columns are run, state"),
        ("average>", "cannot be read"),
        ("average>'high'", "cannot be applied to average"),
        ("objective", "cannot be applied to objective"),
        ("__import__('os').system('x')=1", "is no number"),
        ("1", "is not a condition"),
    ],
)
def test_a_condition_without_meaning_is_explained(root, where, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        select(find_runs([root]), where, None)


def test_rows_are_sorted_by_columns_and_settings_and_what_lacks_them_is_last(root, tmp_path):
    by_average = select(find_runs([root]), None, "-average")
    assert [entry["average"] for entry in by_average] == sorted((e["average"] for e in by_average), reverse=True)
    assert names(select(find_runs([root]), None, "-train.global_batch_size"))[0] == "alone/birds"
    fabricate_member(tmp_path / "a", seed=1)
    fabricate_member(tmp_path / "b", seed=0)
    (tmp_path / "a" / "results" / "aggregate.json").unlink()
    for key in ("average", "-average"):
        assert names(select(find_runs([tmp_path]), None, key)) == ["b", "a"]
    with pytest.raises(UserError, match="no column 'averag' to sort by"):
        select(find_runs([root]), None, "averag")


def test_runs_that_lack_parts_are_shown_with_what_they_have(tmp_path):
    for name in ("evaluated", "trained", "training", "stopped", "failed", "planned", "damaged"):
        fabricate_member(tmp_path / name)
    for name in ("trained", "training", "stopped", "failed", "planned"):
        (tmp_path / name / "results" / "aggregate.json").unlink()
    for name in ("training", "stopped", "failed", "planned"):
        (tmp_path / name / "train" / "summary.json").unlink()
    (tmp_path / "planned" / "train" / "metrics.jsonl").unlink()
    now = time.time()
    for name, beat, failed in (("training", now, ""), ("stopped", now - 3600, ""), ("failed", now, "out of memory")):
        path = tmp_path / name / "train" / "heartbeats" / "00000.json"
        write_json(path, {"rank": 0, "failed": failed})
        os.utime(path, (beat, beat))
    for file in ("recipe.yaml", "train/summary.json", "results/aggregate.json"):
        (tmp_path / "damaged" / file).write_bytes(b'{"torn')
    rows = {entry["run"]: entry for entry in select(find_runs([tmp_path]), None, None)}
    assert {name: entry["state"] for name, entry in rows.items()} == {
        "evaluated": "evaluated", "trained": "trained", "training": "training", "stopped": "stopped",
        "failed": "failed", "planned": "not trained", "damaged": "stopped",
    }  # fmt: skip
    assert rows["training"]["samples"] == 12_800
    assert rows["training"]["gpu_hours"] == pytest.approx(8 * 32 / 3600)
    assert rows["planned"]["samples"] is None
    assert (rows["damaged"]["objective"], rows["damaged"]["average"]) == ("unknown", None)
    missing = {run.name: run.missing for run in find_runs([tmp_path])}
    assert missing["evaluated"] == []
    assert missing["training"] == ["training after 12,800 of 12,800 samples", "no average, scores of 3 tasks"]
    assert missing["planned"] == ["nothing logged by training", "no average, scores of 3 tasks"]


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"train": {"steps": "x"}, "corpus": [], "evaluate": 1, "scores": 3}']
)
def test_damage_to_any_file_costs_what_it_said_and_no_more(root, tmp_path, content):
    shutil.copytree(root / "sweep", tmp_path / "sweep")
    member = tmp_path / "sweep" / "members" / "objective=neuclip,seed=1"
    damaged = [path for path in member.rglob("*") if path.is_file()]
    damaged += [tmp_path / "sweep" / name for name in ("environment.json", "corpora/demo/manifest.json")]
    assert len(damaged) == 10
    for path in damaged:
        whole = path.read_bytes()
        path.write_bytes(content)
        runs = find_runs([tmp_path / "sweep"])
        assert len(select(runs, None, "-average")) == 4
        assert render(compare(runs, baseline="objective=openclip,seed=0")).count("</html>") == 1
        path.write_bytes(whole)


def test_of_a_finished_run_three_small_files_are_opened(tmp_path):
    global counting
    for i in range(50):
        fabricate_member(tmp_path / f"run{i:02d}", seed=i, steps=10)
    opened.clear()
    counting = True
    try:
        rows = select(find_runs([tmp_path]), "objective=neuclip", "-average")
    finally:
        counting = False
    assert len(rows) == 50
    of_runs = [path for path in opened if path.startswith(str(tmp_path)) and os.path.exists(path)]
    assert len(of_runs) == 3 * 50
    assert {os.path.basename(path) for path in of_runs} == {"recipe.yaml", "summary.json", "aggregate.json"}


TREES = st.dictionaries(
    st.sampled_from(["seed", "train", "name", "objectives"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
)


@settings(max_examples=40)
@given(TREES, st.sampled_from([None, False, True]))
def test_a_recipe_is_read_as_yaml_reads_it(tree, flow):
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=flow)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text(text, encoding="utf-8", newline="")
        run = Run(Path(folder), "run")
        if RECIPE.problem(yaml.safe_load(text)):  # it is named, and read no further
            assert (run.config, len(run.read.problems)) == ({}, 1)
        else:
            assert (run.config, run.read.problems) == (yaml.safe_load(text), [])


@pytest.mark.parametrize(
    "text",
    [
        'name: "a\nseed: 1"\nobjective: x\n',
        "train: {steps: 1,\nseed: 2}\n",
        "---\nname: x\n...\n",
        "# by hand\nname: &n x\n\nobjective: *n\n",
        "name: |\n  seed: 3\n  x\nseed: 4",
        "name: x\nname: y\n",
        "tags:\n- a\n- b\nseed: 1",
    ],
)
def test_a_recipe_written_by_hand_is_read_as_yaml_reads_it(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert Run(tmp_path, "run").config == yaml.safe_load(text)


def test_listing_loads_no_library_that_takes_seconds(root):
    heavy = "{'torch', 'pandas', 'pyarrow', 'pydantic', 'matplotlib', 'numpy', 'scipy', 'mlflow', 'jinja2'}"
    listed = f"from pipeline.cli import main; main(['runs', {str(root)!r}, '--sort=-average'], standalone_mode=False)"
    script = f"{listed}; import sys; found = {heavy} & sys.modules.keys(); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "alone/birds" in done.stdout


def test_the_command_prints_a_table_csv_and_json(root):
    def run(*arguments):
        result = CliRunner().invoke(main, ["runs", str(root), *arguments])
        assert result.exit_code == 0, result.output
        return result.output

    table = run("--sort", "-average")
    assert "alone/birds" in table.splitlines()[-1]
    rows = list(csv.DictReader(io.StringIO(run("--csv"))))
    documents = json.loads(run("--json"))
    assert [r["run"] for r in rows] == names(documents)
    assert [float(r["average"]) for r in rows] == [d["average"] for d in documents]
    assert [d["seed"] for d in documents] == [0, 0, 1, 0, 1]
    refused = CliRunner().invoke(main, ["runs", str(root), "--where", "foo=1"])
    assert refused.exit_code == 2
    assert refused.output.startswith("error: the condition 'foo=1'")


def test_numbers_that_json_lacks_are_words(tmp_path):
    summary = fabricate_member(tmp_path / "a") / "train" / "summary.json"
    write_json(summary, {**read_json(summary), "final_loss": float("nan")})
    (entry,) = json.loads(CliRunner().invoke(main, ["runs", str(tmp_path), "--json"]).output)
    assert entry["loss"] == "nan"
    assert " nan " in CliRunner().invoke(main, ["runs", str(tmp_path)]).output


def test_a_hostile_name_is_one_line_of_text_on_the_terminal(tmp_path):
    name = "a\x1b[31m\nb [bold]x[/bold] \u202e" + "long" * 40
    fabricate_member(tmp_path / name, name=HOSTILE, model={"name": "\x1b]0;owned\x07" + HOSTILE})
    fabricate_member(tmp_path / "other", seed=1)
    for command in ("runs", "compare"):
        output = CliRunner().invoke(main, [command, str(tmp_path)]).output
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert "\x07" not in output
        assert "[bold]x[/bold]" in output.replace("\n", "")
