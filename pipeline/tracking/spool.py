"""A spool as it grows: the points that a run on the server lacks, in batches, each exactly once.

What the run has is the last step of each metric, asked of the server and not kept in a file: so the answer is right
even if the server took a batch and its reply was lost. A point is a metric's name and its samples_seen; steps that a
resumed run passes again are not sent twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.tracking.accepted import METRICS_PER_BATCH, MetricPoint, valid_name
from pipeline.tracking.jsonl import iterate_points

_SEAM_BYTES = 256


class Spool:
    """Reads a file of points from where it was last read to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._seam = b""  # what ends at the offset

    def batches(self, last_steps: dict[str, int]) -> Iterator[list[MetricPoint]]:
        """New points, as many at a time as go into one request.

        last_steps: of each metric on the server; brought up to date. A batch counts as sent when the next one is
        asked for: after a failure the same points come again, if `last_steps` says that they are lacking.
        """
        if not self.path.exists():
            return
        self._rewind_if_cut()
        batch: list[MetricPoint] = []
        offset = self._offset
        for point, behind in iterate_points(self.path, self._offset):
            new = []
            for name, value in point.metrics.items():
                key = valid_name(name)
                if point.samples_seen > last_steps.get(key, -1):
                    last_steps[key] = point.samples_seen
                    new.append(MetricPoint(key, value, point.samples_seen, point.time))
            if batch and len(batch) + len(new) > METRICS_PER_BATCH:
                yield batch
                self._sent(offset)
                batch = []
            batch += new
            offset = behind
        if batch:
            yield batch
        self._sent(offset)

    def _sent(self, offset: int) -> None:
        if offset == self._offset:
            return
        begin = max(0, offset - _SEAM_BYTES)
        with open(self.path, "rb") as stream:
            stream.seek(begin)
            self._seam = stream.read(offset - begin)
        self._offset = offset

    def _rewind_if_cut(self) -> None:
        """A resumed run has cut the file, and may have written it on beyond where it was read to."""
        with open(self.path, "rb") as stream:
            stream.seek(self._offset - len(self._seam))
            if stream.read(len(self._seam)) != self._seam:
                self._offset, self._seam = 0, b""
