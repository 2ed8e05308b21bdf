"""Whether a checkpoint is of the run that wants to go on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config.loader import parse
from pipeline.config.schema import ORDER_SETTINGS, RunConfig
from pipeline.config.tree import differences
from pipeline.errors import UserError

TRAIN_SETTINGS = ("global_batch_size", "samples", "epochs", "steps", "precision", "ema_decay")


def refuse_other_run(state: dict[str, Any], config: RunConfig, manifest_fingerprint: str, folder: Path) -> None:
    """Raise UserError, with what differs, unless the checkpoint was made by this recipe on this corpus.

    state: the checkpoint's trainer.json. Settings that it does not know had their defaults.
    """
    saved = parse(RunConfig, state["config"], where=f"the checkpoint in {folder}")
    lines = differences(what_decides(saved), what_decides(config))
    if state["manifest_fingerprint"] != manifest_fingerprint:
        lines.append(f"corpus manifest: {state['manifest_fingerprint'][:12]} -> {manifest_fingerprint[:12]}")
    if lines:
        raise UserError(
            f"{folder} holds another training run; what differs:\n  " + "\n  ".join(lines) + "\n"
            "Continue it with the recipe it was started with, or give another --run-dir."
        )


def what_decides(config: RunConfig) -> dict[str, Any]:
    """The settings on which the weights depend. Not where corpora lie: the fingerprint says what they are."""
    tree = config.model_dump(mode="json")
    return {
        **{key: tree[key] for key in ("seed", "model", "objective", "temperature", "optimizer")},
        "objectives": {config.objective: tree["objectives"].get(config.objective, {})},
        "train": {key: tree["train"][key] for key in TRAIN_SETTINGS},
        "loader": {
            "weights": [source.weight for source in config.loader.corpora],
            **{key: tree["loader"][key] for key in ORDER_SETTINGS},
        },
    }
