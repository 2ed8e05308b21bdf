"""cluster.yaml: checked, merged per kind of job, written out for sbatch and bash."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.config.cluster import Cluster, limit_seconds, load_cluster
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.launch.slurm.site import SCRIPTS, check, find_cluster, options, setup_script


def load(tmp_path: Path, text: str) -> Cluster:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return load_cluster(file)


def test_the_shipped_file_sets_nothing_and_its_examples_are_settings(tmp_path: Path) -> None:
    shipped = (SCRIPTS / "cluster.yaml").read_text()
    assert load_cluster(SCRIPTS / "cluster.yaml") == Cluster()
    examples = [line for line in shipped.splitlines() if line.startswith("# ") and ": " in line.split("#")[1]]
    for line in examples:
        key = line[2:].split(":")[0]
        if key in Cluster.model_fields:
            load(tmp_path, line[2:])
    sections = "\n".join(  # the examples within sections, uncommented
        line if line.startswith("report") else line.removesuffix(" {}").replace("#   ", "  ", 1)
        for line in shipped.splitlines()
    )
    assert load(tmp_path, sections).resources("train").gres == "gpu:8"


def test_defaults_below_what_a_kind_says(tmp_path: Path) -> None:
    cluster = load(tmp_path, "defaults: {partition: cpu, mem: 8G}\ntrain: {partition: gpu, nodes: 2}")
    config = load_recipe("demo")
    assert "--partition=cpu" in options(cluster, "ingest", config)
    train = options(cluster, "train", config)
    assert {"--partition=gpu", "--mem=8G", "--nodes=2", "--ntasks-per-node=2"} <= set(train)
    assert "--ntasks-per-node=1" in options(cluster, "export", config)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {partitoin: gpu}", "did you mean 'train.partition'"),
        ("ingest: {nodes: 2}", "unknown key 'ingest.nodes'"),
        ("train: {time: 12:00:00}", "quote it"),
        ("train: {time: half a day}", "no time limit"),
        ("environment: {'NOT A NAME': x}", "environment"),
        ("[]", "should be a mapping"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"cluster\.yaml") as error:
        load(tmp_path, text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("2-12", 216000), ("2-12:30", 217800), ("1-00:00:01", 86401)],
)
def test_time_limits_as_slurm_reads_them(limit: str, seconds: int) -> None:
    assert limit_seconds(limit) == seconds


def test_settings_under_which_jobs_could_only_fail_are_refused() -> None:
    config = load_recipe("demo")
    with pytest.raises(UserError, match="leaves no time to work"):
        check(Cluster.model_validate({"train": {"time": "7"}}), config)
    with pytest.raises(UserError, match="cannot be split over 3 ranks"):
        check(Cluster.model_validate({"train": {"nodes": 3, "tasks_per_node": 1}}), config)
    check(Cluster.model_validate({"train": {"time": "8"}}), config)


def test_which_settings_are_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.delenv("NEUCLIP_CLUSTER", raising=False)
    assert find_cluster(None, run) == Cluster()
    for name, folder in (("own", run / "slurm"), ("site", tmp_path), ("given", tmp_path)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("cluster.yaml" if name == "own" else f"{name}.yaml")).write_text(f"defaults: {{partition: {name}}}")
    assert find_cluster(None, run).defaults.partition == "own"
    monkeypatch.setenv("NEUCLIP_CLUSTER", str(tmp_path / "site.yaml"))
    assert find_cluster(None, run).defaults.partition == "site"
    assert find_cluster(tmp_path / "given.yaml", run).defaults.partition == "given"


def test_setup_is_what_a_job_gets(tmp_path: Path) -> None:
    settings = {"environment": {"GREETING": "two words $HOME"}, "scratch": f"{tmp_path}/$SLURM_JOB_ID"}
    cluster = Cluster.model_validate({**settings, "activate": "neuclip=(from-there)"})
    (tmp_path / "setup.sh").write_text(setup_script(cluster))
    says = f'set -euo pipefail; source {tmp_path}/setup.sh; echo "$GREETING|$TMPDIR|${{neuclip[*]}}"'
    bash = subprocess.run(
        ["bash", "-c", says], env={"SLURM_JOB_ID": "7", "PATH": "/bin"}, capture_output=True, text=True
    )
    assert bash.stdout == f"two words $HOME|{tmp_path}/7|from-there\n"
    assert (tmp_path / "7").is_dir()


def test_what_is_kept_reads_as_the_same(tmp_path: Path) -> None:
    cluster = load(tmp_path, "train: {nodes: 2, time: '1:00:00'}\nmodules: [cuda]\nmax_requeues: 3")
    (tmp_path / "kept.yaml").write_text(yaml.safe_dump(cluster.model_dump(mode="json", exclude_unset=True)))
    assert load_cluster(tmp_path / "kept.yaml") == cluster
