"""Done is a file, judged by its content (contract 6).

An element's marker carries the fingerprint of what it was made from and the digests of the files that prove it. It
counts only while both still hold: when an input changes, or a proof is gone or altered, the element is not done.
"""

from __future__ import annotations

import time
from typing import Any

from pipeline.errors import UserError
from pipeline.files import fingerprint, sha256_file, write_json
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.run_files import MARKER, PLAN


def is_done(run: Run, stage: Stage, element: int) -> bool:
    """Whether the element's marker stands: same inputs, and every proof unchanged."""
    marker = read_marker(run.paths, stage, element)
    return (
        marker is not None
        and marker.get("fingerprint") == input_fingerprint(run, stage, element)
        and marker.get("outputs") == _digests(run, stage, element)
    )


def todo(run: Run, stage: Stage) -> list[int]:
    """The elements of a stage that are not done."""
    return [element for element in range(stage.elements) if not is_done(run, stage, element)]


def mark_done(run: Run, stage: Stage, element: int, started_at: float, command: list[str]) -> None:
    """Write the marker of an element whose command has succeeded.

    started_at: unix seconds. Raises UserError when a proof is missing: a success without output is a failure.
    """
    outputs = _digests(run, stage, element)
    missing = [name for name, digest in outputs.items() if digest is None]
    if missing:
        raise UserError(
            f"stage {stage.name}, element {element} ended well but left no {', '.join(missing)}: "
            f"see {run.paths.log(stage.name, element)}"
        )
    write_json(
        run.paths.marker(stage.name, element),
        {
            "stage": stage.name,
            "element": element,
            "status": "done",
            "fingerprint": input_fingerprint(run, stage, element),
            "started_at": started_at,
            "seconds": time.time() - started_at,
            "command": command,
            "outputs": outputs,
        },
    )


def read_marker(paths: RunPaths, stage: Stage, element: int) -> dict[str, Any] | None:
    """The marker, or None if there is none that is whole: then the element is not done."""
    return MARKER.whole(paths.marker(stage.name, element))


def input_fingerprint(run: Run, stage: Stage, element: int) -> str:
    """Of the plan and of what the elements that this one needs left. The directory's own path is no part of it."""
    markers = [run.paths.marker(need.name, number) for need, number in run.needs(stage, element)]
    inputs = {path.name: (MARKER.whole(path) or {}).get("outputs") for path in markers}
    plan = PLAN.read(run.paths.plan) or {}
    return fingerprint({"plan": plan.get("fingerprint"), "element": element, "inputs": inputs})


def _digests(run: Run, stage: Stage, element: int) -> dict[str, str | None]:
    root = run.paths.root
    return {
        str(path.relative_to(root) if path.is_relative_to(root) else path): (
            sha256_file(path) if path.is_file() else None
        )
        for path in stage.proofs(run.paths, element)
    }
