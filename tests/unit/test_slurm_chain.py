"""What is submitted, in which order, waiting for what; and what is released. On stages as data, without a SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.cluster import Cluster
from pipeline.config.loader import load_recipe
from pipeline.errors import UserError
from pipeline.launch.paths import RunPaths
from pipeline.launch.run import Run
from pipeline.launch.slurm.chain import overtaken, plan_submissions
from pipeline.launch.slurm.commands import Queued
from pipeline.launch.slurm.release import in_vain

RUN = Run.planned(RunPaths(Path("/runs/demo"), load_recipe("demo", ("corpus.tasks=6",))))
ALL = frozenset((stage.name, number) for stage in RUN.stages for number in range(stage.elements))
ELEMENTS = st.sets(st.sampled_from(sorted(ALL)))


def needs(stage: str, number: int) -> set[tuple[str, int]]:
    return {(need.name, other) for need, other in RUN.needs(RUN.stage(stage), number)}


def below(elements: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """These and all that needs them, at whatever remove: straight from the definition."""
    found = set(elements)
    while more := {e for e in ALL - found if needs(*e) & found}:
        found |= more
    return found


def pending(job: str) -> Queued:
    return Queued(job, None, "PENDING", "Dependency", "", "demo")


@given(ELEMENTS, st.integers(1, 7), st.sampled_from([None, 2]))
def test_everything_to_do_is_submitted_once_after_what_it_needs(
    lost: set[tuple[str, int]], largest: int, throttle: int | None
) -> None:
    todo = below(lost)
    cluster = Cluster.model_validate({"defaults": {"throttle": throttle}})
    planned = plan_submissions(RUN, RUN.stages, cluster, todo, {}, largest)
    submitted = [(s.stage.name, number) for s in planned for number in s.elements]
    assert sorted(submitted) == sorted(todo)
    where = {(s.stage.name, number): index for index, s in enumerate(planned) for number in s.elements}
    for index, submission in enumerate(planned):
        assert all(isinstance(which, int) and which < index for which in submission.after)
        for number in submission.elements:
            for need in needs(submission.stage.name, number) & todo:
                assert where[need] in submission.after
        before = [s for s in planned[:index] if s.stage == submission.stage]
        if throttle and before:
            assert planned.index(before[-1]) in submission.after  # or two arrays would each run two at once


def test_what_is_in_the_queue_is_waited_for_and_not_submitted_again() -> None:
    todo = below({("download", 1)})
    planned = plan_submissions(RUN, RUN.stages, Cluster(), todo, {("download", 1): "77"}, 1000)
    assert [s.stage.name for s in planned] == ["verify", "manifest", "train", "export", "evaluate", "report"]
    assert planned[0].elements == (1,)
    assert planned[0].after == ("77",)
    arguments = planned[1].arguments(RUN, Cluster(), ["78"])
    assert "--dependency=afterany:78" in arguments
    assert "--kill-on-invalid-dep=yes" in arguments


def test_a_choice_of_stages_that_could_only_be_blocked_is_refused() -> None:
    with pytest.raises(UserError, match="submit from there, with --from export"):
        plan_submissions(RUN, RUN.select(only="evaluate"), Cluster(), set(ALL), {}, 1000)


def test_pending_jobs_that_would_miss_what_is_made_again_are_replaced() -> None:
    queued = {("verify", 0): pending("5"), ("verify", 1): pending("5"), ("manifest", 0): pending("6")}
    todo = below({("download", 1), ("verify", 0)})
    assert overtaken(RUN, RUN.stages, todo, queued) == {("verify", 1), ("manifest", 0)}


def test_an_element_of_a_part_is_its_index_and_an_offset() -> None:
    [_, second] = plan_submissions(
        RUN, RUN.select(only="download"), Cluster(), {("download", n) for n in range(6)}, {}, 4
    )
    arguments = second.arguments(RUN, Cluster(), ["1"])
    assert "--array=0-1" in arguments
    assert "--export=ALL,NEUCLIP_ARRAY_OFFSET=4" in arguments
    assert arguments[-2:] == ["/runs/demo", "download"]


@given(ELEMENTS, ELEMENTS)
def test_what_waits_in_vain_is_released_and_nothing_else(
    done: set[tuple[str, int]], alive: set[tuple[str, int]]
) -> None:
    found = in_vain(RUN, alive, lambda stage, number: (stage, number) in done)
    gone = ALL - done - alive
    expected: set[tuple[str, int]] = set()
    while more := {e for e in alive - expected if needs(*e) & (gone | expected)}:
        expected |= more
    assert set(found) == expected
    assert set(found.values()) <= gone
