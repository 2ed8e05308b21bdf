"""Pages that are one file each: no network, no file beside them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from pipeline import text

_PACKAGES = Path(__file__).parents[2]


def breakable(name: str) -> Markup:
    """A name with places where a narrow column may break it."""
    return Markup(re.sub(r"([,/=._-])", r"\1<wbr>", str(escape(name))))


FILTERS: dict[str, Callable[..., Any]] = {
    "breakable": breakable,
    "count": text.count,
    "duration": text.duration,
    "hours": text.hours,
    "number": text.number,
    "percent": text.percent,
    "points": text.points,
    "short_count": text.short_count,
    "size": text.size,
    "words": text.words,
}


def template(name: str, **filters: Callable[..., object]) -> Template:
    """A page that extends pipeline/pages/base.html. Whatever it is given appears on it as text.

    name: its file, from the folder that holds the packages: `pipeline/report/page.html`. filters: besides FILTERS.
    """
    loader = FileSystemLoader(_PACKAGES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def include_raw(file: str) -> Markup:
        """A file of ours as it is: a script, a style."""
        return Markup(loader.get_source(environment, file)[0])

    environment.filters.update(FILTERS | filters)
    environment.globals["include_raw"] = include_raw
    return environment.get_template(name)
