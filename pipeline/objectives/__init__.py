"""The objectives by name: one file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.objectives import checked_options, refuse_unknown
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
    return objective_class(name)(checked_options(name, options))


def objective_class(name: str) -> type[Objective]:
    """The class of a name. Raises UserError for an unknown one, with the nearest."""
    refuse_unknown(name)
    return REGISTRY[name]
