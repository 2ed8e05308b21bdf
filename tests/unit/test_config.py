"""A recipe resolves to what its layers say, and every mistake in it is named with the nearest right key."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.loader import load_recipe, recipe_names
from pipeline.config.tree import differences
from pipeline.errors import UserError
from pipeline.objectives import build_objective
from pipeline.trainer import total_steps


def test_layers_defaults_then_yaml_then_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("train: {steps: 5, global_batch_size: 32}\noptimizer: {lr: 0.5}\n")
    config = load_recipe(recipe, ["optimizer.lr=1e-3", "train.precision=bf16", "data=some/folder"])
    assert config.name == "mine"
    assert (config.train.steps, config.train.global_batch_size, config.train.precision) == (5, 32, "bf16")
    assert config.optimizer.lr == 1e-3
    assert config.data == "some/folder"
    assert config.loader.lanes == 64  # a default


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("/runs/a #2", "/runs/a #2"),
        ("/runs/a: b", "/runs/a: b"),
        ('"/runs/a #2"', "/runs/a #2"),
        ("null", None),
        ("plain", "plain"),
    ],
)
def test_a_path_given_as_a_value_stays_a_path(text: str, value: str | None) -> None:
    assert load_recipe("demo", [f"data={text}"]).data == value


def test_a_file_does_not_hide_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").write_text("name: not this one\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"


def test_a_config_cannot_be_changed_behind_its_back() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("demo").train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.global_batch=8", "did you mean 'train.global_batch_size'"),
        ("objectiv=neuclip", "did you mean 'objective'"),
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'.*optimizer.lr"),
        ("temperature.init=5", "minimum <= init <= maximum"),
        ("train.steps=1", "exactly one of samples, epochs, steps"),
        ("train.precision=fp8", "train.precision"),
        ("train", "not of the form key=value"),
        ("seed.x=1", "'seed' is a value"),
        ("seed=-1", "seed"),
        ("loader.crop_scale=[-1, 0.5]", "0 < smallest <= largest <= 1"),
        ("optimizer.betas=[2, 3]", "optimizer.betas"),
        ("train.epochs=.inf", "train.epochs"),
    ],
)
def test_mistakes_are_named(override: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace("(", r"\(")):
        load_recipe("demo", [override])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'demo'"):
        load_recipe("demos")


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("train: [1\nseed: 2\n")
    with pytest.raises(UserError, match=r"broken.yaml is not valid YAML(.|\n)*line 2"):
        load_recipe(recipe)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_resolve(name: str) -> None:
    config = load_recipe(name)
    build_objective(config.objective, config.objectives.get(config.objective, {}))


def test_differences_name_leaves() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 -> 3",
        "d: absent -> 4",
    ]


def test_a_recipe_says_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "extends: demo\nobjectives: {neuclip: {npn: {lr: 0.5}}}\ntemperature: {init: 0.2}\n"
    )
    mine, demo = load_recipe(tmp_path / "mine.yaml", ["seed=3"]), load_recipe("demo")
    changed = {line.split(":")[0] for line in differences(demo.model_dump(mode="json"), mine.model_dump(mode="json"))}
    assert changed == {"name", "objectives.neuclip.npn.lr", "temperature.init", "seed"}
    assert mine.name == "mine"


def test_a_recipe_extends_the_file_beside_it_before_a_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: demo\nseed: 5\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\ndescription: of two\n")
    mine = load_recipe(tmp_path / "mine.yaml")
    assert (mine.seed, mine.description, mine.name) == (5, "of two", "mine")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: demoo\n", "did you mean 'demo'"),
        ("extends: [demo]\n", "give the name of a recipe"),
    ],
)
def test_a_base_that_cannot_be_is_named(tmp_path: Path, text: str, hint: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=hint):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("name", "samples_per_epoch", "steps", "rho"),
    [("cc3m", 2_723_840, 98_420, 6.5), ("cc12m", 9_187_328, 148_038, 8.5), ("dfn192m", 192_160_462, 262_719, 11.0)],
)
def test_published_recipes_train_as_long_as_published(
    name: str, samples_per_epoch: int, steps: int, rho: float
) -> None:
    config = load_recipe(name)
    assert total_steps(config, samples_per_epoch) == steps
    assert config.objectives["neuclip"]["rho"] == config.objectives["fastclip"]["rho"] == rho
