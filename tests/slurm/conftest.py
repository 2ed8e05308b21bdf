"""A real SLURM on this machine for all tests here: four nodes, and arrays of at most 4 elements."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.launch.ports import free_port
from tests.slurm.chain import SITE, Chain, processes_of
from tests.slurm.slices import begin_slices, train_in_slices

DEV_CLUSTER = Path(__file__).parents[2] / "slurm/dev-cluster"


@contextmanager
def dev_cluster(folder: Path, **settings: str) -> Iterator[str]:
    """A SLURM of its own in `folder`, with settings of `up`; its SLURM_CONF. It ends, and whatever runs on it."""
    try:
        environment = {**os.environ, **settings}
        up = subprocess.run([DEV_CLUSTER / "up", folder], env=environment, capture_output=True, text=True)
        assert up.returncode == 0, up.stderr
        found = re.search(r"^export SLURM_CONF=(.*)$", up.stdout, re.MULTILINE)
        assert found is not None
        yield found[1]
    finally:
        subprocess.run([DEV_CLUSTER / "down", folder], timeout=120, check=True)
        assert not processes_of(folder), "a daemon or a job outlived its cluster"


def needs(daemon: str, packages: str) -> None:
    """Skips where it is not installed."""
    if shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip(f"no {daemon} here: apt-get install {packages}")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the SLURM that runs, found by its commands through $SLURM_CONF."""
    needs("slurmctld", "slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    with (
        dev_cluster(folder, NODES="4", CPUS_PER_NODE="4", MAX_ARRAY_SIZE="4") as conf,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", conf)
        yield folder


@pytest.fixture(scope="session")
def finished(cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A whole chain that nobody disturbed: 4 work items, training on two nodes. Not to be changed."""
    folder = tmp_path_factory.mktemp("chain")
    site = folder / "cluster.yaml"
    site.write_text(SITE)
    chain = Chain(folder / "undisturbed", (f"corpus.port={free_port()}",), site)
    submitted = chain.submit()
    assert submitted.returncode == 0, submitted.stderr
    chain.wait()
    return chain


@pytest.fixture(scope="session")
def in_slices(finished: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Chain, Future[None]]]:
    """It takes minutes in which it mostly waits, so the first tests start it, and it goes on beside the others."""
    chain, limit_seconds = begin_slices(finished, tmp_path_factory.mktemp("slices") / "run")
    with ThreadPoolExecutor() as pool:
        yield chain, pool.submit(train_in_slices, chain, limit_seconds)
        chain.command("cancel")  # where its test failed: the thread ends when its jobs are gone
