"""Whatever stands in a file of a run, no command ends with a traceback: the file is named, and the rest is shown."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.files import fingerprint, write_json
from pipeline.launch import run as launch_run
from pipeline.report import build
from pipeline.tracking import mirror
from tests.chain_support import fake_stages
from tests.damaged_support import (
    DAMAGE,
    FILES,
    MISSING,
    Place,
    Server,
    fabricate,
    places,
    read_document,
    refusal,
    with_damage,
    write_document,
)

WRONG = {**DAMAGE, "missing": MISSING}


WORDS: dict[str, list[tuple[Place, Any, str]]] = {
    "train/summary.json": [
        ((), [], "should be an object with fields, found a list"),
        (("samples_seen",), -5, "samples_seen: expected `int` >= 0, found -5"),
        (("samples_seen",), MISSING, "samples_seen is missing"),
        (("final_loss",), "many", "final_loss: expected `float | null`, got `str`, found 'many'"),
        (("other",), 2**63, "other should be a number of at most 64 bits, found 9223372036854775808"),
    ],
    "results/aggregate.json": [
        (("average",), math.nan, "average: expected `float` >= 0.0, found nan"),
        (("average",), None, "average: expected `float`, got `null`, found nothing (null)"),
        (("scores", "task0", "score"), 1.5, "a value in scores: expected `float` <= 1.0"),
    ],
    "plan.json": [
        (("stages", 0, "elements"), "4", "stages[0].elements: expected `int`, got `str`, found '4'"),
        (("stages", 0, "name"), MISSING, "stages[0].name is missing"),
        (("config", "corpus"), True, "config.corpus: expected `object`, got `bool`, found True"),
    ],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fabricate(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def runs(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two runs, `broken` and `good`."""
    monkeypatch.setattr(launch_run, "build_stages", fake_stages)
    monkeypatch.setattr(build, "write_figures", lambda *told: None)  # of matplotlib, and slow
    monkeypatch.setattr(mirror, "MlflowServer", Server)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("broken", "good"):
        shutil.copytree(whole, tmp_path / "runs" / name)
    return tmp_path / "runs"


def damage(path: Path, document: Any, place: Place, value: Any) -> None:
    """Write it; a plan with a fingerprint that fits, as of somebody who knows."""
    changed = with_damage(document, place, value)
    if path.name == "plan.json" and isinstance(changed, dict) and place[:1] != ("fingerprint",):
        changed["fingerprint"] = fingerprint({key: inner for key, inner in changed.items() if key != "fingerprint"})
    write_document(path, changed)


def neuclip(*arguments: object) -> Result:
    """Runs the command; whatever it says, it says as a command does."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def sync(folder: Path) -> None:
    """What `neuclip sync` does, without a server; it shows a UserError to its user, and hides what else is raised."""
    with suppress(UserError):
        mirror.Mirror(folder).advance()


@pytest.mark.parametrize("file", FILES)
def test_every_damage_to_every_field_is_read_or_named(whole: Path, tmp_path: Path, file: str) -> None:
    kind, path, document = FILES[file], tmp_path / Path(file).name, read_document(whole / file)
    for place, (name, value) in itertools.product(places(document), WRONG.items()):
        write_document(path, with_damage(document, place, value))
        if path.suffix == ".jsonl":
            assert kind.lines(path) == [line for line in kind.lines(path) if not kind.problem(line)]
        elif said := refusal(kind, path):
            assert said.startswith(f"{path}: "), (place, name)
            assert said.endswith(kind.mend), (place, name)
            assert not place or str(place[0]) in said or ": is no YAML: " in said, (place, name)


@pytest.mark.parametrize(("file", "places_and_words"), WORDS.items())
def test_a_field_is_named_with_what_stands_there(
    whole: Path, tmp_path: Path, file: str, places_and_words: list[tuple[Place, Any, str]]
) -> None:
    for place, value, words in places_and_words:
        path = tmp_path / Path(file).name
        write_document(path, with_damage(read_document(whole / file), place, value))
        assert refusal(FILES[file], path) == f"{path}: {words}. {FILES[file].mend}"


@pytest.mark.parametrize("file", [*FILES, "train/metrics.jsonl", "train/heartbeats/00000.json"])
def test_no_command_ends_with_a_traceback(runs: Path, tmp_path: Path, file: str) -> None:
    broken, good = runs / "broken", runs / "good"
    path, document = broken / file, read_document(broken / file)
    slow = itertools.cycle(
        [
            ["report", broken],
            ["compare", broken, good, "--html", tmp_path / "page.html"],
            ["watch", broken, "--once"],
            ["runs", runs, "--where", "average>0.1 and seed=0", "--sort", "loss"],
        ]
    )
    wrong = itertools.cycle(WRONG.items())
    for place in places(document):
        name, value = next(wrong)
        damage(path, document, place, value)
        fast = [["runs", runs, "--json"], ["runs", runs, "--csv", "--sort", "-samples"], ["status", broken, "--json"]]
        sync(broken)
        for arguments in (*fast, ["logs", broken, "make", "1"], next(slow)):
            try:
                neuclip(*arguments)
            except Exception as error:
                raise AssertionError(f"{arguments[0]} with {file}: {place} being {name}") from error


def test_who_lists_or_compares_sees_the_others_and_which_one_is_damaged(runs: Path, tmp_path: Path) -> None:
    summary = runs / "broken/train/summary.json"
    damage(summary, read_document(summary), ("final_loss",), "many")
    said = "train/summary.json: final_loss: expected `float | null`, got `str`, found 'many'. Remove it"
    for arguments in (["runs", runs], ["runs", runs, "--csv"]):
        listed = neuclip(*arguments)
        assert "good" in listed.stdout
        assert listed.stderr.startswith("warning: broken: ")
        assert said in listed.stderr
    rows = {row["run"]: row for row in json.loads(neuclip("runs", runs, "--json").stdout)}
    assert said in rows["broken"]["damaged"]
    assert (rows["good"]["damaged"], rows["good"]["state"]) == (None, "evaluated")
    compared = neuclip("compare", *sorted(runs.iterdir()), "--html", tmp_path / "page.html")
    assert compared.exit_code == 0
    assert "final_loss: expected" in " ".join(compared.stdout.split())
    assert "final_loss: expected" in (tmp_path / "page.html").read_text()


def test_a_report_says_what_it_left_out(runs: Path) -> None:
    manifest = runs / "broken/corpora/demo/manifest.json"
    damage(manifest, read_document(manifest), ("rows",), -5)
    done = neuclip("report", runs / "broken")
    assert done.exit_code == 0
    page = (runs / "broken/report.html").read_text()
    assert "manifest.json: rows: expected `int` &gt;= 0, found -5." in page
    assert "Ingestion has not published a manifest yet." in page


def test_mlflow_gets_the_rest(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    summary = runs / "broken/train/summary.json"
    damage(summary, read_document(summary), ("samples_seen",), [])
    way = mirror.Mirror(runs / "broken")
    assert way.advance().points > 50
    way.advance()
    told = [record.getMessage() for record in caplog.records if "samples_seen" in record.getMessage()]
    assert len(told) == 1
    assert "train/summary.json: samples_seen: expected `int`, got `array`, found a list" in told[0]


def test_runs_of_mlflow_that_cannot_be_told_are_not_begun_anew(runs: Path) -> None:
    (runs / "broken/mlflow.json").write_text('{"id": "1", "tracking_uri": 7}')
    with pytest.raises(UserError, match=r"mlflow\.json: .* put it back"):
        mirror.Mirror(runs / "broken")
    assert (runs / "broken/mlflow.json").read_text() == '{"id": "1", "tracking_uri": 7}'


def test_a_folder_whose_name_is_no_text_is_shown(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_run, "build_stages", fake_stages)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/runs/b\xffrds"))
    shutil.copytree(whole, folder)
    write_json(tmp_path / "name.json", {"folder": str(folder)})
    assert read_document(tmp_path / "name.json") == {"folder": str(folder)}
    listed = [
        subprocess.run(
            [sys.executable, "-c", f"import sys; from pipeline.cli import main; main({arguments!r} + sys.argv[1:])",
             str(folder.parent)],
            capture_output=True,
        )
        for arguments in (["runs", "--json"], ["runs", "--csv"], ["runs"], ["compare"])
    ]  # fmt: skip
    assert [done.returncode for done in listed] == [0, 0, 0, 0], listed[0].stderr
    assert json.loads(listed[0].stdout)[0]["run"] == "b\udcffrds"
    for arguments in (
        ["status", folder],
        ["status", folder, "--json"],
        ["watch", folder, "--once"],
        ["report", folder],
    ):
        assert neuclip(*arguments).exit_code == 0
