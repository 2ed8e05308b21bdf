"""How far stages are, from every mixture of markers, attempts, lives and locks that a run directory can hold."""

import json

import pytest

from pipeline.files import write_json
from pipeline.locks import exclusive
from pipeline.tracking.states import Progress, beginnings, latest, of_stages, of_training, together
from tests.tracking_support import attempt, begin_life


def test_what_one_element_left_decides_its_state(tmp_path):
    for element, status in enumerate(["done", "failed", "stopped", "blocked", None]):
        attempt(tmp_path, "download", element, status)
    states = [of_stages(tmp_path, [("download", element)]).state for element in range(6)]
    assert states == ["finished", "failed", "preempted", "scheduled", "failed", "scheduled"]
    with exclusive(tmp_path / "stages/download.4.lock", "element 4"):
        assert of_stages(tmp_path, [("download", 4)]).state == "running"
    (tmp_path / "stages/download.0.json").unlink()  # what it was made from changed, and it is to be done again
    assert of_stages(tmp_path, [("download", 0)]).state == "scheduled"
    write_json(tmp_path / "stages/plan.0.json", {"status": "done", "started_at": 5.0, "seconds": 2.5})
    assert of_stages(tmp_path, [("plan", 0)]) == Progress("finished", 5.0, 7.5)


def test_an_element_killed_between_its_marker_and_its_last_word_is_done(tmp_path):
    attempt(tmp_path, "train", 0, "failed")
    attempt(tmp_path, "train", 0, None)
    assert of_stages(tmp_path, [("train", 0)]).state == "failed"
    write_json(tmp_path / "stages/train.0.json", {"status": "done", "started_at": 1500.0, "seconds": 700.0})
    found = of_stages(tmp_path, [("train", 0)])
    assert (found.state, found.began_at, found.ended_at) == ("finished", 1000.0, 2200.0)
    with exclusive(tmp_path / "stages/train.0.lock", "element 0"):
        assert of_stages(tmp_path, [("train", 0)]).state == "finished"


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([], "scheduled"),
        (["finished", "finished"], "finished"),
        (["finished", "scheduled"], "scheduled"),
        (["failed", "preempted", "finished"], "failed"),
        (["preempted", "scheduled"], "preempted"),
        (["failed", "running"], "running"),
    ],
)
def test_several_together(states, state):
    assert together(Progress(each) for each in states).state == state


def test_later_attempts_count_and_all_of_them_are_told(tmp_path):
    attempt(tmp_path, "train", 0, "stopped", {"id": "17", "array": None, "nodes": ["n1", "n2"]})
    attempt(tmp_path, "train", 0, "failed", {"id": "17", "restarts": 1, "nodes": ["n2", "n3"]}, host="n2")
    found = of_stages(tmp_path, [("train", 0)])
    assert (found.state, found.began_at, found.ended_at) == ("failed", 1000.0, 2000.0)
    assert found.told == {
        "host": ("n1", "n2"),
        "job.id": ("17",),
        "job.restarts": ("1",),
        "job.nodes": ("n1", "n2", "n3"),
    }


def test_torn_and_foreign_lines_are_passed_over(tmp_path):
    attempt(tmp_path, "train", 0, "failed")
    file = tmp_path / "stages/train.0.attempts.jsonl"
    whole = file.read_bytes()
    for damaged in (b'{"event": "end", "time', b"\xff\xfe", b"[]", b'{"event": "end"}', b'{"time": "x", "event": 1}'):
        file.write_bytes(whole + damaged + b"\n")
        assert of_stages(tmp_path, [("train", 0)]).state == "failed"
    (tmp_path / "stages/train.0.json").write_text("{")
    assert of_stages(tmp_path, [("train", 0)]).state == "failed"


def test_lives_of_training(tmp_path):
    assert of_training(tmp_path / "train") == Progress()
    begin_life(tmp_path).log({}, 4, 40)
    assert of_training(tmp_path / "train").state == "failed"
    with exclusive(tmp_path / "train/.lock", "training"):
        assert of_training(tmp_path / "train").state == "running"
        life = begin_life(tmp_path, 3)
        life.log({}, 5, 50)
        life.close("preempted")
        assert of_training(tmp_path / "train").state == "preempted"  # it is over, though the process still tidies up
    lines = [json.loads(line) for line in (tmp_path / "train/lives.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [("begin", 0), ("begin", 3), ("end", 5)]
    assert [life["step"] for life in beginnings(tmp_path / "train")] == [0, 3]


def test_of_two_that_tell_of_one_thing_the_later_counts():
    early, late = Progress("failed", 1.0, 5.0), Progress("finished", 6.0, 9.0)
    assert latest(early, late) == latest(late, early) == Progress("finished", 1.0, 9.0)
    assert latest(late, Progress("running", 2.0, 8.0)).state == "running"
    assert latest(Progress(), early).state == "failed"
