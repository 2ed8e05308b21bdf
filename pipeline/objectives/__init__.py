"""The objectives by name: one file each, one line here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pipeline.config.loader import parse
from pipeline.errors import UserError
from pipeline.objectives.amorlip import AmorLIP
from pipeline.objectives.base import Features, Objective, ObjectiveOutput
from pipeline.objectives.fastclip import FastCLIP
from pipeline.objectives.neuclip import NeuCLIP
from pipeline.objectives.openclip import OpenCLIP
from pipeline.objectives.siglip import SigLIP

__all__ = ["REGISTRY", "Features", "Objective", "ObjectiveOutput", "build_objective", "objective_class"]

REGISTRY: dict[str, type[Objective]] = {
    "neuclip": NeuCLIP,
    "openclip": OpenCLIP,
    "siglip": SigLIP,
    "fastclip": FastCLIP,
    "amorlip": AmorLIP,
}


def build_objective(name: str, options: Mapping[str, Any]) -> Objective:
    """The objective `name` with its checked options (`objectives.<name>` of the recipe).

    Raises UserError for an unknown name or option, with the nearest valid one.
    """
    cls = objective_class(name)
    return cls(parse(cls.Config, options, where=f"objectives.{name}"))


def objective_class(name: str) -> type[Objective]:
    """The class of a name. Raises UserError for an unknown one, with the nearest."""
    if name not in REGISTRY:
        nearest = difflib.get_close_matches(name, REGISTRY, n=1, cutoff=0.3)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        raise UserError(f"unknown objective {name!r}: {hint}Known are {', '.join(REGISTRY)}.")
    return REGISTRY[name]
