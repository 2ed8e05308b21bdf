"""Sweeps: which members there are, what is refused, what is frozen, and what each member's stages do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze, open_plan
from pipeline.launch.run import Run
from pipeline.launch.settle import settle
from pipeline.launch.sweep import sweep_members
from pipeline.report.build import build_report

SWEEP = ("objective=neuclip,fastclip", "seed=0,1")
NAMES = [f"objective={objective},seed={seed}" for objective in ("neuclip", "fastclip") for seed in (0, 1)]

TRAINED = {
    "steps": 10, "samples_seen": 640, "tau": 0.02, "log_normalizer_mse": 0.02, "log_normalizer_mse_se": 0.004,
    "samples_per_second": 412.0, "npn_share": 0.11, "data_wait_share": 0.04, "order_digest": "0d", "world_size": 2,
}  # fmt: skip


def planned(root: Path, sweep: tuple[str, ...] = SWEEP, *overrides: str) -> RunPaths:
    return freeze(settle(load_recipe("demo", overrides), root, sweep_members(sweep)))


def test_members_are_the_product() -> None:
    members = sweep_members(SWEEP)
    assert [member.name for member in members] == NAMES
    assert members[1].overrides == ("objective=neuclip", "seed=1")
    assert sweep_members(()) == ()


def test_commas_inside_brackets_separate_nothing() -> None:
    members = sweep_members(["optimizer.betas=[0.9,0.98],[0.9, 0.95]", "model.config={a: 1, b: '},'},null"])
    assert [member.overrides for member in members] == [
        ("optimizer.betas=[0.9,0.98]", "model.config={a: 1, b: '},'}"),
        ("optimizer.betas=[0.9,0.98]", "model.config=null"),
        ("optimizer.betas=[0.9, 0.95]", "model.config={a: 1, b: '},'}"),
        ("optimizer.betas=[0.9, 0.95]", "model.config=null"),
    ]
    assert members[2].name == "optimizer.betas=_0.9__0.95_,model.config=_a__1__b_______"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["seed"], "not of the form key=value"),
        (["seed="], "not of the form"),
        (["seed=0,,1"], "not of the form"),
        (["=1"], "not of the form"),
        (["seed=0,1", "seed=2"], "gives seed twice"),
        (["seed=0,1,0"], "gives a value twice"),
        (["corpus.tasks=1,2"], "members of a sweep share corpus.tasks"),
        (["evaluate.batch_size=1,2"], "members of a sweep share evaluate.batch_size"),
        (["data=a,b"], "members of a sweep share data"),
        (["model.name=a/b,a?b"], "differ only in characters"),
        (["model.name=" + "x" * 200], "folder name of"),
    ],
)
def test_what_is_refused(sweep: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sweep_members(sweep)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (("sede=0,1",), "unknown key 'sede': did you mean 'seed'"),
        (("optimizer.lr=1e-3,fast",), "optimizer.lr: Input should be a valid number"),
        (("objective=neuclip,neuclop",), "did you mean 'neuclip'"),
    ],
)
def test_a_member_that_is_no_recipe_leaves_nothing(tmp_path: Path, sweep: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(tmp_path / "run", sweep)
    assert not (tmp_path / "run").exists()


def test_the_sweep_is_frozen(tmp_path: Path) -> None:
    paths = planned(tmp_path / "run")
    assert open_plan(tmp_path / "run") == paths
    for number, name in enumerate(NAMES):
        recipe = yaml.safe_load((tmp_path / "run/members" / name / "recipe.yaml").read_text())
        assert recipe == paths.member(number).config.model_dump(mode="json")
        assert f"objective={recipe['objective']},seed={recipe['seed']}" == name
        assert recipe["corpus"] == paths.config.model_dump(mode="json")["corpus"]
    assert settle(load_recipe("demo"), tmp_path / "run", sweep_members(SWEEP)) == paths
    with pytest.raises(UserError, match=r"what differs:\n  sweep: objective=neuclip,seed=0; .* -> none"):
        settle(load_recipe("demo"), tmp_path / "run")
    with pytest.raises(UserError, match=r"train.epochs: 8.0 -> 9.0"):
        settle(load_recipe("demo", ["train.epochs=9"]), tmp_path / "run", sweep_members(SWEEP))


def test_a_plain_plan_knows_nothing_of_sweeps(tmp_path: Path) -> None:
    paths = planned(tmp_path / "run", ())
    plan = json.loads(paths.plan.read_text())
    assert plan.keys() == {"recipe", "config", "stages", "fingerprint"}
    assert all(stage.keys() == {"name", "needs", "elements"} for stage in plan["stages"])
    assert (paths.train, paths.results) == (tmp_path / "run/train", tmp_path / "run/results")
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["packages"]["torch"]
    assert {"python", "host", "version", "commit"} <= environment.keys()


def test_each_member_has_its_elements(tmp_path: Path) -> None:
    paths = planned(tmp_path / "run", SWEEP, "evaluate.elements=3")
    run = Run.planned(paths)
    elements = {stage.name: stage.elements for stage in run.stages}
    assert elements == {
        "fabricate": 1, "plan": 1, "download": 4, "verify": 4, "manifest": 1,
        "train": 4, "export": 4, "evaluate": 12, "aggregate": 4, "report": 4, "compare": 1,
    }  # fmt: skip
    home = tmp_path / "run/members" / NAMES[2]
    train, evaluate = run.stage("train"), run.stage("evaluate")
    command = train.command(paths, 2)
    assert str(home / "recipe.yaml") in command
    assert f'loader.manifest="{tmp_path}/run/corpora/demo"' in command
    assert evaluate.command(paths, 7)[-4:] == ["--rank", "1", "--world-size", "3"]
    assert str(home / "results") in evaluate.command(paths, 7)
    assert evaluate.proofs(paths, 7) == [home / "results/workers/1-of-3.json"]
    assert [(need.name, n) for need, n in run.needs(evaluate, 7)] == [("export", 2)]
    assert [n for _, n in run.needs(run.stage("aggregate"), 2)] == [6, 7, 8]
    assert [n for _, n in run.needs(run.stage("compare"), 0)] == [0, 1, 2, 3]
    assert [n for _, n in run.needs(train, 3)] == [0]


def test_one_process_evaluates_and_averages(tmp_path: Path) -> None:
    run = Run.planned(planned(tmp_path / "run", ()))
    assert "aggregate" not in [stage.name for stage in run.stages]
    assert run.stage("evaluate").proofs(run.paths, 0) == [tmp_path / "run/results/aggregate.json"]
    assert "--rank" not in run.stage("evaluate").command(run.paths, 0)


def test_report_of_a_member_and_of_all(tmp_path: Path) -> None:
    paths = planned(tmp_path / "run")
    for number in range(4):
        member = paths.member(number)
        write_json(member.train / "summary.json", {**TRAINED, "final_loss": float(number)})
        marker = {"status": "done", "started_at": 1.0, "seconds": 10.0 + number, "command": ["x"], "outputs": {}}
        write_json(paths.marker("train", number), marker)
        assert build_report(member.home) == member.home / "report.html"
    page = (paths.member(3).home / "report.html").read_text()
    assert "seed: 1" in page
    own = json.loads((paths.member(3).home / "summary.json").read_text())
    assert own["stages"]["train"] == {"status": "done", "seconds": 13.0}
    assert "compare" not in own["stages"]
    assert build_report(paths.root) == paths.root / "compare.html"
    assert all(name in (paths.root / "compare.html").read_text() for name in NAMES)
    summary = json.loads((paths.root / "summary.json").read_text())
    assert summary["report"] == str(paths.root / "compare.html")
    assert list(summary["members"]) == NAMES
    assert [entry["train"]["final_loss"] for entry in summary["members"].values()] == [0.0, 1.0, 2.0, 3.0]
    assert summary["members"][NAMES[1]]["settings"] == ["objective=neuclip", "seed=1"]
    assert summary["stages"]["train"] == {"status": "done", "seconds": 46.0}
    assert not (paths.root / "report.html").exists()
    (paths.root / "members/other").mkdir()
    with pytest.raises(UserError, match="is no member of the sweep"):
        build_report(paths.root / "members/other")


def test_the_command_line_says_what_is_wrong(tmp_path: Path) -> None:
    arguments = ["run", "demo", "--workdir", str(tmp_path / "d"), "--sweep", "corpus.tasks=1,2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "members of a sweep share corpus.tasks" in result.output
    assert not (tmp_path / "d").exists()
