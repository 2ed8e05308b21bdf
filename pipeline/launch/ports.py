"""Ports for servers and for ranks to meet at."""

from __future__ import annotations

import random
import socket

from pipeline.errors import UserError

PORTS = range(20000, 32000)  # below the range from which systems take ports for outgoing connections
TRIES = 50


def free_port() -> int:
    """A port that nobody listens on now, at whatever address of this machine; another one each time."""
    for port in random.sample(PORTS, TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port on this machine: {TRIES} tries failed; end some servers, or set corpus.port")
