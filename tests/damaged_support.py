"""One run directory with every file that commands read, and a table of all that can be wrong in one of its fields."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline import run_files
from pipeline.errors import UserError
from pipeline.files import fingerprint
from pipeline.typed_files import Kind
from tests.chain_support import fake_run
from tests.compare_support import MANIFEST, fabricate_member

FILES: dict[str, Kind] = {  # of `fabricate`
    "plan.json": run_files.PLAN,
    "recipe.yaml": run_files.RECIPE,
    "train/recipe.yaml": run_files.RECIPE,
    "train/summary.json": run_files.TRAINED,
    "train/lives.jsonl": run_files.EVENT,
    "train/checkpoints/step-00000016/COMPLETE": run_files.COMPLETE,
    "train/checkpoints/step-00000016/trainer.json": run_files.TRAINER_STATE,
    "model/export.json": run_files.PROVENANCE,
    "corpora/demo/manifest.json": run_files.OUTCOMES,
    "results/task0.json": run_files.SCORED,
    "results/task1.error.json": run_files.SCORED,
    "results/aggregate.json": run_files.AVERAGE,
    "mlflow.json": run_files.TRACKED_RUNS,
    "environment.json": run_files.ENVIRONMENT,
    "stages/make.0.json": run_files.MARKER,
    "stages/make.0.attempts.jsonl": run_files.ATTEMPT,
    "stages/make.1.attempts.jsonl": run_files.ATTEMPT,
    "slurm/jobs.jsonl": run_files.SUBMITTED,
}
Place = tuple[str | int, ...]  # keys and indices, from the document down

NESTED: Any = 0
for _ in range(200):
    NESTED = [NESTED]
DAMAGE: dict[str, Any] = {
    "list": [1, "a"], "object": {"a": {"b": 1}}, "text": "many", "null": None, "nan": math.nan, "infinite": math.inf,
    "negative": -5, "huge": 10**400, "large": 1e300, "truth": True, "half a character": "\ud800", "nested": NESTED,
    "empty": "", "markup": "[/red]{x}%s\x1b[31m",
}  # fmt: skip
MISSING = object()


def places(document: Any, place: Place = ()) -> Iterator[Place]:
    """Every place of a document, itself first; of a long list only the first."""
    yield place
    if isinstance(document, dict | list):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document[:1]):
            yield from places(value, (*place, key))


def with_damage(document: Any, place: Place, value: Any) -> Any:
    """A copy with another value at that place, or none."""
    if not place:
        return {} if value is MISSING else value
    changed = copy.deepcopy(document)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return changed


def refusal(kind: Kind, path: Path) -> str:
    """What is said of a damaged file; empty of one that is read."""
    try:
        kind.read(path)
    except UserError as error:
        return str(error)
    return ""


def fabricate(root: Path) -> Path:
    """A finished run with one attempt that failed; its plan is of three stages."""
    run = fake_run(root, mlflow=True)
    objects: dict[str, Any] = {}
    fabricate_member(root / "made", steps=16, tasks=2)
    for path in sorted((root / "made").rglob("*")):
        if path.is_file():
            target = root / path.relative_to(root / "made")
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    plan = json.loads(run.paths.plan.read_text())
    del plan["fingerprint"]
    plan["config"] = {
        "name": "fake", "description": "drawn", "seed": 0, "objective": "neuclip", "corpus": {"name": "demo"},
        "model": {"weights": None}, "evaluate": {"data": None}, "train": {"global_batch_size": 64, "steps": 16},
        "tracking": {"mlflow": True, "models": False},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(json.dumps(plan["config"]))
    objects["plan.json"] = {**plan, "fingerprint": fingerprint(plan)}
    (root / "train/recipe.yaml").write_text((root / "recipe.yaml").read_text())
    objects["corpora/demo/manifest.json"] = MANIFEST
    objects["environment.json"] = {"version": "0.1.0", "commit": "c0ffee", "packages": {"torch": "2"}, "host": "n1"}
    objects["mlflow.json"] = {
        "id": "1" * 32, "tracking_uri": "sqlite:///mlflow.db", "experiment": "neuclip", "parent_run_id": "0" * 32,
        "runs": {"train": "2" * 32},
    }  # fmt: skip
    objects["train/heartbeats/00000.json"] = {"rank": 0, "time": 1.7e9, "failed": "lost its disk"}
    checkpoint = "train/checkpoints/step-00000016"
    objects[f"{checkpoint}/trainer.json"] = {"step": 16, "samples_seen": 1024}
    objects[f"{checkpoint}/COMPLETE"] = {"files": {"weights.pt": {"bytes": 12, "sha256": "0" * 64}}}
    trained = json.loads((root / "train/summary.json").read_text())
    objects["train/summary.json"] = {
        **trained, "tau": 0.02, "log_normalizer_mse": 0.03, "log_normalizer_mse_se": 0.001, "npn_share": 0.1,
        "data_wait_share": 0.05,
    }  # fmt: skip
    export = json.loads((root / "model/export.json").read_text())
    objects["model/export.json"] = {
        **export, "recipe": "fake", "model": "ViT-Ti", "objective": "neuclip", "samples_seen": 1024,
    }  # fmt: skip
    objects["results/task1.error.json"] = {"task": "task9", "error": "no images"}
    for stage in ("make", "check"):
        objects[f"stages/{stage}.0.json"] = {
            "stage": stage, "element": 0, "status": "done", "fingerprint": "", "started_at": 1.7e9, "seconds": 9.5,
            "command": ["neuclip", "train"], "outputs": {"made.0": "0" * 64},
        }  # fmt: skip
    for name, value in objects.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(value))
    job = {"id": "7", "nodes": ["n1"]}
    begin = {"attempt": 1, "event": "begin", "time": 1.7e9, "host": "n1", "pid": 1, "job": job}
    end = {**begin, "event": "end", "time": 1.7e9 + 5, "status": "failed", "exit_status": 2, "reason": "no ink"}
    write_lines(root / "stages/make.1.attempts.jsonl", [begin, end])
    write_lines(root / "stages/make.0.attempts.jsonl", [begin, {**end, "status": "done"}])
    life = {"event": "begin", "time": 1.7e9, "host": "n1", "pid": 1, "step": 0, "samples_seen": 0, "nodes": ["n1"],
            "corpora": [{"name": "demo", "source": "s3://x", "fingerprint": "5eed", "samples": 7}]}  # fmt: skip
    write_lines(
        root / "train/lives.jsonl",
        [life, {"event": "end", "time": 1.8e9, "status": "finished", "step": 16, "samples_seen": 1024}],
    )
    (root / "slurm").mkdir()
    submitted = {"event": "submitted", "time": 1.7e9, "stage": "make", "job": "7", "offset": 0, "elements": "0-3"}
    write_lines(root / "slurm/jobs.jsonl", [submitted])
    (root / "logs").mkdir()
    (root / "logs/make.1.log").write_text("$ make\nno ink\n")
    return root


class Server:
    """Takes everything; in place of `MlflowServer`."""

    def __init__(self, uri: str, experiment: str) -> None:
        self.points: list[Any] = []

    def runs(self, directory: str) -> dict[str, Any]:
        return {}

    def create(self, *told: Any) -> str:
        return "id"

    def read_artifact(self, *told: Any) -> None:
        return None

    def log_points(self, run_id: str, points: list[Any]) -> None:
        self.points += points

    def __getattr__(self, verb: str) -> Any:
        return lambda *told: None


def write_lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_document(path: Path) -> Any:
    """A JSON or YAML document; of a file of lines the list of them."""
    text = path.read_text()
    if path.suffix == ".yaml":
        return yaml.safe_load(text)
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def write_document(path: Path, value: Any) -> None:
    """As `read_document` reads it: YAML too as JSON, which it may be."""
    if path.suffix == ".jsonl":
        lines = value if isinstance(value, list) else [value]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.write_text(json.dumps(value))
