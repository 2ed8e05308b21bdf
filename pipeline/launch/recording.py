"""MLflow is brought up to date when work ends, where that is worth the seconds; whatever it does, work goes on."""

from __future__ import annotations

from pipeline.launch.attempts import Status
from pipeline.launch.run import Run
from pipeline.launch.stages import Stage
from pipeline.tracking.live import is_mirrored, mirrored


def element_ended(run: Run, stage: Stage, status: Status) -> None:
    """Send what an element left, unless it is one of thousands, or somebody (the local backend) sees to it.

    Call it when the element's lock is free: whoever holds one counts as running.
    """
    one_of_many = status == "done" and stage.elements > 1 and not stage.per_member
    if one_of_many or status == "blocked" or is_mirrored(run.paths.root):
        return
    with mirrored(run.paths.root, run.paths.config.tracking):
        pass
