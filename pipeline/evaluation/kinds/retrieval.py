"""Image-text retrieval: recall@k in both directions, as in clip-benchmark 1.4.0.

A query counts as answered when at least one of its k best-scored answers belongs to it: an image owns all of
its captions, a caption the one image. Legend: N images, M captions.

Rows, one per image, so that its captions stay with it: captions (N,) int64, their number; captions_answered (N, 3)
int64, how many of them find the image among the k best, for k = 1, 5, 10; answered (N, 3) bool, whether it finds one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.evaluation.reading import Parse
from pipeline.evaluation.samples import Sample, member
from pipeline.evaluation.task_run import Metrics, Rows, TaskRun
from pipeline.evaluation.tasks import Task

DEPTHS = (1, 5, 10)


def rows(run: TaskRun) -> Iterator[Rows]:
    """Every caption against every image: the task in one piece."""
    images: list[Tensor] = []
    captions: list[Tensor] = []
    captions_per_image: list[int] = []
    for features, batch_captions in run.encoded_batches(parser(run.task)):
        images.append(features.cpu())
        captions.append(run.encoder.encode_texts([text for texts in batch_captions for text in texts]).cpu())
        captions_per_image.extend(len(texts) for texts in batch_captions)
    if images:
        yield judged(torch.cat(images), torch.cat(captions), torch.tensor(captions_per_image))


def parser(task: Task) -> Parse:
    """A sample -> its captions: the lines of `txt` in a tar, the list `caption` in Parquet."""
    return _parse_row if task.format == "parquet" else _parse_lines


def judged(images: Tensor, captions: Tensor, captions_per_image: Tensor) -> Rows:
    """The rows of N images.

    images: (N, D). captions: (M, D), those of the first image first. captions_per_image: (N,) int64.
    """
    scores = captions @ images.T
    itself = torch.arange(len(images))
    owner = itself.repeat_interleave(captions_per_image)
    found = torch.stack([is_answered(scores, owner, itself, k) for k in DEPTHS], dim=1).long()
    return {
        "captions": captions_per_image,
        "captions_answered": found.new_zeros(len(images), len(DEPTHS)).index_add_(0, owner, found),
        "answered": torch.stack([is_answered(scores.T, itself, owner, k) for k in DEPTHS], dim=1),
    }


def metrics(task: Task, rows: Rows) -> Metrics:
    """image_retrieval_recall@k (caption to image), text_retrieval_recall@k, mean_recall@1."""
    result: dict[str, float] = {}
    captions_answered = rows["captions_answered"].sum(dim=0).double() / rows["captions"].sum()
    for k, of_captions, of_images in zip(DEPTHS, captions_answered, rows["answered"].double().mean(dim=0), strict=True):
        result[f"image_retrieval_recall@{k}"] = of_captions.item()
        result[f"text_retrieval_recall@{k}"] = of_images.item()
    mean = (result["image_retrieval_recall@1"] + result["text_retrieval_recall@1"]) / 2
    return {**result, "mean_recall@1": mean}


def is_answered(scores: Tensor, query_image: Tensor, answer_image: Tensor, k: int) -> Tensor:
    """Whether an answer of a query's own image is among its k best: (Q,) bool.

    scores: (Q, A). query_image: (Q,), answer_image: (A,), the image that each belongs to. With fewer than k
    answers all of them are taken.
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (answer_image[best] == query_image[:, None]).any(dim=1)


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
