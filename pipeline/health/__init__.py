"""Contract 8: a run that is not learning says so, or stops."""

from pipeline.health.decode_failures import DecodeFailures
from pipeline.health.heartbeat import Heartbeat
from pipeline.health.monitor import Health
from pipeline.health.straggler import RankTimes

__all__ = ["DecodeFailures", "Health", "Heartbeat", "RankTimes"]
