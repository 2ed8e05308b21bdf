"""README.md of an exported model: what it is, how to load it, where it comes from, how it scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import atomic_open
from pipeline.run_files import PROVENANCE

log = logging.getLogger(__name__)
PROVENANCE_FILE = "export.json"


def write_card(folder: Path, summary: Mapping[str, Any] | None = None) -> None:
    """Write the card of a model that `neuclip export` wrote; a folder from elsewhere is left as it is.

    summary: what the evaluation came to, as in aggregate.json. A folder that cannot be written is a warning.
    Raises UserError for the scores of other weights, and where export.json is damaged.
    """
    provenance = PROVENANCE.read(folder / PROVENANCE_FILE)
    if provenance is None:
        return
    here = provenance["weights_sha256"]
    if summary is not None and here != summary["checkpoint_sha256"]:
        raise UserError(
            f"the scores are of weights {summary['checkpoint_sha256'][:12]}, {folder} holds {here[:12]} (sha256): name "
            "the model that they are of"
        )
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in provenance.items())
    card = (
        "---\nlibrary_name: open_clip\npipeline_tag: zero-shot-image-classification\n---\n\n"
        f"# {provenance['recipe']}: {provenance['model']} trained with {provenance['objective']}\n\n"
        "```python\nimport open_clip\n"
        "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:THIS_FOLDER')\n"
        "tokenizer = open_clip.get_tokenizer('local-dir:THIS_FOLDER')\n```\n\n"
        f"| | |\n|---|---|\n{rows}\n"
    )
    try:
        with atomic_open(folder / "README.md", "w") as stream:
            stream.write(card + ("" if summary is None else _scores(summary)))
    except OSError as error:
        log.warning("the model card %s could not be written: %s", folder / "README.md", error)


def _scores(summary: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {score['title']} | {score['main_metric']} | {score['score']:.4f} | {score['chance']:.4f} |"
        for score in summary["scores"].values()
    )
    if "average" in summary:
        mean = f"average of {summary['tasks']} tasks: {summary['average']:.4f}"
    elif summary["tasks"]:
        mean = f"partial mean of {summary['tasks']} of {summary['of']} tasks: {summary['partial_mean']:.4f}"
    else:
        mean = f"none of the {summary['of']} tasks of the average"
    return (
        f"\n## Scores\n\n{summary['precision']}, {mean}\n\n"
        f"| task | metric | score | chance |\n|---|---|---|---|\n{rows}\n"
    )
