"""Contract 8: a run that is not learning says so, or stops."""

from pipeline.health.heartbeat import Heartbeat
from pipeline.health.monitor import Health

__all__ = ["Health", "Heartbeat"]
