"""Every point of a spool reaches the run exactly once, in order, whatever fails: the server before or after it took a
batch, the trainer at any line. The server here is a model; test_tracking_mirror.py has MLflow."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.spool import Spool


class Server:
    """Takes whole requests, or fails before or after taking one."""

    def __init__(self):
        self.points = []
        self.requests = []
        self.fail = iter(())

    def last_steps(self):
        last = {}
        for name, _, step, _ in self.points:
            last[name] = max(step, last.get(name, -1))
        return last

    def log(self, points):
        failure = next(self.fail, None)
        if failure == "before":
            raise ConnectionError("down")
        self.points += points
        self.requests.append(len(points))
        if failure == "after":
            raise TimeoutError("the reply was lost")

    def received(self):
        return [(name, step, value) for name, value, step, _ in self.points]


def ship(spool, server):
    for _ in range(1000):
        try:
            for batch in spool.batches(server.last_steps()):
                server.log(batch)
            return
        except OSError:
            continue
    raise AssertionError("never got through")


def write(path, steps, start_step=0, names=("train/loss", "train/tau")):
    tracker = JsonlTracker(path, start_step)
    for step in steps:
        tracker.log({name: step + i / 10 for i, name in enumerate(names)}, step, 256 * step)
    tracker.close("finished")


def expected(steps, names=("train/loss", "train/tau")):
    return [(name, 256 * step, step + i / 10) for step in steps for i, name in enumerate(names)]


@settings(max_examples=50)
@given(st.lists(st.sampled_from([None, "before", "after"]), max_size=30), st.integers(0, 2**16))
def test_exactly_once_through_any_failures_and_restarts_of_either_side(tmp_path_factory, failures, seed):
    path, server, rng = tmp_path_factory.mktemp("spool") / "metrics.jsonl", Server(), random.Random(seed)
    server.fail = iter(failures)
    step, checkpoint, spool = 0, 0, Spool(path)
    while step < 20:
        until = min(20, step + rng.randint(1, 6))
        write(path, range(step + 1, until + 1), start_step=step)
        step = until
        if rng.random() < 0.8:
            ship(spool, server)
        if rng.random() < 0.3:
            checkpoint = step
        if rng.random() < 0.4:  # the trainer is killed and goes on from its checkpoint; the shipper may live on
            step = checkpoint
            spool = Spool(path) if rng.random() < 0.5 else spool
    ship(spool, server)
    assert server.received() == expected(range(1, 21))


def test_a_spool_that_was_cut_and_grew_beyond_the_old_end_is_read_anew(tmp_path):
    """In its second life the run logs longer lines, so the old offset lies within one that was never read."""
    path, server = tmp_path / "metrics.jsonl", Server()
    write(path, range(1, 7))
    spool = Spool(path)
    ship(spool, server)
    write(path, range(4, 9), start_step=3, names=("a name that makes all lines longer", "train/loss", "train/tau"))
    ship(spool, server)
    last = [(name, step) for name, step, _ in server.received() if name == "a name that makes all lines longer"]
    assert [step for _, step in last] == [256 * step for step in range(4, 9)]
    assert [step for name, step, _ in server.received() if name == "train/loss"] == [256 * s for s in range(1, 9)]


@pytest.mark.parametrize("chunk", [1, 100, 5000])
def test_a_long_file_is_read_piece_by_piece(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("pipeline.tracking.spool._CHUNK_BYTES", chunk)
    path, server = tmp_path / "metrics.jsonl", Server()
    write(path, range(1, 301))
    path.write_bytes(b"damaged\n" + path.read_bytes() + b'{"step": 301')
    ship(Spool(path), server)
    assert server.received() == expected(range(1, 301))


def test_requests_stay_within_the_limit_and_in_order(tmp_path):
    path, server = tmp_path / "metrics.jsonl", Server()
    names = [f"m{i}" for i in range(7)]
    write(path, range(1, 401), names=names)
    ship(Spool(path), server)
    assert sum(server.requests) == 2800
    assert max(server.requests) <= 1000
    assert server.received() == expected(range(1, 401), names)


def test_a_line_being_written_waits_for_its_end(tmp_path):
    path, server = tmp_path / "metrics.jsonl", Server()
    write(path, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    spool = Spool(path)
    ship(spool, server)
    assert server.received() == expected(range(1, 3))
    path.write_bytes(whole)
    ship(spool, server)
    assert server.received() == expected(range(1, 4))


def test_no_file_is_no_points(tmp_path):
    assert list(Spool(tmp_path / "absent.jsonl").batches({})) == []


@pytest.mark.parametrize("values", [(1 / 3, 1.0), (1.0, 1 / 3)], ids=["shorter lines", "longer lines"])
def test_a_run_that_is_killed_and_goes_on_while_a_batch_is_on_its_way(tmp_path, values):
    """The server takes its time, and the file is cut and grows meanwhile, beyond where it was read to."""
    path, server, names = tmp_path / "metrics.jsonl", Server(), [f"m{i}" for i in range(400)]

    def life(start_step, until, value):
        tracker = JsonlTracker(path, start_step)
        for step in range(start_step + 1, until + 1):
            tracker.log(dict.fromkeys(names, value), step, step)
        tracker.close("finished")

    life(0, 10, values[0])
    slow = server.log

    def log(points):
        if len(server.requests) == 1:
            life(3, 30, values[1])
        slow(points)

    server.log = log
    spool = Spool(path)
    ship(spool, server)
    ship(spool, server)
    ship(Spool(path), server)  # another process, later
    assert [(name, step) for name, step, _ in server.received()] == [(n, s) for s in range(1, 31) for n in names]
