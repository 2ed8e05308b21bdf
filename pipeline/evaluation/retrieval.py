"""Image-text retrieval: recall@k in both directions, as in clip-benchmark 1.4.0.

A query counts as answered when at least one of its k best-scored answers belongs to it: an image owns all of
its captions, a caption the one image. Legend: N images, M captions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.reading import Parse
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_run import Metrics, TaskRun
from pipeline.evaluation.tasks import Task

DEPTHS = (1, 5, 10)


def evaluate(run: TaskRun) -> Metrics:
    """image_retrieval_recall@k (caption to image), text_retrieval_recall@k, mean_recall@1."""
    images: list[Tensor] = []
    captions: list[Tensor] = []
    captions_per_image: list[int] = []
    for features, batch_captions in run.encoded_batches(parser(run.task)):
        images.append(features.cpu())
        captions.append(run.encoder.encode_texts([text for texts in batch_captions for text in texts]).cpu())
        captions_per_image.extend(len(texts) for texts in batch_captions)
    expected, found = run.task.captions, sum(captions_per_image)
    if expected not in (None, found):
        raise UserError(f"{run.folder.path} holds {found} captions, the task has {expected}")
    owner = torch.arange(len(captions_per_image)).repeat_interleave(torch.tensor(captions_per_image))
    return metrics(torch.cat(images), torch.cat(captions), owner)


def parser(task: Task) -> Parse:
    """A sample -> its captions: the lines of `txt` in a tar, the list `caption` in Parquet."""
    return _parse_row if task.format == "parquet" else _parse_lines


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


def _parse_lines(sample: Sample) -> list[str]:
    captions = member(sample, "txt").decode().splitlines()
    if not captions:
        raise ValueError("no caption in its txt")
    return captions


def _parse_row(sample: Sample) -> list[str]:
    captions = member(sample, "caption")
    if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"caption should be a list of texts, not {captions!r}")
    return captions
