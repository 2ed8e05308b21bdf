"""Result files, `OUT/<task>.json`, and the stamp that says what produced a score.

A result is current while its stamp equals the one that would be written today: same weights and model config,
precision, task definition, data and evaluation code. Library versions are recorded, but do not make it stale.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import UserError
from pipeline.evaluation.encoder import Precision
from pipeline.evaluation.task_folder import TaskFolder
from pipeline.evaluation.tasks import Task, file_name
from pipeline.files import fingerprint, read_json, sha256_file
from pipeline.models.two_tower import CONFIG_FILE, WEIGHTS_FILE

LIBRARIES = ("torch", "torchvision", "open_clip_torch", "webdataset", "pillow", "numpy")
# A new file counts until it is named here.
_DECIDE_NO_SCORE = {"__init__", "aggregate", "check", "download", "during_training", "of_checkpoint", "results"}
Stamp = dict[str, str]
Result = dict[str, Any]


def result_path(out: Path, task: str) -> Path:
    """Where a task's scores go."""
    return out / f"{file_name(task)}.json"


def error_path(out: Path, task: str) -> Path:
    """Where it says why a task has no scores."""
    return out / f"{file_name(task)}.error.json"


def model_stamp(model_folder: Path, precision: Precision) -> Stamp:
    """What identifies the model's side of a score. Raises UserError when the folder is no exported model."""
    try:
        checkpoint = sha256_file(model_folder / WEIGHTS_FILE)
        config = sha256_file(model_folder / CONFIG_FILE)
    except OSError as error:
        raise UserError(
            f"{model_folder} is not an exported model: cannot read {Path(error.filename).name} "
            f"({error.strerror}). Make one with `neuclip export`."
        ) from error
    return {"checkpoint_sha256": checkpoint, "model_config_sha256": config, "precision": precision}


def task_stamp(task: Task, folder: TaskFolder) -> Stamp:
    """What identifies the task's side of a score: definition, data, and the code that measures."""
    return {
        "task_hash": fingerprint(task.model_dump()),
        "data_fingerprint": folder.fingerprint(),
        "code_version": code_version(),
    }


def read_result(out: Path, task: str) -> Result | None:
    """The task's result, current or not; None where there is none that can be read."""
    try:
        result = read_json(result_path(out, task))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return result if isinstance(result, dict) else None


def is_current(result: Result | None, stamp: Stamp) -> bool:
    """Whether a result carries exactly this stamp."""
    return result is not None and all(result.get(key) == value for key, value in stamp.items())


@cache
def code_version(package: Path = Path(__file__).parent) -> str:
    """The package's version, and a digest of the sources of this package that decide a score."""
    digest = hashlib.sha256()
    for source in sorted(package.glob("*.py")):
        if source.stem not in _DECIDE_NO_SCORE:
            digest.update(source.read_bytes())
    return f"{pipeline.__version__}+{digest.hexdigest()[:12]}"


def library_versions() -> dict[str, str]:
    """What was installed when a score was made."""
    return {name: version(name) for name in LIBRARIES}
