"""A recipe to a checked config: defaults < YAML < dotted overrides; an unknown key is an error.

A YAML may begin with `extends: RECIPE`: it then says only what differs from that one.

config = load_recipe("demo", ["train.steps=100", "objectives.neuclip.rho=6.5"])
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.schema import RunConfig
from pipeline.errors import UserError

RECIPES = Path(__file__).parent.parent / "recipes"
# What PyYAML raises: dates and numbers that are none, and nesting without end, are no YAMLErrors.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
T = TypeVar("T", bound=BaseModel)


def recipe_names() -> list[str]:
    """The recipes that are shipped."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Resolve a recipe: a shipped name or a YAML file, with `key=value` overrides on top.

    Raises UserError that names the file, the key, and the nearest valid key.
    """
    path = find_recipe(recipe)
    tree = _read_recipe(path, ())
    for override in overrides:
        _apply(tree, override)
    return parse(RunConfig, tree, where=str(recipe))


def with_overrides(config: RunConfig, overrides: Iterable[str]) -> RunConfig:
    """A resolved recipe with `key=value` overrides on top. Raises UserError as `load_recipe` does."""
    tree = config.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return parse(RunConfig, tree, where=config.name)


def override(key: str, text: str) -> str:
    """`key="text"`, which `with_overrides` reads as this text, whatever is in it."""
    # YAML's own quotes: JSON writes characters beyond 16 bits in two halves, which stay halves in YAML.
    quoted: str = yaml.safe_dump(text, default_style='"', width=math.inf)
    return f"{key}={quoted.strip()}"


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by name or path."""
    for path in (RECIPES / f"{recipe}.yaml", Path(recipe)):
        if path.is_file():
            return path
    raise UserError(f"no recipe {str(recipe)!r}: {_nearest(str(recipe), recipe_names())}, or give a YAML file")


def _read_recipe(path: Path, extended_by: tuple[Path, ...]) -> dict[str, Any]:
    """The recipe's tree, laid over the one that it extends; its name is its own."""
    path = path.resolve()
    if path in extended_by:
        raise UserError(f"{path} extends itself, by way of {', '.join(p.name for p in extended_by)}")
    tree = read_yaml(path)
    tree.setdefault("name", path.stem)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: extends: give the name of a recipe or a YAML file, not {base!r}")
    beside = path.parent / base
    found = beside if beside.is_file() else find_recipe(base)
    return _merged(_read_recipe(found, (*extended_by, path)), tree)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Section by section; anything but a section is replaced as a whole."""
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }
    return {**base, **both}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; raises UserError with the line where it does not parse."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except _NOT_YAML as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} should be a mapping of settings, not {type(tree).__name__}")
    return tree


def parse(model: type[T], tree: Mapping[str, Any], where: str) -> T:
    """Validate `tree` as `model`. where: what the message names as the source."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        # What an item of a list lacks makes the list too short as well: the item's message is enough.
        within = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
        told = [problem for problem in problems if problem["loc"] not in within]
        raise UserError("\n".join(_explain(model, problem, where) for problem in told)) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise UserError(f"override {override!r} is not of the form key=value (for example train.steps=100)")
    value = _value(text, override)
    for part in parts[:-1]:
        branch = tree.get(part)
        if branch is None:
            branch = tree[part] = {}
        elif not isinstance(branch, dict):
            raise UserError(f"override {override!r}: {part!r} is a value, not a section")
        tree = branch
    tree[parts[-1]] = value


def _value(text: str, override: str) -> Any:
    """YAML, but a path stays a path: `runs/a #2: b` is neither a comment nor a mapping, and 1e-3 is a number."""
    text = text.strip()
    try:
        value = yaml.safe_load(text)
    except _NOT_YAML as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error
    if isinstance(value, dict) and not text.startswith("{"):
        return text
    if not isinstance(value, str) or text[:1] in ("'", '"'):
        return value
    try:
        return float(text) if "e" in text.lower() and any(c.isdigit() for c in text) else text
    except ValueError:
        return text


def _explain(model: type[BaseModel], problem: Any, where: str) -> str:
    location = [part for part in problem["loc"] if isinstance(part, str)]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{where}: {key or 'the recipe'}: {problem['msg'].removeprefix('Value error, ')}"
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        annotation = next(iter(get_args(annotation)), annotation)  # of a list of sections
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    prefix = "".join(f"{part}." for part in location[:-1])
    names = [f"{prefix}{name}" for name in model.model_fields]
    return f"{where}: unknown key {key!r}: {_nearest(key, names)}"


def _nearest(name: str, known: list[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}?" if matches else f"known are {', '.join(known)}"
