"""Which checkpoints stay."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.duration import multiples
from pipeline.engine.tags import step_of


@dataclass(frozen=True)
class Retention:
    """The newest `keep` tags and, for ever, the first one at or after each multiple of the duration `keep_every`."""

    keep: int
    keep_every: str | None
    global_batch_size: int
    samples_per_epoch: int

    def superseded(self, tags: list[str]) -> list[str]:
        """Those of the complete tags, oldest first, that may go."""
        stays, periods = set(tags[-self.keep :]), 0
        for tag in tags:
            reached = self._periods(step_of(tag))
            if reached > periods:
                stays.add(tag)
            periods = reached
        return [tag for tag in tags if tag not in stays]

    def _periods(self, step: int) -> int:
        if self.keep_every is None:
            return 0
        return multiples(self.keep_every, step, self.global_batch_size, self.samples_per_epoch)
