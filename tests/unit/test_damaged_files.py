"""Whatever stands in a file that is read, nobody sees a traceback, and what is whole is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chain_support import fake_run
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.cluster import load_cluster
from pipeline.config.loader import load_recipe, read_yaml
from pipeline.errors import UserError
from pipeline.evaluation.aggregate import aggregate
from pipeline.evaluation.results import model_stamp, read_result
from pipeline.files import read_object, write_json
from pipeline.launch.attempts import begin_attempt, end_attempt, read_attempts
from pipeline.launch.outcome import print_outcome
from pipeline.tracking.jsonl import read_points

DEEP = b"[" * 100_000
LINES = [
    b"", b"5", b"null", b"[]", b"{}", b"[{}]", b'"begin"', b"\xff\x00", DEEP, b'{"event": "begin"}',
    b'{"attempt": [], "event": "begin", "time": 0, "host": "a", "pid": 1, "job": null}',
    b'{"attempt": 1, "event": "begin", "time": "now", "host": "a", "pid": 1, "job": null}',
    b'{"attempt": 1e999, "event": "begin", "time": 0, "host": "a", "pid": 1, "job": null}',
    b'{"attempt": 1, "event": "end", "time": 0}',
    b'{"step": 1e999, "samples_seen": 1, "time": 1, "metrics": {}}',
    b'{"step": 1, "samples_seen": 1, "time": 1, "metrics": {"a": 1' + b"0" * 400 + b"}}",
    b'{"step": 1' + b"0" * 5000 + b', "samples_seen": 1, "time": 1, "metrics": {}}',
    b'{"step": 1, "samples_seen": 1, "time": 1, "metrics": [1]}',
    b'{"step": -1, "samples_seen": 1, "time": 1, "metrics": {}}',
    b'{"step": 1, "samples_seen": -1, "time": 1, "metrics": {}}',
    b'{"step": 1, "samples_seen": 1' + b"0" * 30 + b', "time": 1, "metrics": {}}',
    b'{"step": 1, "samples_seen": 1, "time": 1e300, "metrics": {}}',
    b'{"step": 1, "samples_seen": 1, "time": NaN, "metrics": {}}',
]  # fmt: skip
POINT = b'{"step": 7, "samples_seen": 70, "time": 1.5, "metrics": {"a": "nan"}}\r\n'


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_of_nonsense_is_passed_over(tmp_path: Path, line: bytes) -> None:
    attempts, points = tmp_path / "attempts.jsonl", tmp_path / "metrics.jsonl"
    attempts.write_bytes(line + b"\n")
    points.write_bytes(line + b"\n" + POINT)
    end_attempt(attempts, begin_attempt(attempts, {"id": "7"}), "failed", 3, "no ink")
    (attempt,) = read_attempts(attempts)
    assert (attempt.number, attempt.status, attempt.exit_status, attempt.reason) == (1, "failed", 3, "no ink")
    assert [point.step for point in read_points(points)] == [7]


@given(st.text(st.characters(exclude_categories=()), max_size=20))
def test_an_attempt_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, reason: str) -> None:
    """Line breaks that only Unicode knows, and names of files that are no text, included."""
    file = tmp_path_factory.mktemp("run") / "attempts.jsonl"
    end_attempt(file, begin_attempt(file, {"nodes": reason}), "failed", 1, reason)
    (attempt,) = read_attempts(file)
    assert (attempt.job, attempt.status, attempt.reason) == ({"nodes": reason}, "failed", reason)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"3", b'{"a"', DEEP], ids=range(6))
def test_an_object_that_is_none_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "marker.json").write_bytes(content)
    assert read_object(tmp_path / "marker.json") is None


NO_OBJECT = [b"", b"{", b"[]", b"null", b"\xff", b'{"task": "birds", "error": ["no"], "weights_sha256": 5}']


@pytest.mark.parametrize("content", NO_OBJECT, ids=range(len(NO_OBJECT)))
def test_results_and_models_with_damaged_files_say_so(tmp_path: Path, content: bytes) -> None:
    out, model = tmp_path / "results", tmp_path / "model"
    model.mkdir()
    out.mkdir()
    (tmp_path / "tasks.yaml").write_text(
        "birds: {kind: classification, title: Birds, size: 4, classes: 2, main_metric: acc1, chance: 0.5}\n"
    )
    (out / "birds.json").write_bytes(content)
    assert read_result(out, "birds") is None
    (out / "birds.error.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"birds: .*birds(\.error)?\.json: (is no JSON|should be an object|error: expected)"
    ):
        aggregate(out, tmp_path)
    for name in ("open_clip_model.safetensors", "open_clip_config.json"):
        (model / name).write_bytes(b"{}")
    assert model_stamp(model, "fp32")["precision"] == "fp32"
    (model / "export.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"export\.json: (is no JSON|should be an object|weights_sha256: expected).* writes it again"
    ):
        model_stamp(model, "fp32")


def test_an_outcome_whose_summary_is_damaged_says_how_to_get_it(tmp_path: Path, capsys: Any) -> None:
    run = fake_run(tmp_path)
    for stage in run.stages:
        for element in range(stage.elements):
            write_json(run.paths.marker(stage.name, element), {"fingerprint": "", "outputs": {}, "seconds": 1})
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json: is no JSON: .*`neuclip report RUN` writes it again"):
        print_outcome(run, did_something=False)
    scores = {"birds": {"score": 0.5, "chance": None}, "fish": {"score": 0.5, "chance": 0.25}}
    write_json(tmp_path / "summary.json", {"stages": {}, "train": None, "evaluate": scores, "report": "report.html"})
    print_outcome(run, did_something=False)
    assert "2.0" in capsys.readouterr().out


NO_YAML = [b"a: 2024-99-99", b"a: 0b_", b"\xff\xfe\x00", b"[" * 5000, b"a: \0", b"%", b"? [a]: b"]


@pytest.mark.parametrize("read", [load_recipe, load_cluster, read_yaml], ids=lambda read: read.__name__)
@pytest.mark.parametrize("content", NO_YAML, ids=range(len(NO_YAML)))
def test_yaml_that_is_none_is_named(tmp_path: Path, content: bytes, read: Callable[[Path], Any]) -> None:
    file = tmp_path / "site.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"site\.yaml"):
        read(file)


@pytest.mark.parametrize("value", ["2024-99-99", "0b_", "[" * 5000, "\0"], ids=range(4))
def test_an_override_that_is_no_yaml_is_named(value: str) -> None:
    with pytest.raises(UserError, match=r"override 'train\.steps="):
        load_recipe("demo", [f"train.steps={value}"])
