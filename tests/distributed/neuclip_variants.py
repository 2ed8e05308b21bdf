"""Combinations of NeuCLIP's options that the contract suite trains on 1, 2 and 4 ranks, each option in one of them."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "neuclip, learned masses": (
        "neuclip",
        {"npn": {"prototypes": 11, "inner_steps": 3, "masses": "learned", "warmup_restarts": True}},
    ),
    "neuclip, masses from k-means": (
        "neuclip",
        {"npn": {"prototypes": 5, "ring": 13, "restart": "kmeans", "restart_every": 3, "masses": "learned"}},
    ),
    "neuclip, dead prototypes, simultaneous": (
        "neuclip",
        {
            "updates": "simultaneous",
            "npn": {"prototypes": 11, "inner_steps": 3, "restart": "dead", "dead_below": 0.5, "restart_every": 3},
        },
    ),
    "neuclip, separate fit, tolerance": (
        "neuclip",
        {"npn": {"prototypes": 11, "inner_steps": 9, "fit": "separate", "inner_tolerance": 0.3, "restart_every": 3}},
    ),
    "neuclip, MLP": (
        "neuclip",
        {"npn": {"network": "mlp", "inner_steps": 3, "lr": 0.01, "alpha_gradient": "through", "restart_every": 3}},
    ),
    "neuclip, Adam": ("neuclip", {"npn": {"prototypes": 11, "inner_steps": 3, "optimizer": "adam", "lr": 0.01}}),
}
