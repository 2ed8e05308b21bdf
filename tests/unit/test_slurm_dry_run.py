"""What `neuclip submit --dry-run` prints, also where SLURM is not, or does not answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.cluster import Cluster
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.launch.paths import RunPaths
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.dry_run import describe
from pipeline.launch.sweep import sweep_members

PATHS = RunPaths(Path("/runs/demo"), load_recipe("demo"))
GPUS = {"gres": "gpu:h100:8", "nodes": 4, "time": "12:00:00"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A SLURM that would take whatever it is asked, and what that was."""
    asked: list[list[str]] = []
    monkeypatch.setattr(commands, "require", lambda: None)
    monkeypatch.setattr(commands, "max_array_size", lambda: 3)
    monkeypatch.setattr(commands, "test", lambda arguments: asked.append(arguments) or "Job 1 to start at noon")
    return asked


def test_every_call_is_printed_and_tested(taken: list[list[str]]) -> None:
    said = describe(PATHS, Cluster(), None, None)
    assert len(taken) == said.count("=$(sbatch --parsable ") == said.count("to start at noon") == 11
    assert not any("dependency" in argument for arguments in taken for argument in arguments), "on jobs that are not"
    assert "--dependency=afterany:$JOB2 " in said
    assert "GPU-hours  none" in said
    assert "about 0.256 GB of shards (6,400 of 40 kB)" in said


def test_gpu_hours_are_those_of_all_members_and_nodes(taken: list[list[str]]) -> None:
    sweep = RunPaths(PATHS.root, PATHS.config, sweep_members(["seed=0,1,2"]))
    cluster = Cluster.model_validate({"train": GPUS, "evaluate": {"gres": "gpu", "time": "30"}})
    assert f"GPU-hours  {3 * 4 * 8 * 12 + 3 * 0.5:,.0f} at most" in describe(sweep, cluster, None, None)
    unlimited = Cluster.model_validate({"train": {**GPUS, "time": None}})
    assert "GPU-hours  not known: no time limit for train" in describe(sweep, unlimited, None, None)


@pytest.mark.parametrize("lacking", ["require", "max_array_size"])
def test_without_slurm_it_says_so(taken: list[list[str]], monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def away() -> int:
        raise UserError("it is away")

    monkeypatch.setattr(commands, lacking, away)
    said = describe(PATHS, Cluster(), None, None)
    assert said.endswith("not tested on SLURM, and with arrays of at most 1000 elements: it is away")
    assert said.count("=$(sbatch --parsable ") == 9
    assert not taken


@pytest.mark.parametrize("arguments", [[], ["--sweep", "objective=neuclip,amorlip"], ["objectives.neuclip.rhoo=7"]])
def test_it_loads_no_library_that_takes_seconds(arguments: list[str], tmp_path: Path) -> None:
    heavy = "{'torch', 'mlflow', 'deepspeed', 'open_clip', 'pandas', 'pyarrow', 'numpy', 'huggingface_hub', 'rich'}"
    submitted = f"import sys; from pipeline.cli import main; main({['submit', 'demo', '--dry-run', *arguments]})"
    script = f"import atexit, sys; atexit.register(lambda: print('loaded', {heavy} & sys.modules.keys())); {submitted}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith("loaded set()\n"), done
    if arguments[-1:] == ["objectives.neuclip.rhoo=7"]:
        assert "error: objectives.neuclip: unknown key 'rhoo': did you mean 'rho'?" in done.stderr
    else:
        assert "=$(sbatch --parsable " in done.stdout
