"""A plan is frozen: what was edited in a run directory is refused with the difference, never followed in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from chain_support import fake_run
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.loader import load_recipe, override
from pipeline.errors import UserError
from pipeline.launch.attempts import read_attempts
from pipeline.launch.paths import RunPaths
from pipeline.launch.plan import freeze, open_plan
from pipeline.launch.run import Run
from pipeline.launch.settle import refuse_altered
from pipeline.launch.sweep import sweep_members
from pipeline.launch.work import work


def demo(root: Path, *sweep: str) -> RunPaths:
    return freeze(RunPaths(root.resolve(), load_recipe("demo"), sweep_members(sweep)))


@pytest.mark.parametrize(
    ("before", "after"),
    [('"steps": null', '"steps": 7'), ('"elements": 1', '"elements": 2'), ('"recipe": ', '"wish": ')],
)
def test_a_plan_that_somebody_changed_is_refused(tmp_path: Path, before: str, after: str) -> None:
    plan = demo(tmp_path).plan
    whole = plan.read_text()
    assert before in whole
    plan.write_text(whole.replace(before, after, 1))
    with pytest.raises(UserError, match=r"plan\.json.* [aA] plan is frozen"):
        open_plan(tmp_path)
    plan.write_text(whole.replace(": ", ":"))  # the same, written otherwise
    assert open_plan(tmp_path).config.name == "demo"


def test_recipes_are_as_planned_until_somebody_changes_one(tmp_path: Path) -> None:
    paths = demo(tmp_path, "seed=0,1", "optimizer.lr=1e-4,3e-05")
    members = [paths, *(paths.member(i) for i in range(4))]
    for of in members:
        refuse_altered(of)
    text = members[2].recipe.read_text()
    members[2].recipe.write_text(text.replace("global_batch_size: ", "global_batch_size: 4"))
    with pytest.raises(UserError, match=r"(?s)seed=0,optimizer.*was changed .* train\.global_batch_size: (\d+) -> 4\1"):
        refuse_altered(members[2])
    members[2].recipe.unlink()
    refuse_altered(members[2])
    freeze(paths)
    assert members[2].recipe.read_text() == text


def test_nothing_is_begun_with_a_recipe_that_was_changed(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    freeze(run.paths)
    recipe = run.paths.recipe.read_text()
    run.paths.recipe.write_text(recipe.replace("steps: 1\n", "steps: 2\n", 1))
    assert work(run, run.stage("make"), 0, "local", None) == 2
    assert not run.paths.log("make", 0).exists()
    (attempt,) = read_attempts(run.paths.attempts("make", 0))
    assert "train.steps: 1 -> 2" in attempt.reason
    assert f"neuclip retry {tmp_path}" in attempt.reason
    run.paths.recipe.write_text(recipe)
    assert work(run, run.stage("make"), 0, "local", None) == 0


@given(st.text(min_size=1, max_size=60))
def test_a_folder_of_any_name_is_an_override(name: str) -> None:
    assert load_recipe("demo", [override("loader.manifest", name)]).loader.manifest == name


@pytest.mark.parametrize("name", ["/runs/új 🐦", "/a/#b: c", " x", "{a}", "/n\nl", "/u\u2028v", "/l" * 300, "/\udcff"])
def test_training_finds_its_corpus_whatever_the_run_is_called(name: str) -> None:
    config = load_recipe("demo")
    run = Run.planned(RunPaths(Path(name), config))
    command = run.stage("train").command(run.paths, 0)
    read = load_recipe("demo", [setting for setting in command if "=" in setting and setting.startswith("loader.")])
    assert read.loader.manifest == str(Path(name) / "corpora" / "demo")
