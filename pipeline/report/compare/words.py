"""What a comparison comes to, in sentences: who is ahead, by how much, and whether that is more than the noise."""

from __future__ import annotations

from pipeline.report.compare.comparison import Comparison
from pipeline.report.compare.estimates import Estimate, difference
from pipeline.text import percent, points


def summary(comparison: Comparison) -> list[str]:
    """At most five sentences."""
    overall = comparison.scores.overall
    if overall is None:
        evaluated = any(run.scores.results for run in comparison.runs)
        return ["The runs share no task, so no mean compares them." if evaluated else "No run has been evaluated yet."]
    ranked = [(i, cell) for i, cell in enumerate(overall.cells) if cell is not None]
    ranked.sort(key=lambda entry: -entry[1].mean)
    labels = [group.label for group in comparison.groups]
    (first, best), others = ranked[0], ranked[1:]
    if not others:
        return [f"{overall.title} of {labels[first]}: {with_error(best)}."]
    second, next_best = others[0]
    if overall.best is None:
        return [f"{labels[first]} and {labels[second]} have the same {_lower(overall.title)}: {percent(best.mean)} %."]
    close = [labels[i] for i, cell in others[1:] if not difference(best, cell).beyond_noise]
    return [
        f"{labels[first]} is ahead: {_lower(overall.title)} {percent(best.mean)} %, "
        f"{percent(best.mean - next_best.mean)} percentage points over {labels[second]} ({percent(next_best.mean)} %).",
        *_judgement(best, next_best),
        *_also_close(close),
        _by_task(comparison, first, second),
    ]


def with_error(cell: Estimate | None) -> str:
    """`51.2 ± 0.4 %`; the error is the standard error."""
    if cell is None:
        return "–"
    error = "" if cell.standard_error is None else f" ± {percent(cell.standard_error)}"
    return f"{percent(cell.mean)}{error} %"


def _judgement(best: Estimate, other: Estimate) -> list[str]:
    gap = difference(best, other)
    if gap.low is None or gap.high is None:
        return ["How much of that is noise cannot be said: the results do not tell how many images they are of."]
    interval = f"95 % interval {points(gap.low)} to {points(gap.high)}, from {best.runs} and {other.runs} runs"
    verdict = "more than the noise" if gap.beyond_noise else "not more than the noise"
    if best.runs > 1 and other.runs > 1:
        return [f"That is {verdict} between seeds ({interval})."]
    return [
        f"That is {verdict} that can be seen ({interval}): of a single run only the noise of the tasks' images.",
        "Without a second seed of each, the noise of training is not known.",
    ]


def _also_close(labels: list[str]) -> list[str]:
    if not labels:
        return []
    named = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    return [f"Nor can {named} be told apart from it."]


def _by_task(comparison: Comparison, first: int, second: int) -> str:
    gaps = [
        difference(ours, theirs)
        for line in comparison.scores.tasks
        if (ours := line.cells[first]) is not None and (theirs := line.cells[second]) is not None
    ]
    ahead = sum(gap.value > 0 for gap in gaps)
    better = sum(gap.beyond_noise and gap.value > 0 for gap in gaps)
    worse = sum(gap.beyond_noise and gap.value < 0 for gap in gaps)
    told = f"It is ahead in {ahead} of {len(gaps)} task{'s' if len(gaps) > 1 else ''}"
    if not better and not worse:
        return f"{told}; by itself no task tells the two apart."
    return (
        f"{told}, in {better} by more than the noise, and behind by more than that in {worse}; of twenty such "
        "intervals, one is expected to be off by chance."
    )


def _lower(title: str) -> str:
    return title[0].lower() + title[1:]
