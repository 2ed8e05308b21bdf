"""Every point of the spool reaches the run exactly once, in order, whatever fails: the server before or after
it took a batch, the trainer at any line. The server here is a model; test_tracking_mlflow.py has MLflow."""

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tracking.jsonl import JsonlTracker
from pipeline.tracking.shipping import Shipment


class Server:
    """Takes whole requests, or fails before or after taking one."""

    def __init__(self):
        self.points = []
        self.requests = []
        self.fail = iter(())

    def last_steps(self, run_id):
        last = {}
        for name, _, step, _ in self.points:
            last[name] = max(step, last.get(name, -1))
        return last

    def log_points(self, run_id, points):
        failure = next(self.fail, None)
        if failure == "before":
            raise ConnectionError("down")
        self.points += points
        self.requests.append(len(points))
        if failure == "after":
            raise TimeoutError("the reply was lost")

    def received(self):
        return [(name, step, value) for name, value, step, _ in self.points]


def ship(shipment):
    for _ in range(1000):
        try:
            return shipment.advance()
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


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([None, "before", "after"]), max_size=30), st.integers(0, 2**16))
def test_exactly_once_through_any_failures_and_restarts_of_either_side(tmp_path_factory, failures, seed):
    spool, server, rng = tmp_path_factory.mktemp("spool") / "metrics.jsonl", Server(), random.Random(seed)
    server.fail = iter(failures)
    step, checkpoint, shipment = 0, 0, Shipment(spool, server, "run")
    write(spool, [])
    while step < 20:
        until = min(20, step + rng.randint(1, 6))
        write(spool, range(step + 1, until + 1), start_step=step)
        step = until
        if rng.random() < 0.8:
            ship(shipment)
        if rng.random() < 0.3:
            checkpoint = step
        if rng.random() < 0.4:  # the trainer is killed with its shipper, and goes on from its checkpoint
            step, shipment = checkpoint, Shipment(spool, server, "run")
    ship(shipment)
    assert server.received() == expected(range(1, 21))


def test_a_second_shipment_finds_nothing_to_do(tmp_path):
    spool, server = tmp_path / "metrics.jsonl", Server()
    write(spool, range(1, 4))
    assert Shipment(spool, server, "run").advance() == 6
    assert Shipment(spool, server, "run").advance() == 0
    assert server.received() == expected(range(1, 4))


def test_requests_stay_within_the_limit_and_in_order(tmp_path):
    spool, server = tmp_path / "metrics.jsonl", Server()
    names = [f"m{i}" for i in range(7)]
    write(spool, range(1, 401), names=names)
    assert Shipment(spool, server, "run").advance() == 2800
    assert sum(server.requests) == 2800
    assert max(server.requests) <= 1000
    assert server.received() == expected(range(1, 401), names)


def test_a_line_being_written_waits_for_its_end(tmp_path):
    spool, server = tmp_path / "metrics.jsonl", Server()
    write(spool, range(1, 4))
    whole = spool.read_bytes()
    spool.write_bytes(whole[:-10])
    shipment = Shipment(spool, server, "run")
    assert shipment.advance() == 4
    spool.write_bytes(whole)
    assert shipment.advance() == 2
    assert server.received() == expected(range(1, 4))


def test_a_name_that_mlflow_refuses_cannot_block_the_rest(tmp_path):
    spool, server = tmp_path / "metrics.jsonl", Server()
    write(spool, [1, 2], names=("acc@1 <b>", "train/loss"))
    shipment = Shipment(spool, server, "run")
    shipment.advance()
    assert {name for name, *_ in server.points} == {"acc_1 _b_", "train/loss"}
    assert Shipment(spool, server, "run").advance() == 0


@pytest.mark.parametrize("module", ["pipeline.tracking.shipping", "pipeline.tracking.run_tree"])
def test_a_training_process_does_not_import_mlflow(module):
    code = f"import sys, {module}; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
