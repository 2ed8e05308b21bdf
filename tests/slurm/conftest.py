"""A real SLURM on this machine for all tests here: two nodes, and arrays of at most 4 elements."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.launch.plan import free_port
from tests.slurm.chain import SITE, Chain

DEV_CLUSTER = Path(__file__).parents[2] / "slurm/dev-cluster"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the SLURM that runs, found by its commands through $SLURM_CONF."""
    if shutil.which("munged", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("no SLURM here: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    environment = {**os.environ, "NODES": "2", "CPUS_PER_NODE": "4", "MAX_ARRAY_SIZE": "4"}
    try:
        up = subprocess.run([DEV_CLUSTER / "up", folder], env=environment, capture_output=True, text=True, timeout=120)
        assert up.returncode == 0, up.stderr
        found = re.search(r"^export SLURM_CONF=(.*)$", up.stdout, re.MULTILINE)
        assert found is not None
        os.environ["SLURM_CONF"] = found[1]
        yield folder
    finally:
        subprocess.run([DEV_CLUSTER / "down", folder], timeout=120, check=True)
        os.environ.pop("SLURM_CONF", None)


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
