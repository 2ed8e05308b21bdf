"""A spool as it grows: the points that a run on the server lacks, in batches, each exactly once.

What the run has is the last step of each metric, asked of the server and not kept in a file: so the answer is right
even if the server took a batch and its reply was lost. A point is a metric's name and its samples_seen; steps that a
resumed run passes again are not sent twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from pipeline.tracking.accepted import METRICS_PER_BATCH, MetricPoint, valid_name
from pipeline.tracking.jsonl import points_in

_SEAM_BYTES = 256
_CHUNK_BYTES = 2**22


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
        while lines := self._new_lines():
            begin = self._offset
            batch: list[MetricPoint] = []
            read = 0
            for point, behind in points_in(BytesIO(lines)):
                new = []
                for name, value in point.metrics.items():
                    key = valid_name(name)
                    if point.samples_seen > last_steps.get(key, -1):
                        last_steps[key] = point.samples_seen
                        new.append(MetricPoint(key, value, point.samples_seen, point.time))
                if batch and len(batch) + len(new) > METRICS_PER_BATCH:
                    yield batch
                    self._sent(lines[self._offset - begin : read])
                    batch = []
                batch += new
                read = behind
            if batch:
                yield batch
            self._sent(lines[self._offset - begin :])
            if len(lines) < _CHUNK_BYTES:  # what has been written since waits for the next look
                return

    def _new_lines(self) -> bytes:
        """Whole lines behind the offset, at once: while a batch is on its way the file may be cut, and grow again."""
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self._offset - len(self._seam))
                if stream.read(len(self._seam)) != self._seam:
                    # A resumed run has cut the file, and may have written it on beyond where it was read to.
                    self._offset, self._seam = 0, b""
                    stream.seek(0)
                lines = stream.read(_CHUNK_BYTES) + stream.readline()
        except FileNotFoundError:
            return b""
        return lines[: lines.rfind(b"\n") + 1]

    def _sent(self, lines: bytes) -> None:
        self._offset += len(lines)
        self._seam = (self._seam + lines)[-_SEAM_BYTES:]
