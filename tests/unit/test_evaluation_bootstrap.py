"""The bootstrap's quick way to score what is drawn is the metrics' own, sample by sample, for every main metric."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.bootstrap import RESAMPLED, differences
from pipeline.evaluation.kinds import KINDS
from pipeline.evaluation.tasks import _RULES, Task

CLASSES, GROUPS = 6, 4
MAIN_METRICS = [(kind, name) for kind, rules in _RULES.items() for name in rules.main_metrics]


def definition(kind, main_metric):
    needed = {key: {"classes": CLASSES, "columns": ["g"], "group_by": "g"}[key] for key in _RULES[kind].needs}
    top = {"top": 5} if main_metric == "acc_top5_wg" else {}
    form = {"format": "parquet"} if kind == "winogavil" else {}
    said = {"kind": kind, "title": "T", "size": 1, "main_metric": main_metric, "chance": 0.1}
    return Task.model_validate({**said, **needed, **top, **form})


def columns(rng, kind, samples):
    """What two models made of the same samples."""
    if kind == "retrieval":
        captions = torch.tensor(rng.integers(1, 4, size=samples))
        return [
            {
                "captions": captions,
                "captions_answered": torch.tensor(rng.integers(0, captions[:, None] + 1, size=(samples, 3))),
                "answered": torch.tensor(rng.random((samples, 3)) < 0.5),
            }
            for _ in "ab"
        ]
    if kind == "winogavil":
        candidates = torch.tensor(rng.choice([5, 6, 10, 12], size=samples))
        return [
            {"jaccard": torch.tensor(rng.choice([0, 1 / 3, 1], size=samples)), "candidates": candidates} for _ in "ab"
        ]
    label, metadata = (
        torch.tensor(rng.integers(CLASSES, size=samples)),
        torch.tensor(rng.integers(GROUPS, size=(samples, 3))),
    )
    width = torch.full((samples,), 3)
    return [
        {
            "label": label,
            "best": (best := torch.tensor(rng.integers(CLASSES, size=samples))),
            "place": torch.where(best == label, 0, torch.tensor(rng.integers(1, 6, size=samples))),
            "metadata": metadata,
            "metadata_width": width,
        }
        for _ in "ab"
    ]


@pytest.mark.parametrize(("kind", "main_metric"), MAIN_METRICS)
@given(data=st.data())
def test_a_score_of_so_many_of_each_is_the_metric_of_the_samples_repeated(kind, main_metric, data):
    task, samples = definition(kind, main_metric), data.draw(st.integers(1, 12))
    rows, _ = columns(np.random.default_rng(data.draw(st.integers(0, 2**32))), kind, samples)
    some = st.lists(st.integers(0, 3), min_size=samples, max_size=samples).filter(any)
    times = torch.tensor(data.draw(st.lists(some, min_size=1, max_size=3)))
    metric = RESAMPLED[main_metric]
    found = metric.score([column.double() for column in metric.reads(task, rows)], times.T.double())
    for of, score in zip(times, found.tolist(), strict=True):
        drawn = {name: column.repeat_interleave(of, dim=0) for name, column in rows.items()}
        expected = KINDS[kind].metrics(task, drawn)[main_metric]
        assert score == pytest.approx(np.nan if expected is None else expected, abs=1e-12, nan_ok=True)


class EveryOneOnce:
    """In place of numpy's generator."""

    def multinomial(self, n, p, size):
        return np.tile(np.round(n * p), (size, 1)).astype(np.int64)


@pytest.mark.parametrize(("kind", "main_metric"), MAIN_METRICS)
def test_of_what_both_models_made_of_a_sample_nothing_is_torn_apart(kind, main_metric):
    task = definition(kind, main_metric)
    a, b = columns(np.random.default_rng(0), kind, 200)
    scores = [KINDS[kind].metrics(task, rows)[main_metric] for rows in (a, b)]
    assert scores[0] != scores[1]
    found = differences(task, a, b, 250, EveryOneOnce())
    assert found == pytest.approx(np.full(250, scores[1] - scores[0]), abs=1e-12)
    assert (differences(task, a, a, 250, np.random.default_rng(0)) == 0).all()
    assert len(set(differences(task, a, b, 250, np.random.default_rng(0)))) > 20
