"""The laboratory behind the comparisons: its measure is the definition, its runs repeat, its studies continue."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import accuracy as accuracy_benchmark
import normalizer_error
from lab import study as study_module
from lab.data import CAPTIONS, CONTEXT, SIZE, VOCABULARY, Corpus, Task, Vocabulary, sample
from lab.measures import accuracy, encode_all, log_normalizer_error
from lab.study import study
from lab.training import Trial, build, run
from pipeline.errors import UserError
from pipeline.locks import exclusive

TINY = {"batch_size": 8, "samples": 32, "corpus": "tiny"}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 50, (40, CAPTIONS, CONTEXT), generator=generator)
    tokens[..., -1] = VOCABULARY - 1
    task = Task(images[:12], tokens[:5, 0], torch.arange(12) % 5, tokens[:12, 1])
    return Corpus(images, tokens, VOCABULARY, {"tuned": task}, {"reported": task})


@pytest.mark.parametrize("objective", ["openclip", "neuclip"])
def test_the_error_is_the_mean_square_over_the_whole_training_set(corpus: Corpus, objective: str) -> None:
    options = {"npn": {"prototypes": 8}} if objective == "neuclip" else {}
    setup = build(Trial(objective=objective, options=options, **TINY), corpus)
    before = {name: value.clone() for name, value in setup.module.state_dict().items()}
    measured = log_normalizer_error(setup.module, setup.objective, corpus, batch_size=40, seed=3)["mse"]
    assert all(torch.equal(value, before[name]) for name, value in setup.module.state_dict().items())

    generator = torch.Generator().manual_seed(3)
    setup.module.eval()
    with torch.no_grad():
        reference, tau, _ = encode_all(setup.module, *sample(corpus, torch.arange(40), generator))
        index = torch.randperm(40, generator=generator)
        anchors, _, _ = encode_all(setup.module, *sample(corpus, index, generator))
        used = setup.objective(anchors, index, tau).log_normalizer
    assert used is not None
    squares = []
    for side, (ours, others) in enumerate(((anchors.image, reference.text), (anchors.text, reference.image))):
        for i in range(40):
            positive = float(anchors.image[i].double() @ anchors.text[i].double())
            terms = [
                math.exp((float(ours[i].double() @ others[j].double()) - positive) / float(tau))
                for j in range(40)
                if j != index[i]
            ]
            squares.append((float(used[side, i]) - math.log(np.mean(terms) + 1e-14)) ** 2)
    assert measured == pytest.approx(np.mean(squares), rel=1e-3)


def test_accuracy_by_hand(corpus: Corpus) -> None:
    module = build(Trial(objective="openclip", **TINY), corpus).module
    scores = accuracy(module, corpus.tuning)
    task = corpus.tuning["tuned"]
    with torch.no_grad():
        module.eval()
        images = module.towers.encode_image((task.images - module.mean) / module.std, normalize=True)
        names = module.towers.encode_text(task.tokens, normalize=True)
        texts = module.towers.encode_text(task.captions, normalize=True)
    right = ((images @ names.T).argmax(dim=1) == task.labels).double().mean()
    there = ((images @ texts.T).argmax(dim=1) == torch.arange(12)).double().mean()
    back = ((texts @ images.T).argmax(dim=1) == torch.arange(12)).double().mean()
    assert scores["tuned_top1"] == pytest.approx(100 * float(right))
    assert scores["tuned_retrieval_top1"] == pytest.approx(50 * float(there + back))
    assert scores["tuned_top5"] == 100.0  # of five names


@pytest.mark.parametrize("objective", ["siglip", "fastclip"])
def test_a_run_repeats_itself_and_differs_by_seed(corpus: Corpus, objective: str) -> None:
    def final(seed: int) -> dict[str, float]:
        result = run(Trial(objective=objective, seed=seed, measure_error=2, **TINY), corpus)
        assert [point["step"] for point in result["curve"] if "mse" in point] == (
            [2, 4] if objective == "fastclip" else []
        )
        return {key: value for key, value in result["final"].items() if key != "seconds"}

    assert final(1) == final(1)
    assert final(1) != final(2)


def test_a_study_continues_after_a_kill(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "load", lambda name: corpus)
    path = tmp_path / "runs.jsonl"
    trials = {f"seed {seed}": Trial(objective="openclip", seed=seed, **TINY) for seed in range(2)}
    first = study(path, trials, jobs=1)
    torn = path.read_text() + '{"trial": {"objective": "open'
    path.write_text(torn)
    more = trials | {"seed 2": Trial(objective="openclip", seed=2, **TINY)}
    again = study(path, more, jobs=1)
    assert {label: again[label] for label in trials} == first
    assert len(path.read_text().splitlines()) == 4  # three runs and the torn line
    assert again["seed 2"]["trial"]["seed"] == 2


def test_two_studies_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with exclusive(tmp_path / "runs.lock", "the study"), pytest.raises(UserError, match=r"runs\.jsonl"):
        study(tmp_path / "runs.jsonl", {"one": Trial(objective="openclip", **TINY)}, jobs=1)


def test_collapsed_or_diverged_features_do_not_score(corpus: Corpus) -> None:
    module = build(Trial(objective="openclip", **TINY), corpus).module
    torch.nn.init.constant_(module.towers.text_projection, 0.0)  # all texts alike: every name ties
    assert accuracy(module, corpus.tuning)["tuned_top1"] == 0
    torch.nn.init.constant_(module.towers.visual.projection.weight, torch.nan)
    assert {value for name, value in accuracy(module, corpus.tuning).items() if name.endswith("top1")} == {0.0}


def test_tokens_are_renumbered_and_the_end_stays_last() -> None:
    tokens = Vocabulary()
    first, second = tokens(["a red star", "a blue star"])
    assert int(first.argmax()) == int(second.argmax())  # same length, the end token is the largest
    assert (first == second).sum() == CONTEXT - 1
    assert int(first.max()) == VOCABULARY - 1
    assert int(first[1]) == int(tokens(["a"])[0, 1])


def test_what_is_added_by_a_smaller_batch_and_a_larger_corpus() -> None:
    tau, batch, _ = normalizer_error.CENTRE
    table = {s: {o: [1.0, 3.0] for o in normalizer_error.OPTIONS} for s in normalizer_error.settings(full=False)}
    table[tau, 2 * batch, 1.0]["fastclip"] = [0.5]
    table[tau, batch, 0.1]["neuclip"] = [1.5]
    outcome = normalizer_error.summary(table)
    assert outcome["added"]["fastclip"] == {"halving_batch": 1.5, "ten_times_dataset": 0.0}
    assert outcome["added"]["neuclip"] == {"halving_batch": 0.0, "ten_times_dataset": 0.5}
    assert outcome["ratio_openclip"] == 1.0
    assert json.loads(json.dumps(outcome))["table"][0]["se"] == 1.0


def test_the_difference_is_taken_seed_by_seed() -> None:
    def result(score: float) -> dict[str, object]:
        point = {"a_top1": score, "a_top5": 99.0, "b_top1": score + 2}
        point |= dict.fromkeys(("loss", "tau", "samples", "seconds"), 1.0)
        return {"final": point, "seconds": 1.0, "curve": [point]}

    diverged = {"final": {}, "seconds": 1.0, "curve": [], "diverged": 7}
    runs = {"neuclip": [result(5), result(9), result(1)], "openclip": [result(4), result(7), diverged]}
    outcome = accuracy_benchmark.summary(runs)
    assert outcome["neuclip_minus"]["openclip"] == {"mean": 1.5, "se": 0.5}
    assert outcome["table"]["neuclip"]["average"]["mean"] == 6.0
    assert outcome["table"]["openclip"]["b"] == {"mean": 7.5, "se": 1.5}
    assert outcome["table"]["openclip"]["diverged"] == 1
    assert len(accuracy_benchmark.curves(runs)["openclip"]) == 1


def test_every_objective_is_tuned_as_much() -> None:
    assert len({len(candidates) for candidates in accuracy_benchmark.CANDIDATES.values()}) == 1
