"""The world is read from the launchers' variables, and mistakes in them are explained."""

import pytest
import torch

from pipeline import distributed
from pipeline.errors import UserError
from tests.distributed.launch import free_port, run_ranks

GOOD = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_without_variables_there_is_a_group_of_one(environment):
    world = distributed.init()
    assert world == distributed.World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    assert torch.distributed.get_world_size() == 1
    distributed.shutdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MASTER_ADDR": "", "LOCAL_RANK": ""}, "lacks LOCAL_RANK, MASTER_ADDR: start the command"),
        ({"RANK": "one"}, "RANK should be a number, not 'one'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT should be a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is not among the ranks 0 to 1"),
    ],
)
def test_mistakes_in_the_environment_are_explained(environment, change, message):
    environment({**GOOD, **change})
    with pytest.raises(UserError, match=message):
        distributed.init()


def test_ranks_that_do_not_come_are_named(environment):
    environment({**GOOD, "WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": free_port()})
    with pytest.raises(UserError, match=r"rank 1 of 2 could not join the others at 127.0.0.1:\d+: "):
        distributed.init(timeout_seconds=1)


def describe():
    world = distributed.init()  # again: the launch helper has done it once
    return world, distributed.rank(), distributed.world_size(), torch.distributed.get_backend()


def test_ranks_know_their_world():
    for number, (world, rank, size, backend) in enumerate(run_ranks(2, describe)):
        assert world == distributed.World(number, number, 2, torch.device("cpu"))
        assert (rank, size, backend) == (number, 2, "gloo")
