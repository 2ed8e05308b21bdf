"""Image-text retrieval: recall@k in both directions, as in clip-benchmark 1.4.0.

A query counts as answered when at least one of its k best-scored answers belongs to it: an image owns all of
its captions, a caption the one image. Legend: N images, M captions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.reading import member
from pipeline.evaluation.task_run import Metrics, TaskRun

DEPTHS = (1, 5, 10)


def evaluate(run: TaskRun) -> Metrics:
    """image_retrieval_recall@k (caption to image), text_retrieval_recall@k, mean_recall@1."""
    images: list[Tensor] = []
    captions: list[Tensor] = []
    captions_per_image: list[int] = []
    for features, batch_captions in run.encoded_batches(_parse_captions):
        images.append(features.cpu())
        captions.append(run.encoder.encode_texts([text for texts in batch_captions for text in texts]).cpu())
        captions_per_image.extend(len(texts) for texts in batch_captions)
    expected, found = run.task.captions, sum(captions_per_image)
    if expected not in (None, found):
        raise UserError(f"{run.folder.path} holds {found} captions, the task has {expected}")
    owner = torch.arange(len(captions_per_image)).repeat_interleave(torch.tensor(captions_per_image))
    return metrics(torch.cat(images), torch.cat(captions), owner)


def metrics(images: Tensor, captions: Tensor, owner: Tensor) -> Metrics:
    """The metrics of `evaluate`.

    images: (N, D). captions: (M, D). owner: (M,) int64, the image of each caption.
    """
    scores = captions @ images.T
    itself = torch.arange(len(images))
    result: dict[str, float] = {}
    for k in DEPTHS:
        result[f"image_retrieval_recall@{k}"] = recall_at_k(scores, owner, itself, k)
        result[f"text_retrieval_recall@{k}"] = recall_at_k(scores.T, itself, owner, k)
    mean = (result["image_retrieval_recall@1"] + result["text_retrieval_recall@1"]) / 2
    return {**result, "mean_recall@1": mean}


def recall_at_k(scores: Tensor, query_image: Tensor, answer_image: Tensor, k: int) -> float:
    """Share of queries with an answer of their own image among the k best.

    scores: (Q, A). query_image: (Q,), answer_image: (A,), the image that each belongs to. With fewer than k
    answers all of them are taken.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (answer_image[best] == query_image[:, None]).any(dim=1).double().mean().item()


def _parse_captions(sample: dict[str, Any]) -> list[str]:
    captions = member(sample, "txt").decode().splitlines()
    if not captions:
        raise ValueError("no caption in its txt")
    return captions
