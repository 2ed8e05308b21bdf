"""metrics.jsonl: what goes in comes out (non-finite too), resuming drops exactly the later steps, and no kill
or full disk leaves a file that cannot be read or appended to."""

import json
import math
import resource
import subprocess
import sys

import pytest

from pipeline.tracking.jsonl import JsonlTracker, iterate_points, read_points


@pytest.fixture
def spool(tmp_path):
    path = tmp_path / "train" / "metrics.jsonl"
    tracker = JsonlTracker(path)
    for step in range(1, 6):
        tracker.log({"train/loss": 1.0 / step, "train/tau": 0.07}, step, 256 * step)
    tracker.close("finished")
    return path


def test_points_come_back_and_are_plain_json(spool):
    documents = [json.loads(line) for line in spool.read_text().splitlines()]
    assert [set(document) for document in documents] == [{"step", "samples_seen", "time", "metrics"}] * 5
    points = read_points(spool)
    assert [(p.step, p.samples_seen) for p in points] == [(s, 256 * s) for s in range(1, 6)]
    assert points[2].metrics == {"train/loss": 1.0 / 3, "train/tau": 0.07}
    assert points[0].time <= points[4].time


def test_non_finite_numbers_survive_in_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log({"a": math.nan, "b": math.inf, "c": -math.inf}, 1, 1)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["metrics"] == {
        "a": "nan",
        "b": "inf",
        "c": "-inf",
    }
    metrics = read_points(path)[0].metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize(("start_step", "kept"), [(0, []), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_resuming_drops_later_steps_and_appends(spool, start_step, kept):
    lines = spool.read_bytes().splitlines()
    tracker = JsonlTracker(spool, start_step)
    assert spool.read_bytes().splitlines() == lines[: len(kept)], "kept lines are kept to the byte"
    tracker.log({"train/loss": 9.0}, start_step + 1, 0)
    assert [p.step for p in read_points(spool)] == [*kept, start_step + 1]


def test_a_line_torn_at_any_byte_is_repaired(spool):
    whole = spool.read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    for cut in range(start_of_last, len(whole)):
        spool.write_bytes(whole[:cut])
        assert [p.step for p in read_points(spool)] == [1, 2, 3, 4]
        tracker = JsonlTracker(spool, start_step=5)
        tracker.log({}, 5, 0)
        tracker.close("finished")
        assert [p.step for p in read_points(spool)] == [1, 2, 3, 4, 5]


def test_reading_from_an_offset_sees_only_what_was_added(spool):
    *_, (_, offset) = iterate_points(spool)
    assert offset == spool.stat().st_size
    JsonlTracker(spool, start_step=5).log({"x": 1.0}, 6, 6)
    assert [point.step for point, _ in iterate_points(spool, offset)] == [6]


def test_a_damaged_line_costs_itself_only(spool):
    lines = spool.read_bytes().splitlines(keepends=True)
    for damaged in (b"\x00\xff garbage\n", b'{"step": 1}\n', b"[]\n", b'{"step":1,"metrics":[]}\n', b"\n"):
        spool.write_bytes(b"".join([*lines[:2], damaged, *lines[2:]]))
        assert [p.step for p in read_points(spool)] == [1, 2, 3, 4, 5]


def test_no_file_is_no_points(tmp_path):
    assert read_points(tmp_path / "absent.jsonl") == []


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A limit on the file size stands for the full disk: the write is cut short in the middle of a line."""
    path = tmp_path / "metrics.jsonl"
    script = (
        "import signal, sys, pathlib; from pipeline.tracking.jsonl import JsonlTracker\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "tracker, failed = JsonlTracker(pathlib.Path(sys.argv[1])), 0\n"
        "for step in range(1, 11):\n"
        "    try: tracker.log({'train/loss': 0.5}, step, step)\n"
        "    except OSError: failed += 1\n"
        "print(failed)"
    )
    limit = 500
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    points = read_points(path)
    assert int(result.stdout) == 10 - len(points) > 0
    assert [p.step for p in points] == list(range(1, len(points) + 1))
    assert path.read_bytes().endswith(b"\n")
