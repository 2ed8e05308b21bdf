"""`neuclip submit`: what a run lacks as jobs and arrays of SLURM, each after those whose elements it needs.

Jobs wait with `afterany`: for the end of what they need, whatever it was. Whether that is done is judged by `neuclip
work`, from the files. So no job is left in DependencyNeverSatisfied, and none goes on from a success without output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.cluster import Cluster
from pipeline.errors import UserError
from pipeline.launch.markers import is_done
from pipeline.launch.run import Run
from pipeline.launch.slurm import commands, jobs
from pipeline.launch.slurm.arrays import compressed, parts
from pipeline.launch.slurm.commands import Queued
from pipeline.launch.slurm.jobs import Element
from pipeline.launch.slurm.site import logs, options
from pipeline.launch.stages import Stage

OFFSET = "NEUCLIP_ARRAY_OFFSET"


@dataclass(frozen=True)
class Submission:
    """One call of sbatch. elements: of the stage; an array, unless the stage has but one.

    after: indices of other submissions in the list, or ids of jobs in the queue, that it waits for.
    """

    stage: Stage
    elements: tuple[int, ...]
    offset: int
    after: tuple[int | str, ...]

    def arguments(self, run: Run, cluster: Cluster, ids: list[str]) -> list[str]:
        """Of sbatch. ids: of the submissions before this one."""
        paths, kind = run.paths, self.stage.resources
        array = self.stage.elements > 1
        throttle = cluster.resources(kind).throttle
        indices = compressed(element - self.offset for element in self.elements)
        after = [ids[which] if isinstance(which, int) else which for which in self.after]
        output = logs(paths, cluster) / f"{self.stage.name}.{'%A_%a' if array else '%j'}.out"
        return [
            f"--job-name={jobs.title(paths, self.stage.name)}",
            *([f"--array={indices}{f'%{throttle}' if throttle else ''}"] if array else []),
            *([f"--dependency=afterany:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []),
            *([f"--export=ALL,{OFFSET}={self.offset}"] if self.offset else []),
            f"--output={output}",
            *options(cluster, kind, paths.config),
            str(jobs.folder(paths) / f"{kind}.sbatch"),
            str(paths.root),
            self.stage.name,
            *([] if array else [str(self.elements[0])]),
        ]


def missing(run: Run) -> set[Element]:
    """What is to be made: not done, or made from something that is to be made."""
    found: set[Element] = set()
    for stage in run.stages:
        for number in range(stage.elements):
            stale = any((need.name, other) in found for need, other in run.needs(stage, number))
            if stale or not is_done(run, stage, number):
                found.add((stage.name, number))
    return found


def overtaken(run: Run, stages: Sequence[Stage], todo: set[Element], queued: Mapping[Element, Queued]) -> set[Element]:
    """Of the pending elements those that need what is about to be submitted: they wait for older jobs only."""
    fresh = {(s.name, n) for s in stages for n in range(s.elements)} & todo - queued.keys()
    found: set[Element] = set()
    for stage in stages:
        for number in range(stage.elements):
            element = (stage.name, number)
            if element in queued and queued[element].state == "PENDING":
                needs = {(need.name, other) for need, other in run.needs(stage, number)}
                if needs & (fresh | found):
                    found.add(element)
    return found


def plan_submissions(
    run: Run,
    stages: Sequence[Stage],
    cluster: Cluster,
    todo: set[Element],
    queued: Mapping[Element, str],
    max_array_size: int,
) -> list[Submission]:
    """What to submit, in order. todo: elements to be made; queued: {element: its job} of those in the queue already.

    Raises UserError where a chosen stage needs what is neither done, nor queued, nor chosen.
    """
    submissions: list[Submission] = []
    waits: dict[Element, int | str] = dict(queued)  # what to wait for, by element
    for stage in stages:
        numbers = [n for n in range(stage.elements) if (stage.name, n) in todo - queued.keys()]
        last: list[int | str] = []  # with a throttle the parts of an array follow one another
        for offset, elements in parts(numbers, max_array_size):
            after: dict[int | str, None] = dict.fromkeys(last)
            for number in elements:
                for need, other in run.needs(stage, number):
                    if (need.name, other) in waits:
                        after[waits[need.name, other]] = None
                    elif (need.name, other) in todo:
                        raise UserError(
                            f"{stage.name} needs {need.name}, of which element {other} is neither done nor in the "
                            f"queue: submit from there, with --from {need.name}"
                        )
            submissions.append(Submission(stage, tuple(elements), offset, tuple(after)))
            this = len(submissions) - 1
            waits.update({(stage.name, number): this for number in elements})
            last = [this] if cluster.resources(stage.resources).throttle else []
    return submissions


def submit(run: Run, cluster: Cluster, submissions: list[Submission]) -> list[str]:
    """Hand them to SLURM, noting each at once; the ids of the jobs."""
    ids: list[str] = []
    for submission in submissions:
        arguments = submission.arguments(run, cluster, ids)
        ids.append(commands.sbatch(arguments))
        jobs.note_submitted(
            run.paths, submission.stage.name, ids[-1], submission.offset, submission.elements, ["sbatch", *arguments]
        )
    return ids
