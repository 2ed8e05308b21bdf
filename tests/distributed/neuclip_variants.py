"""Combinations of NeuCLIP's options that the contract suite trains on 1, 2 and 4 ranks, each option in one of them."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "neuclip, learned masses": (
        "neuclip",
        {"npn": {"prototypes": 11, "inner_steps": 3, "masses": "learned", "warmup_restarts": True}},
    ),
    "neuclip, Adam": ("neuclip", {"npn": {"prototypes": 11, "inner_steps": 3, "optimizer": "adam", "lr": 0.01}}),
}
