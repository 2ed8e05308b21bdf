"""Every metric equals an independent reference (scikit-learn, or loops written here), also with absent
classes, single-member and empty groups, and several captions per image; where scores tie, it lies between the
luckiest and the unluckiest order.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from pipeline.evaluation.kinds import classification, retrieval
from pipeline.evaluation.kinds.classification import judged, mean_per_class_recall
from pipeline.evaluation.tasks import Task

SEEDS = range(5)


def classify(logits, labels):
    definition = {"kind": "classification", "title": "", "size": len(labels), "main_metric": "acc1", "chance": 0.0}
    task = Task.model_validate({**definition, "classes": logits.shape[1]})
    return classification.metrics(task, judged(logits, labels.tolist()))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [5, 6, 40])
def test_accuracies_equal_scikit_learn(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(97, classes, generator=generator)
    labels = torch.randint(0, classes, (97,), generator=generator)
    logits[torch.arange(0, 97, 2), labels[::2]] += 2.0
    metrics = classify(logits, labels)
    everything = np.arange(classes)
    assert metrics["acc1"] == pytest.approx(accuracy_score(labels, logits.argmax(1)), abs=1e-12)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=everything) if classes > 5 else 1.0
    assert metrics["acc5"] == pytest.approx(expected, abs=1e-12)
    assert metrics["mean_per_class_recall"] == pytest.approx(
        balanced_accuracy_score(labels, logits.argmax(1)), abs=1e-12
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_below_five_classes_there_is_no_acc5(classes):
    labels = torch.arange(classes)
    assert classify(torch.eye(classes), labels) == {"acc1": 1.0, "acc5": None, "mean_per_class_recall": 1.0}


@pytest.mark.parametrize("seed", SEEDS)
def test_recall_averages_over_the_classes_that_occur(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 4, 7], size=50)  # of 9 classes; the others occur in predictions only, or nowhere
    predicted = np.where(rng.random(50) < 0.5, labels, rng.integers(0, 9, size=50))
    recalls = [(predicted[labels == c] == c).sum() / (labels == c).sum() for c in sorted(set(labels))]
    assert mean_per_class_recall(torch.tensor(predicted), torch.tensor(labels)) == pytest.approx(
        sum(recalls) / len(recalls), abs=1e-12
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_tied_logits_stay_between_the_luckiest_and_the_unluckiest_order(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 3, (200, 12), generator=generator).float()
    labels = torch.randint(0, 12, (200,), generator=generator)
    metrics = classify(logits, labels)
    own = logits[torch.arange(200), labels][:, None]
    better = (logits > own).sum(1)
    better_or_equal = (logits >= own).sum(1) - 1
    for k in (1, 5):
        unluckiest = (better_or_equal < k).double().mean().item()
        luckiest = (better < k).double().mean().item()
        assert unluckiest < luckiest
        assert unluckiest <= metrics[f"acc{k}"] <= luckiest


def retrieve(images, captions, owner):
    assert torch.equal(owner, owner.sort().values)  # as they are read: an image's captions follow each other
    task = Task.model_validate(
        {"kind": "retrieval", "title": "", "size": len(images), "main_metric": "mean_recall@1", "chance": 0.0}
    )
    return retrieval.metrics(task, retrieval.judged(images, captions, owner.bincount()))


def ranks_of_best_own(scores, query_image, answer_image):
    """For every query, how many foreign answers come before its best own one: (at best, at worst)."""
    ranks = []
    for q in range(scores.shape[0]):
        own = max(float(scores[q, a]) for a in range(scores.shape[1]) if answer_image[a] == query_image[q])
        foreign = [float(scores[q, a]) for a in range(scores.shape[1]) if answer_image[a] != query_image[q]]
        ranks.append((sum(s > own for s in foreign), sum(s >= own for s in foreign)))
    return ranks


def features_and_owner(seed, images=23):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(torch.randint(1, 6, (images,), generator=generator))
    vision = torch.nn.functional.normalize(torch.randn(images, 8, generator=generator), dim=1)
    text = torch.nn.functional.normalize(vision[owner] + 0.4 * torch.randn(len(owner), 8, generator=generator), dim=1)
    return vision, text, owner


@pytest.mark.parametrize("seed", SEEDS)
def test_retrieval_equals_a_loop_with_several_captions_per_image(seed):
    vision, text, owner = features_and_owner(seed)
    metrics = retrieve(vision, text, owner)
    scores = text.double() @ vision.double().T
    images = torch.arange(len(vision))
    ranks = {
        "image_retrieval": [worst for _, worst in ranks_of_best_own(scores, owner, images)],
        "text_retrieval": [worst for _, worst in ranks_of_best_own(scores.T, images, owner)],
    }
    for direction, values in ranks.items():
        for k in (1, 5, 10):
            expected = sum(rank < k for rank in values) / len(values)
            assert metrics[f"{direction}_recall@{k}"] == pytest.approx(expected, abs=1e-12)
    assert 0.1 < metrics["mean_recall@1"] < 0.9
    assert metrics["mean_recall@1"] == pytest.approx(
        (metrics["image_retrieval_recall@1"] + metrics["text_retrieval_recall@1"]) / 2, abs=1e-12
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_tied_retrieval_stays_between_the_luckiest_and_the_unluckiest_order(seed):
    vision, text, owner = features_and_owner(seed)
    text[owner % 3 == 0] = text[0].clone()  # one caption for a third of the images
    metrics = retrieve(vision, text, owner)
    scores, images = text @ vision.T, torch.arange(len(vision))
    ranks = ranks_of_best_own(scores.T, images, owner)
    for k in (1, 5, 10):
        luckiest = sum(best < k for best, _ in ranks) / len(ranks)
        unluckiest = sum(worst < k for _, worst in ranks) / len(ranks)
        assert unluckiest - 1e-12 <= metrics[f"text_retrieval_recall@{k}"] <= luckiest + 1e-12


def test_fewer_answers_than_k_are_all_taken():
    vision, text, owner = features_and_owner(0, images=3)
    metrics = retrieve(vision, text, owner)
    assert metrics["image_retrieval_recall@5"] == metrics["image_retrieval_recall@10"] == 1.0
