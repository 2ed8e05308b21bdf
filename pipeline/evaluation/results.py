"""Result files, `OUT/<task>.json`, and the stamp that says what produced a score.

A result is current while its stamp equals the one that would be written today: same weights and model config,
precision, task definition, data and evaluation code. Library versions are recorded, but do not make it stale.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import UserError
from pipeline.evaluation.encoder import Precision
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.tasks import Task, file_name
from pipeline.files import fingerprint, sha256_file, write_json
from pipeline.models.model_card import PROVENANCE_FILE
from pipeline.models.two_tower import CONFIG_FILE, WEIGHTS_FILE
from pipeline.run_files import EXPORTED, MEASURED

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "webdataset", "pillow", "numpy")
# A new file counts until it is named here.
_DECIDE_NO_SCORE = {
    *(
        "__init__",
        "aggregate",
        "bootstrap",
        "check",
        "compare",
        "download",
        "during_training",
        "of_checkpoint",
        "results",
        "workers",
    ),
}
Stamp = dict[str, str]
Result = dict[str, Any]


def result_path(out: Path, task: str) -> Path:
    """Where a task's scores go."""
    return out / f"{file_name(task)}.json"


def error_path(out: Path, task: str) -> Path:
    """Where it says why a task has no scores."""
    return out / f"{file_name(task)}.error.json"


def write_error(out: Path, task: str, reason: str, trace: str | None) -> None:
    """Say why a task has no scores, if that can be written at all: the reason is told in other ways too."""
    with suppress(OSError, UserError):
        result_path(out, task).unlink(missing_ok=True)
        details = {} if trace is None else {"traceback": trace}
        write_json(error_path(out, task), {"task": task, "error": reason, **details})


def model_stamp(model_folder: Path, precision: Precision) -> Stamp:
    """What identifies the model's side of a score.

    Raises UserError when the folder is no exported model, or its weights are not those that export.json names.
    """
    try:
        checkpoint = sha256_file(model_folder / WEIGHTS_FILE)
        config = sha256_file(model_folder / CONFIG_FILE)
    except OSError as error:
        raise UserError(
            f"{model_folder} is not an exported model: cannot read {Path(error.filename).name} "
            f"({error.strerror}). Make one with `neuclip export`."
        ) from error
    provenance = model_folder / PROVENANCE_FILE
    exported = (EXPORTED.read(provenance) or {"weights_sha256": checkpoint})["weights_sha256"]
    if exported != checkpoint:
        raise UserError(
            f"{model_folder / WEIGHTS_FILE} is not what was exported: its sha256 begins with {checkpoint[:12]}, "
            f"{PROVENANCE_FILE} says {exported[:12]}. Export it again, or, if you changed the weights yourself, remove "
            f"{PROVENANCE_FILE}, which tells where they come from."
        )
    return {"checkpoint_sha256": checkpoint, "model_config_sha256": config, "precision": precision}


def task_stamp(task: Task, folder: TaskFolder) -> Stamp:
    """What identifies the task's side of a score: definition, data, and the code that measures."""
    return {
        "task_hash": fingerprint(task.decisive),
        "data_fingerprint": folder.fingerprint(),
        "code_version": code_version(),
    }


def read_result(out: Path, task: str) -> Result | None:
    """The task's result, current or not; None where there is none that is whole."""
    return MEASURED.whole(result_path(out, task))


def current_result(out: Path, task: str, stamp: Stamp) -> Result | None:
    """The task's result if it carries exactly this stamp."""
    result = read_result(out, task)
    current = result is not None and all(result.get(key) == value for key, value in stamp.items())
    return result if current else None


def described(out: Path, task: str, definition: Task, result: Result) -> Result:
    """The result with the title and the chance that its task has today: they decide no score, but are read with it."""
    words = {"title": definition.title, "chance": definition.chance}
    if words.items() <= result.items():
        return result
    result = {**result, **words}
    write_json(result_path(out, task), result)
    return result


@cache
def code_version(package: Path = Path(__file__).parent) -> str:
    """The package's version, and a digest of the sources of this package that decide a score."""
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        if source.stem not in _DECIDE_NO_SCORE:
            digest.update(source.read_bytes())
    return f"{pipeline.__version__}+{digest.hexdigest()[:12]}"


def library_versions() -> dict[str, str]:
    """What was installed when a score was made."""
    return {name: version(name) for name in LIBRARIES}
