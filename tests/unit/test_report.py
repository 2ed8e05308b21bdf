"""summary.json says what the stages left, in one shape whatever has run; the page says what is missing,
survives damage, and carries text from data only as text. (What a browser makes of it: tests/browser.)"""

import json
import re
import shutil

import pytest

from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.pages.contact_sheet import contact_sheet
from pipeline.report.build import build_report
from tests.report_support import HOSTILE, STAGES, fabricate_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = fabricate_run(tmp_path_factory.mktemp("run"))
    build_report(run)
    return run


def summary_of(run):
    build_report(run)
    return json.loads((run / "summary.json").read_text())


def test_the_summary_of_a_whole_run(run):
    summary = summary_of(run)
    seconds = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    expected = {name: 12.5 * (i + 1) * n for i, (name, n) in enumerate(STAGES.items()) if name != "report"}
    assert 0 < seconds.pop("report") < 600
    assert seconds == expected
    assert {stage["status"] for stage in summary["stages"].values()} == {"done"}
    causes = {"http_404": 214, "opt_out": 97, "timeout": 80, "not_an_image": 61, HOSTILE: 12}
    assert summary["ingest"] == {"rows": 6354, "ok": 5890, "failed_by_cause": causes}
    assert list(summary["ingest"]["failed_by_cause"].values()) == [214, 97, 80, 61, 12]
    assert summary["train"] == {
        "steps": 600, "final_loss": 0.4612, "tau": 0.0209, "log_normalizer_mse": 0.0276,
        "samples_per_second": 412.0, "npn_share": 0.11,
    }  # fmt: skip
    assert summary["evaluate"]["scenes_unseen"] == {"score": 0.6125, "chance": 0.0417}
    assert set(summary["evaluate"]) == {"scenes_unseen", "scenes_retrieval", "scenes_groups"}
    ids = {"parent": "0" * 32, "ingest": "1" * 32, "train": "2" * 32, "evaluate": "3" * 32}
    assert summary["mlflow"] == {"tracking_uri": f"sqlite:///{run}/mlflow.db", "run_ids": ids}
    assert summary["report"] == str(run / "report.html")


@pytest.mark.parametrize("stopped_after", [*range(len(STAGES))])
def test_a_run_stopped_after_any_stage_has_a_summary_of_the_same_shape(tmp_path, stopped_after):
    names = list(STAGES)
    run = fabricate_run(tmp_path, {name: STAGES[name] for name in names[:stopped_after]})
    summary = summary_of(run)
    assert set(summary) == {"stages", "ingest", "train", "evaluate", "mlflow", "report"}
    done = [name for name, stage in summary["stages"].items() if stage["status"] == "done"]
    assert done == [*names[:stopped_after], "report"]
    assert (summary["ingest"] is None) == (stopped_after <= names.index("manifest"))
    assert (summary["train"] is None) == (stopped_after <= names.index("train"))
    assert (summary["evaluate"] is None) == (stopped_after <= names.index("evaluate"))


def test_a_stage_of_which_some_elements_are_done_is_incomplete(tmp_path):
    run = fabricate_run(tmp_path, {"fabricate": 1, "plan": 1, "download": 3})
    assert summary_of(run)["stages"]["download"] == {"status": "incomplete", "seconds": 3 * 37.5}
    assert ">3 of 4<" in (run / "report.html").read_text()


def test_a_metric_that_an_objective_lacks_is_null(tmp_path):
    run = fabricate_run(tmp_path)
    path = run / "train" / "summary.json"
    trained = json.loads(path.read_text())
    del trained["npn_share"], trained["log_normalizer_mse"]
    write_json(path, {**trained, "tau": None})
    train = summary_of(run)["train"]
    assert (train["npn_share"], train["log_normalizer_mse"], train["tau"]) == (None, None, None)


def test_a_task_that_failed_is_on_the_page_with_its_reason(tmp_path):
    run = fabricate_run(tmp_path)
    (run / "results" / "scenes_groups.json").unlink()
    write_json(run / "results" / "scenes_groups.error.json", {"task": "scenes_groups", "error": "torn tar"})
    assert set(summary_of(run)["evaluate"]) == {"scenes_unseen", "scenes_retrieval"}
    assert "failed: torn tar" in (run / "report.html").read_text()


def test_a_task_without_a_chance_has_a_row(tmp_path):
    run = fabricate_run(tmp_path)
    path = run / "results" / "scenes_unseen.json"
    write_json(path, {**json.loads(path.read_text()), "chance": None})
    assert summary_of(run)["evaluate"]["scenes_unseen"] == {"score": 0.6125, "chance": None}
    row = (run / "report.html").read_text().partition("Unseen combinations")[2].partition("</tr>")[0]
    assert "61.2" in row
    assert "chance" not in row


def test_a_partial_mean_is_not_shown_as_the_average(tmp_path):
    run = fabricate_run(tmp_path)
    path = run / "results" / "aggregate.json"
    whole = json.loads(path.read_text())
    write_json(path, {**{key: whole[key] for key in whole if key != "average"}, "partial_mean": 0.1234, "of": 38})
    summary_of(run)
    assert "<small>3 of 38 tasks: partial mean 12.3" in (run / "report.html").read_text()


def test_scores_of_other_weights_are_not_mixed_in(tmp_path):
    run = fabricate_run(tmp_path)
    results = run / "results"
    whole = {path.stem: json.loads(path.read_text()) for path in results.glob("scenes_*.json")}
    newer = {**whole["scenes_unseen"], "score": 0.99, "checkpoint_sha256": "f" * 60}
    write_json(results / "scenes_unseen.json", newer)
    write_json(results / "left_over.json", {**whole["scenes_groups"], "task": "left_over"})
    # With an average, what it is of; a task that was evaluated on other weights since is not.
    assert set(summary_of(run)["evaluate"]) == {"scenes_retrieval", "scenes_groups"}
    (results / "aggregate.json").unlink()  # an evaluation that stopped half way
    assert set(summary_of(run)["evaluate"]) == {"scenes_retrieval", "scenes_groups", "left_over"}
    exported = run / "model" / "export.json"
    write_json(exported, {**json.loads(exported.read_text()), "weights_sha256": "f" * 60})
    assert summary_of(run)["evaluate"] == {"scenes_unseen": {"score": 0.99, "chance": newer["chance"]}}
    exported.unlink()
    assert summary_of(run)["evaluate"] is None


@pytest.mark.parametrize(
    "damaged", ["train/summary.json", "stages/train.0.json", "mlflow.json", "corpora/demo/manifest.json"]
)
@pytest.mark.parametrize("content", [b"", b'{"torn": ', b"[]"])
def test_a_damaged_file_counts_as_absent(run, tmp_path, damaged, content):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / damaged).write_bytes(content)
    summary = summary_of(copy)
    absent = {
        "train/summary.json": summary["train"],
        "stages/train.0.json": summary["stages"]["train"]["seconds"],
        "mlflow.json": summary["mlflow"],
        "corpora/demo/manifest.json": summary["ingest"],
    }
    assert absent[damaged] is None


def test_no_plan_is_explained_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="is no run directory"):
        build_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_refers_to_nothing_outside_and_carries_hostile_text_escaped(run):
    page = (run / "report.html").read_text()
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    assert not re.findall(r"""(?:src|href)=["']?(?:https?:|//)""", page)
    curves = json.loads(re.search(r'id="curves-data">(.*?)</script>', page, flags=re.S).group(1))
    assert len(curves["figures"]) == 7
    assert len(page) < 300_000, "thumbnails, one plotting library and the curves"


def test_the_commands_can_be_pasted(run):
    page = (run / "report.html").read_text()
    assert f"neuclip ui {run}" in page
    assert f"neuclip run {run}/recipe.yaml --workdir NEW_FOLDER" in page
    assert f"neuclip train &#39;{run}/a folder&#39;" in page


def test_the_contact_sheet_spans_the_corpus_and_skips_what_is_no_image(run):
    sheet = contact_sheet(run / "corpora" / "demo")
    assert len(sheet) == 23  # 24 positions, and the last sample is no image
    assert sheet[0].caption.startswith(HOSTILE)
    assert sheet[-1].caption.endswith("number 37")
    assert all(thumbnail.source.startswith("data:image/webp;base64,") for thumbnail in sheet)
    assert len(contact_sheet(run / "corpora" / "demo", count=100)) == 39
    assert contact_sheet(run) == []
