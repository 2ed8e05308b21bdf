"""A chain that waits for what will not come is taken out of the queue, with the reason: nothing waits for ever."""

from __future__ import annotations

from collections.abc import Callable, Collection

from pipeline.launch.run import Run
from pipeline.launch.slurm import jobs
from pipeline.launch.slurm.jobs import Element
from pipeline.locks import taking_turns


def release(run: Run, ended: Element) -> dict[Element, Element]:
    """Cancel what now waits in vain, `ended` being an element that has just ended without being done.

    Returns {cancelled element: the one that it would have waited for}.
    """
    with taking_turns(jobs.folder(run.paths) / ".release"):
        queued = jobs.in_queue(run.paths)
        vain = in_vain(run, queued.keys() - {ended}, lambda stage, number: run.paths.marker(stage, number).exists())
        for root in dict.fromkeys(vain.values()):
            chosen = {element: queued[element] for element, cause in vain.items() if cause == root}
            jobs.cancel(run.paths, chosen, f"needs {root[0]} {root[1]}, which is not done and not in the queue")
    return vain


def in_vain(run: Run, alive: Collection[Element], done: Callable[[str, int], bool]) -> dict[Element, Element]:
    """{an element of `alive`: one that it needs, directly or not, that is neither done nor alive}."""
    found: dict[Element, Element] = {}
    for stage in run.stages:
        for number in range(stage.elements):
            if (stage.name, number) in alive:
                needs = ((need.name, other) for need, other in run.needs(stage, number))
                for needed in needs:
                    if needed in found or (needed not in alive and not done(*needed)):
                        found[stage.name, number] = found.get(needed, needed)
                        break
    return found
