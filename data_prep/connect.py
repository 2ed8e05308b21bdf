"""Sockets for asking strangers: only to addresses that were checked, and with an end however slow the other side is.

The address is checked where the connection is made, and it is that address which is connected to: a name that
resolves to another one at a second look-up gains nothing by it.
"""

from __future__ import annotations

import math
import socket
import ssl
import time
from functools import cache
from typing import Any

from data_prep.addresses import is_public


class _Deadline:
    """Mixed into a socket: no single read begins after `deadline` (monotonic seconds).

    A socket's own timeout is per read, and a server that sends a byte now and then never exceeds it.
    """

    deadline = math.inf

    def recv_into(self, *arguments: Any) -> int:
        if time.monotonic() > self.deadline:
            raise TimeoutError("timed out: too slow as a whole")
        return super().recv_into(*arguments)  # type: ignore[misc]


class PatientSocket(_Deadline, socket.socket):
    """Plain TCP."""


class PatientTLSSocket(_Deadline, ssl.SSLSocket):
    """TLS; made by a context of `tls_context`. Its handshake is bounded by the socket's timeout as a whole."""


@cache
def tls_context() -> ssl.SSLContext:
    """Certificates are checked. One per process: it takes tens of milliseconds."""
    context = ssl.create_default_context()
    context.sslsocket_class = PatientTLSSocket
    return context


def dial(address: tuple[str, int], timeout_seconds: float, deadline: float, private: bool) -> PatientSocket:
    """Connect to the first address of (host, port) that answers. private: addresses that are not public are welcome.

    Raises OSError, for a host that has no public address too.
    """
    host, port = address
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not (private or is_public(str(target[0]))):
            failure = OSError(f"{host} is at {target[0]}, which is not a public address")
            continue
        opened = PatientSocket(family, kind, protocol)
        opened.deadline = deadline
        try:
            opened.settimeout(max(0.001, min(timeout_seconds, deadline - time.monotonic())))
            opened.connect(target)
        except OSError as error:
            opened.close()
            failure = error
        else:
            return opened
    raise failure
