"""A sweep: one recipe with several values of some settings, each combination a member of the run.

Members share the corpus and the evaluation data; each has its own training, model, results and report in
RUN/members/<name>.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.launch.paths import Member

# What all members share, and what names a run but changes nothing in it.
SHARED = ("corpus", "data", "evaluate", "loader.manifest", "loader.corpora", "name", "description", "tracking")
EXAMPLE = "for example --sweep objective=neuclip,fastclip --sweep seed=0,1"
NAME_CHARACTERS = 200


def sweep_members(settings: Sequence[str]) -> tuple[Member, ...]:
    """The product of settings `key=value,value,...`, the last one varying fastest; none of no settings.

    Commas inside brackets, braces or quotes separate nothing. Raises UserError for settings that members share,
    and where a setting or a value is empty or given twice. Whether keys and values are valid, the recipe says.
    """
    axes: dict[str, list[str]] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        key, values = key.strip(), [value.strip() for value in _split(text)]
        if not separator or not key or not all(values):
            raise UserError(f"--sweep {setting!r} is not of the form key=value,value,... ({EXAMPLE})")
        if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED):
            raise UserError(
                f"--sweep {setting!r}: members of a sweep share {key}; make a run of its own for each value"
            )
        if key in axes:
            raise UserError(f"--sweep gives {key} twice: give all its values at once, separated by commas")
        if len(set(values)) < len(values):
            raise UserError(f"--sweep {setting!r} gives a value twice")
        axes[key] = values
    if not axes:
        return ()
    combinations = itertools.product(*([f"{key}={value}" for value in values] for key, values in axes.items()))
    members = tuple(Member(_name(overrides), overrides) for overrides in combinations)
    if len({member.name for member in members}) < len(members):
        raise UserError("values of --sweep differ only in characters that no folder can be named with")
    return members


def _name(overrides: tuple[str, ...]) -> str:
    name = ",".join(re.sub(r"[^\w.=+\-]", "_", override, flags=re.ASCII) for override in overrides)
    if len(name) > NAME_CHARACTERS:
        raise UserError(f"--sweep makes a folder name of {len(name)} characters: sweep over recipes of shorter values")
    return name


def _split(text: str) -> list[str]:
    """At commas that are in no brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in ")}]":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return parts
