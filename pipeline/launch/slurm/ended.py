"""What SLURM knows of attempts that ended without a word of their own."""

from __future__ import annotations

from dataclasses import replace

from pipeline.launch.paths import RunPaths
from pipeline.launch.slurm import commands, jobs
from pipeline.launch.state import ElementState, RunState, StageState

MEANS = {
    "TIMEOUT": "killed at its time limit before it had saved: raise signal_seconds in the cluster's settings",
    "OUT_OF_MEMORY": "it needs more memory than it asked for: raise mem in the cluster's settings",
    "NODE_FAIL": "its node was lost",
    "PREEMPTED": "preempted, and not brought back by SLURM",
    "CANCELLED": "somebody cancelled it",
    "FAILED": "its processes were killed (kill -9, or a node out of memory)",
}


def explained(paths: RunPaths, state: RunState) -> RunState:
    """The same, with SLURM's word for what vanished. It forgets after minutes, unless it keeps accounts.

    Raises UserError when SLURM does not answer.
    """
    vanished = [element for stage in state.stages for element in stage.not_done if element.vanished]
    asked = {name.partition("_")[0] for element in vanished if (name := _job(element))}
    if not asked:
        return state
    words = {(end.name, end.title): end.state for end in commands.ended(sorted(asked, key=int))}
    return replace(state, stages=[_explained(paths, stage, words) for stage in state.stages])


def _explained(paths: RunPaths, stage: StageState, words: dict[tuple[str, str], str]) -> StageState:
    def told(element: ElementState) -> ElementState:
        word = words.get((_job(element), jobs.title(paths, stage.name))) if element.vanished else None
        if word is None:
            return element
        means = MEANS.get(word.partition(" ")[0], "")
        return replace(element, reason=f"vanished: SLURM says {word}{means and f', {means}'}")

    return replace(stage, not_done=[told(element) for element in stage.not_done])


def _job(element: ElementState) -> str:
    """As SLURM calls it; '' outside of jobs."""
    job = element.attempt.job if element.attempt is not None else None
    return jobs.name_of(job) if job else ""
