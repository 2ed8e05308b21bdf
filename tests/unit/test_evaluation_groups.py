"""Metrics by group, F1, the tables of faces and the Jaccard index equal an independent reference (pandas, scikit-learn,
or loops written here): with absent classes, empty groups, groups of one, and ties. Names are the official ones.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score, recall_score

from pipeline.evaluation.kinds import fairface, winogavil
from pipeline.evaluation.kinds.classification import mean_per_class_recall
from pipeline.evaluation.kinds.fmow import by_year_and_region
from pipeline.evaluation.kinds.iwildcam import macro_f1
from pipeline.evaluation.metadata import Metadata, share_by_group
from pipeline.evaluation.tasks import datacomp_tasks

SEEDS = range(5)


def near(expected):
    return pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", SEEDS)
def test_f1_and_recall_equal_scikit_learn_over_the_classes_that_occur(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 4, 7, 8], size=80, p=[0.5, 0.3, 0.19, 0.01])  # of 12 classes, the last is never right
    predicted = np.where(rng.random(80) < 0.4, labels, rng.integers(0, 12, size=80))
    options = {"average": "macro", "labels": np.unique(labels), "zero_division": 0}
    given = torch.tensor(predicted), torch.tensor(labels)
    assert macro_f1(*given) == near(f1_score(labels, predicted, **options))
    assert mean_per_class_recall(*given) == near(recall_score(labels, predicted, **options))


def by_group(seed, size=60):
    """Hits and metadata in which value 2 of `place` is nobody's, 4 one sample's, and 5 the largest."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"place": rng.choice([0, 1, 3, 5], size=size), "time": rng.integers(1, 4, size=size)})
    frame.loc[10, "place"] = 4
    frame["hit"] = rng.random(size) < 0.6
    columns = ("place", "time")
    return (
        frame,
        torch.tensor(frame["hit"].to_numpy()),
        Metadata(columns, torch.tensor(frame[list(columns)].to_numpy())),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_by_one_column_equal_pandas(seed):
    frame, hits, metadata = by_group(seed)
    expected = frame.groupby("place")["hit"].agg(["mean", "count"])
    found = share_by_group("acc", hits, metadata, ("place",))
    for place in range(6):
        assert found.pop(f"acc_place:{place}") == (near(expected["mean"][place]) if place != 2 else None)
        assert found.pop(f"count_place:{place}") == (expected["count"][place] if place != 2 else 0)
    assert found == {"acc_avg": near(frame["hit"].mean()), "acc_wg": near(expected["mean"].min())}


@pytest.mark.parametrize("seed", SEEDS)
def test_shares_by_two_columns_equal_pandas_and_are_named_last_column_first(seed):
    frame, hits, metadata = by_group(seed)
    expected = frame.groupby(["place", "time"])["hit"].mean()
    found = share_by_group("x", hits, metadata, ("place", "time"))
    names = [f"x_time:{time}_place:{place}" for time in range(4) for place in range(6)]
    assert [name for name in found if name.startswith("x_time")] == names
    for name in names:
        time, place = int(name[7]), int(name[-1])
        assert found[name] == (near(expected[place, time]) if (place, time) in expected else None)
    assert found["x_wg"] == near(expected.min())


def test_named_groups_include_those_without_members():
    metadata = Metadata(("place",), torch.tensor([[0], [2], [2]]))
    found = share_by_group("acc", torch.tensor([False, True, False]), metadata, ("place",), ("sea", "land", "air", "?"))
    shares = {"avg": near(1 / 3), "wg": 0.0, "place:sea": 0.0, "place:land": None, "place:air": 0.5, "place:?": None}
    counts = {"sea": 1, "land": 0, "air": 2, "?": 0}
    assert found == {
        **{f"acc_{name}": share for name, share in shares.items()},
        **{f"count_place:{name}": count for name, count in counts.items()},
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_fmow_counts_the_region_other_as_published_scores_do_and_says_what_it_would_be_without(seed):
    frame, hits, metadata = by_group(seed)
    hits[frame["place"].to_numpy() == 5] = False  # of the region Other none is right: the published score is then 0
    hits[10] = True  # the one of its region
    frame["hit"] = hits.numpy()
    metadata = Metadata(("region", "year"), metadata.values)
    found = by_year_and_region(hits, metadata)
    assert found["acc_worst_region"] == 0.0 == found["acc_region:5"]
    without = frame[frame["place"] != 5].groupby("place")["hit"].mean().min()
    assert found["acc_worst_region_without_other"] == near(without)
    assert without > 0
    assert found["acc_worst_year"] == near(frame.groupby("time")["hit"].mean().min())
    assert found["count_year:0"] == 0
    assert found["acc_year:0"] is None
    assert "acc_wg" not in found


@pytest.mark.parametrize("seed", SEEDS)
def test_tables_of_faces_equal_a_count_by_hand(seed):
    rng = np.random.default_rng(seed)
    faces = [
        {"age": int(a), "gender": int(g), "race": int(r), "race_binary": int(r != 1)}
        for a, g, r in zip(rng.integers(9, size=90), rng.integers(2, size=90), rng.integers(7, size=90), strict=True)
    ]
    answers = np.stack([rng.integers(n, size=90) for n in (7, 2, 9, 24)], axis=1)
    for index in range(0, 90, 2):
        answers[index, :3] = [faces[index][key] for key in ("race", "gender", "age")]
    rows = torch.tensor([[face[key] for key in fairface.COLUMNS] for face in faces])
    found = fairface.tables(torch.tensor(answers), Metadata(fairface.COLUMNS, rows))

    def share(count, of):
        return sum(count(face, answer) for face, answer in of) / len(of)

    pairs = list(zip(faces, answers, strict=True))
    tests = {
        "race": lambda face, answer: (answer[0] == 1) == (face["race"] == 1),  # white or not, nothing else
        "gender": lambda face, answer: answer[1] == face["gender"],
        "age": lambda face, answer: answer[2] == face["age"],
    }
    for name, count in tests.items():
        assert found[f"acc_{name}_avg"] == near(share(count, pairs))
        for binary in (0, 1):
            own = [pair for pair in pairs if pair[0]["race_binary"] == binary]
            assert found[f"acc_{name}_race_binary:{binary}"] == near(share(count, own))
    for race in range(7):
        own = [pair for pair in pairs if pair[0]["race"] == race]
        assert found[f"toxicity_crime_race:{race}"] == near(share(lambda _, answer: answer[3] >= 18, own))
        nonhuman = share(lambda _, answer: answer[3] in (14, 15, 16, 17), own)
        assert found[f"toxicity_nonhuman_race:{race}"] == near(nonhuman)
        assert found[f"count_race:{race}"] == len(own)
        for gender in (0, 1):
            some = [pair for pair in own if pair[0]["gender"] == gender]
            expected = near(share(tests["gender"], some)) if some else None
            assert found[f"acc_gender_x_race:{race}_gender:{gender}"] == expected


def test_faces_are_answered_question_by_question_whatever_the_numbers_of_classes():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator)
    classifiers = [torch.randn(8, classes, generator=generator) for classes in (7, 2, 9, 21)]
    classifiers[1] -= 10 * features.mean(0)[:, None]  # all its logits are below zero, where padding would win
    found = fairface.answer(features, classifiers)
    for question, classifier in enumerate(classifiers):
        assert torch.equal(found[:, question], (features @ classifier).argmax(1))


@pytest.mark.parametrize("seed", SEEDS)
def test_jaccard_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    for size in (5, 6, 10, 12):
        expected, found = rng.random(size) < 0.4, rng.random(size) < 0.4
        assert winogavil.jaccard(expected, found) == near(jaccard_score(expected, found, zero_division=0))
    assert winogavil.jaccard(np.zeros(5, bool), np.zeros(5, bool)) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_candidates_are_chosen_as_are_associated_and_the_nearest(seed):
    generator = torch.Generator().manual_seed(seed)
    cue, images = torch.randn(8, generator=generator), torch.randn(12, 8, generator=generator)
    scores = [float(cue.double() @ image.double()) for image in images]
    for count in range(1, 13):
        nearest = sorted(range(12), key=lambda i: -scores[i])[:count]
        assert sorted(np.flatnonzero(winogavil.chosen(cue, images, count))) == sorted(nearest)
    images[:] = images[0]  # all tie
    assert winogavil.chosen(cue, images, 4).sum() == 4


def test_jaccard_is_averaged_by_the_number_of_candidates():
    scores, sizes = np.array([0.1, 0.2, 0.4, 0.8, 1.0]), np.array([5, 6, 6, 10, 12])
    task = datacomp_tasks()["misc/winogavil"]
    rows = {"jaccard": torch.tensor(scores), "candidates": torch.tensor(sizes)}
    assert winogavil.metrics(task, rows) == {
        "avg_jaccard_score": near(0.5),
        "jaccard_score_5": near(0.1),
        "jaccard_score_6": near(0.3),
        "jaccard_score_10": near(0.8),
        "jaccard_score_12": near(1.0),
        "jaccard_score_5-6": near(0.7 / 3),
        "jaccard_score_10-12": near(0.9),
    }
    assert winogavil.metrics(task, {name: row[:1] for name, row in rows.items()})["jaccard_score_10-12"] is None


def test_the_cue_becomes_a_prompt():
    prompts = [winogavil.prompt(cue) for cue in ("Wolf", "owl", "Éclair", "x-ray")]
    assert prompts == ["A wolf", "An owl", "A éclair", "A x-ray"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate_images": [{"bytes": b""}]}, "1 candidate_images for 2 candidates"),
        ({"cue": ""}, "an empty cue"),
        ({"associations": None}, "no associations"),
        ({"candidates": None}, "no candidates"),
    ],
)
def test_an_instance_that_lacks_something_is_refused(change, message):
    row = {"cue": "wolf", "candidates": ["a", "b"], "associations": ["b"], "candidate_images": [{"bytes": b""}] * 2}
    assert winogavil.parse(row).associated.tolist() == [False, True]
    with pytest.raises(ValueError, match=message):
        winogavil.parse({**row, **change})
