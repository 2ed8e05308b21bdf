"""`neuclip submit --dry-run`: the scripts, the calls of sbatch, and what they come to at most. Submits nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from pipeline.config.cluster import Cluster, Resources, TrainResources, limit_seconds
from pipeline.errors import UserError
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.slurm import commands
from pipeline.launch.slurm.arrays import compressed
from pipeline.launch.slurm.chain import Submission, missing, plan_submissions
from pipeline.launch.slurm.site import SCRIPTS, setup_script

BYTES_PER_SAMPLE = 40_000  # as `data-prep plan --estimate` reckons by default


def describe(settled: RunPaths, cluster: Cluster, first: str | None, only: str | None) -> str:
    """What `neuclip submit` would do if nothing was in the queue, as text."""
    run = Run.planned(settled)
    away, largest = _slurm()
    todo = missing(run) if settled.plan.exists() else {(s.name, n) for s in run.stages for n in range(s.elements)}
    submissions = plan_submissions(run, run.select(first, only), cluster, todo, {}, largest)
    kinds = dict.fromkeys(submission.stage.resources for submission in submissions)
    lines = ["# RUN/slurm/setup.sh", setup_script(cluster)]
    for kind in kinds:
        lines += [f"# slurm/{kind}.sbatch", (SCRIPTS / f"{kind}.sbatch").read_text(encoding="utf-8")]
    names = [f"$JOB{number}" for number in range(1, len(submissions) + 1)]
    for name, submission in zip(names, submissions, strict=True):
        arguments = submission.arguments(run, cluster, names)
        lines += [f"# {_title(submission, cluster)}", f"{name[1:]}=$({_typed(['sbatch', '--parsable', *arguments])})"]
        if not away:
            lines.append(f"#   {commands.test(_testable(arguments, kind=submission.stage.resources))}")
        lines.append("")
    return "\n".join([*lines, *_totals(run, submissions, cluster), *([away] if away else [])])


def _slurm() -> tuple[str, int]:
    """Why SLURM was not asked, '' where it was, and its MaxArraySize."""
    try:
        commands.require()
        return "", commands.max_array_size()
    except UserError as error:
        return f"not tested on SLURM, and with arrays of at most 1000 elements: {error}", 1001


def _title(submission: Submission, cluster: Cluster) -> str:
    limit = cluster.resources(submission.stage.resources).time
    numbers = compressed(submission.elements)
    which = f"an array for elements {numbers}" if submission.stage.elements > 1 else "a job"
    return f"{submission.stage.name}: {which}, time limit {limit or 'as the partition has it'}"


def _typed(arguments: list[str]) -> str:
    """As in a shell, where $JOB1 is a variable."""
    return " ".join(a if a.startswith("--dependency=") else shlex.quote(a) for a in arguments)


def _testable(arguments: list[str], kind: str) -> list[str]:
    """Without what is not there yet: other jobs, the run directory with its copy of the script."""
    kept = [a for a in arguments if not a.startswith(("--dependency=", "--kill-on-invalid-dep", "--output="))]
    script = next(number for number, argument in enumerate(kept) if argument.endswith(f"/slurm/{kind}.sbatch"))
    return [*kept[:script], "--output=/dev/null", str(SCRIPTS / f"{kind}.sbatch"), *kept[script + 1 :]]


def _totals(run: Run, submissions: list[Submission], cluster: Cluster) -> Iterator[str]:
    elements = sum(len(submission.elements) for submission in submissions)
    yield f"jobs       {len(submissions)} calls of sbatch, {elements} elements"
    hours, unlimited = 0.0, list[str]()
    for submission in submissions:
        resources = cluster.resources(submission.stage.resources)
        gpus = _gpus(resources) * len(submission.elements)
        if gpus and resources.time is None:
            unlimited.append(submission.stage.name)
        elif gpus:
            hours += gpus * limit_seconds(str(resources.time)) / 3600
    if unlimited:
        yield f"GPU-hours  not known: no time limit for {', '.join(unlimited)} in the cluster's settings"
    elif hours:
        yield f"GPU-hours  {hours:,.0f} at most, one slice of every element; training goes on in further ones"
    else:
        yield "GPU-hours  none: no GPUs are asked for (gres in the cluster's settings)"
    corpus = run.paths.config.corpus
    samples = corpus.expected_samples or (corpus.scenes if corpus.fabricate == "scenes" else None)
    if samples is None:
        yield "disk       not known: set corpus.expected_samples"
    else:
        size = samples * BYTES_PER_SAMPLE / 1e9
        shards = f"{size:,.1f}" if size >= 1 else f"{size:.3f}"
        yield f"disk       about {shards} GB of shards ({samples:,} of 40 kB), as much again while they are verified"
    yield f"memory     and checkpoints: neuclip train {run.paths.config.name} --dry-run"


def _gpus(resources: Resources) -> int:
    """Of one element."""
    asked = (resources.gres or "").split(",")
    found = [re.fullmatch(r"(?:gres[/:])?gpu(?::[^:(]+)??(?::(\d+))?(?:\(.*\))?", one.strip()) for one in asked]
    nodes = resources.nodes if isinstance(resources, TrainResources) else 1
    return nodes * sum(int(one[1] or 1) for one in found if one)
