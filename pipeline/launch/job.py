"""The scheduler's job that this process is in: kept with every attempt, so that a failure leads to its job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VARIABLES = {
    "id": "SLURM_JOB_ID",
    "array_id": "SLURM_ARRAY_JOB_ID",
    "array_index": "SLURM_ARRAY_TASK_ID",
    "restarts": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
}


def describe_job(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Those of id, array_id, array_index, restarts and nodes that SLURM gives, as text; None outside a job."""
    if "SLURM_JOB_ID" not in environment:
        return None
    return {key: environment[name] for key, name in VARIABLES.items() if name in environment}
