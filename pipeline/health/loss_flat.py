"""A loss that does not move."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from itertools import pairwise

from pipeline.config.schema import HealthConfig
from pipeline.health.checks import STEP, Check

BLOCKS = 4  # of a window


class LossFlat(Check):
    """After the warm-up the loss stays where it is, as far as its noise lets see.

    Objectives differ in the scale and the bound of their losses, and a loss may rise while embeddings get better, so it
    is compared with itself alone: the window is cut into four blocks, and their means should lie further apart, in
    either direction, than means of so much noise do. Four means of equal noise span more than 6 standard errors once in
    5000 times. The noise is that of successive points, which a trend hardly adds to; correlated noise looks smaller
    than it is, and so speaks for a run. One that has moved is not judged again: late in training losses are flat.
    """

    symptom = "loss_flat"
    reads = ("train/loss", STEP)
    remembers = True

    def __init__(self, config: HealthConfig, warmup_steps: int, log_every_steps: int) -> None:
        """log_every_steps: whose mean is a point, as in metrics.jsonl."""
        super().__init__()
        self._steps, self._noise = config.loss_flat_steps, config.loss_flat_noise
        self._warmup_steps, self._every = warmup_steps, log_every_steps
        self._block = max(2, config.loss_flat_steps // (BLOCKS * log_every_steps))
        self._points: deque[float] = deque(maxlen=BLOCKS * self._block)
        self._seen: list[float] = []
        self._started = self._moved = False
        self._new_points = 0
        self._complaint: str | None = None

    def _judge(self, metrics: Mapping[str, float]) -> str | None:
        past_warmup = metrics[STEP] - self._warmup_steps
        if not self._started:
            self._started = past_warmup > 0
            self._moved = past_warmup > 2 * self._every  # for all we know
        if self._moved or past_warmup <= 0:
            return None
        self._seen.append(metrics["train/loss"])
        if metrics[STEP] % self._every == 0:
            self._points.append(statistics.fmean(self._seen))
            self._seen.clear()
            self._new_points += 1
            if len(self._points) == self._points.maxlen and self._new_points % self._block == 0:
                self._complaint = self._look()
        return self._complaint

    def _look(self) -> str | None:
        points = list(self._points)
        means = [statistics.fmean(points[i : i + self._block]) for i in range(0, len(points), self._block)]
        squares = statistics.fmean((after - before) ** 2 for before, after in pairwise(points))
        standard_error = math.sqrt(squares / 2 / self._block)
        change = max(means) - min(means)
        if change > self._noise * standard_error:
            self._moved = True
            return None
        return (
            f"train/loss {means[-1]:.4g} has changed by {change:.2g} in {self._steps} steps after the warm-up "
            f"(health.loss_flat_steps), not more than {self._noise:g} (health.loss_flat_noise) times the "
            f"{standard_error:.2g} that noise alone makes: the run does not learn. Look whether captions belong to "
            "their images, at optimizer.lr and at what model.lock_image and lock_text leave to train; weights that "
            "have learned this corpus before may rest"
        )
