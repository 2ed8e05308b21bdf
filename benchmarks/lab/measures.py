"""What the laboratory measures: the log-normalizer error over the whole training set, and zero-shot accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from lab.data import Corpus, Task, sample
from pipeline.engine.train_module import TrainModule
from pipeline.objectives import Features, Objective
from pipeline.objectives.normalizer_error import normalizer_error

ANCHORS = 512  # whose error is measured at one time
CHUNK = 512


def log_normalizer_error(
    module: TrainModule, objective: Objective, corpus: Corpus, batch_size: int, seed: int
) -> dict[str, float]:
    """The error (METHOD: mse of `alpha_used` against log(eps + g(S))) at this moment, S the whole training set.

    Every anchor's estimate is the one that a training step from here would use: for batches of the run's own size, each
    on a copy of the objective's state. The weights are the same for estimates and truth, as augmentation is.
    """
    generator = torch.Generator().manual_seed(seed)
    everything = torch.arange(len(corpus.images))
    with torch.no_grad():
        module.eval()
        reference, tau, bias = encode_all(module, *sample(corpus, everything, generator))
        chosen = torch.randperm(len(everything), generator=generator)[: max(ANCHORS, batch_size)]
        squares = []
        for index in chosen.split(batch_size):
            if len(index) < batch_size:
                break
            features, _, _ = encode_all(module, *sample(corpus, index, generator))
            output = copy.deepcopy(objective)(features, index, tau, bias)
            if output.log_normalizer is None:
                break
            error = normalizer_error(
                features, index, output.log_normalizer, reference, everything, tau, objective.config.eps
            )
            squares.append(float(error.mse))
        module.train()
    return {"mse": sum(squares) / len(squares)} if squares else {}


def accuracy(module: TrainModule, tasks: dict[str, Task]) -> dict[str, float]:
    """Top-1 and top-5 of each task, and mean recall@1 and @5 of retrieval both ways where it has captions; percent."""
    scores: dict[str, float] = {}
    with torch.no_grad():
        module.eval()
        for name, task in tasks.items():
            images = _encode_chunks(module.towers.encode_image, _normalised(module, task.images))
            names = _encode_chunks(module.towers.encode_text, task.tokens)
            scores |= _top(name, images @ names.T, task.labels)
            if task.captions is not None:
                similarity = images @ _encode_chunks(module.towers.encode_text, task.captions).T
                itself = torch.arange(len(images))
                ways = [_top("", similarity, itself), _top("", similarity.T, itself)]
                scores |= {f"{name}_retrieval{key}": (ways[0][key] + ways[1][key]) / 2 for key in ways[0]}
        module.train()
    return scores


def _top(name: str, scores: Tensor, labels: Tensor) -> dict[str, float]:
    # Ties and NaN count as misses: collapsed or diverged features must not score.
    rank = (~(scores < scores.gather(1, labels[:, None]))).sum(dim=1) - 1
    return {f"{name}_top{k}": 100 * float((rank < k).float().mean()) for k in (1, 5)}


def encode_all(module: TrainModule, images: Tensor, tokens: Tensor) -> tuple[Features, Tensor, Tensor | None]:
    """Features, tau and bias (None without one) at the current weights; images: (n, 3, S, S), tokens: (n, CONTEXT)."""
    parts = [module(images[i : i + CHUNK], tokens[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    features = Features(torch.cat([p.image_features for p in parts]), torch.cat([p.text_features for p in parts]))
    return features, parts[0].tau, parts[0].logit_bias


def _normalised(module: TrainModule, images: Tensor) -> Tensor:
    return (images - module.mean) / module.std


def _encode_chunks(encode: Callable[..., Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([encode(inputs[i : i + CHUNK], normalize=True) for i in range(0, len(inputs), CHUNK)])
