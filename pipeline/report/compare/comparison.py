"""Runs side by side: what differs between them, what each scored, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.report.compare.groups import SEED, Group, Setting, differing, group_runs, mixed_settings
from pipeline.report.compare.run import Run
from pipeline.report.compare.scores import ScoreTable, score_table

USUAL_BASELINE = "openclip"  # the objective that the others are measured against


@dataclass(frozen=True)
class Comparison:
    """group_by: as it was asked for. baseline: the number of a group. settings: what differs, by run.

    notes: what to bear in mind, in words.
    """

    runs: list[Run]
    groups: list[Group]
    group_by: str | None
    baseline: int
    settings: list[Setting]
    scores: ScoreTable
    notes: list[str]

    def group_of(self, run: Run) -> Group:
        return next(group for group in self.groups if run in group.runs)


def compare(runs: Sequence[Run], group_by: str | None = None, baseline: str | None = None) -> Comparison:
    """group_by: as of `group_runs`. baseline: a group's label, or the name or folder of one of its runs.

    Without, it is the first group of the objective openclip, or the first. Raises UserError for names that are not
    there.
    """
    groups = group_runs(runs, group_by)
    scores = score_table(groups)
    return Comparison(
        runs=list(runs),
        groups=groups,
        group_by=group_by,
        baseline=_baseline(groups, baseline),
        settings=differing(runs),
        scores=scores,
        notes=[*scores.notes, *_notes(runs, groups, group_by)],
    )


def _baseline(groups: Sequence[Group], named: str | None) -> int:
    if named is None:
        usual = (g.number for g in groups if g.runs[0].objective == USUAL_BASELINE)
        return next(usual, 0)
    wanted = named.rstrip("/")
    for group in groups:
        if wanted == group.label or any(wanted in (r.name, r.folder.name, str(r.folder)) for r in group.runs):
            return group.number
    raise UserError(f"--baseline {named}: there are the groups {', '.join(repr(group.label) for group in groups)}")


def _notes(runs: Sequence[Run], groups: Sequence[Group], group_by: str | None) -> list[str]:
    notes = []
    for group in groups:
        mixed = mixed_settings(group, group_by)
        if mixed:
            notes.append(f"Runs of {group.label} differ in more than the seed: {', '.join(mixed)}.")
        seeds = [run.config.get(SEED) for run in group.runs]
        if len(set(seeds)) < len(seeds):
            notes.append(f"Runs of {group.label} share a seed: they tell less of the noise than as many seeds would.")
    corpora = {run.trained.get("manifest_fingerprint") for run in runs if run.trained} - {None}
    if len(corpora) > 1:
        notes.append(
            f"The runs were trained on {len(corpora)} different corpora: their manifests' fingerprints differ."
        )
    return notes
