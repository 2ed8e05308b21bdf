"""The import rule of docs/architecture.md: arrows only downward, third-party engines in one place each."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = {
    "pipeline",
    "pipeline.code_version",
    "pipeline.commands",
    "pipeline.errors",
    "pipeline.files",
    "pipeline.leaving",
    "pipeline.locks",
    "pipeline.processes",
    "pipeline.run_files",
    "pipeline.stopping",
    "pipeline.storage",
    "pipeline.hub",
    "pipeline.pages",
    "pipeline.text",
    "pipeline.typed_files",
    "pipeline.where",
    "pipeline.config",
    "data_prep.corpus_files",
    "data_prep.manifest",
    "data_prep.shard",
}
# From the top down; a module may import its own layer's package and any layer below, and the leaves.
LAYERS = [
    {
        "pipeline.cli",
        "pipeline.launch",
        "pipeline.__main__",
    },
    {"pipeline.training", "pipeline.training_summary", "pipeline.dry_run"},
    {
        "pipeline.trainer",
        "pipeline.callbacks",
        "pipeline.health",
        "pipeline.evaluation",
        "pipeline.report",
        "pipeline.preemption",
        "pipeline.same_run",
        "pipeline.time_spent",
        "pipeline.time_left",
    },
    {"pipeline.engine"},
    {"pipeline.data", "pipeline.tracking"},
    {"pipeline.objectives"},
    {"pipeline.models"},
    {"pipeline.collectives"},
    {"pipeline.distributed", "pipeline.transfer"},
]
# The command line stands above both packages: what a command of one does with the other, it does as a user would.
ACROSS = {("pipeline.cli.eval_data", "data_prep.fabricate.datacomp")}
ONLY_IN = {
    "deepspeed": "pipeline/engine/",
    "mlflow": "pipeline/tracking/mlflow.py",
    "open_clip": "pipeline/models/two_tower.py",
    "fsspec": "pipeline/storage.py",
    "huggingface_hub": "pipeline/hub.py",
    "img2dataset": "data_prep/download.py",
}
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")])


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                exists = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists()
                found.add(inner if exists else str(node.module))
    return found


def within(module: str, names: set[str]) -> bool:
    return any(module == name or (name != "pipeline" and module.startswith(f"{name}.")) for name in names)


def layer(module: str) -> int | None:
    return next((depth for depth, names in enumerate(LAYERS) if within(module, names)), None)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_downward(path: Path) -> None:
    module = module_name(path)
    for imported in imports(path):
        top = imported.split(".")[0]
        if top in ONLY_IN:
            assert str(path.relative_to(ROOT)).startswith(ONLY_IN[top]), f"{top} is imported outside {ONLY_IN[top]}"
        if top not in ("pipeline", "data_prep") or within(imported, LEAVES) or (module, imported) in ACROSS:
            continue
        if within(module, LEAVES):
            assert within(imported, LEAVES), f"the leaf {module} imports {imported}"
        elif module.startswith("data_prep"):
            assert imported.startswith("data_prep"), f"{module} imports {imported}"
        else:
            assert not imported.startswith("data_prep"), f"{module} imports {imported}"
            mine, theirs = layer(module), layer(imported)
            assert mine is not None, f"{module} belongs to no layer: add it to docs/architecture.md and here"
            assert theirs is not None, f"{imported} belongs to no layer"
            assert mine <= theirs, f"{module} imports {imported}, which lies above it"


def test_only_launch_and_slurm_know_slurm() -> None:
    for path in FILES:
        if "launch" not in path.parts:
            assert "SLURM_" not in path.read_text(encoding="utf-8"), path


def test_the_top_level_is_the_users() -> None:
    for name in ("pipeline", "deepspeed_configs", "data_prep", "slurm", "tests", "requirements.txt"):
        assert (ROOT / name).exists()
