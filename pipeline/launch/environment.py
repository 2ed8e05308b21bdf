"""What a run was planned with: code, Python, packages, machine (RUN/environment.json)."""

from __future__ import annotations

import platform
import socket
import sys
import time
from importlib.metadata import distributions
from typing import Any

from pipeline.code_version import code_version


def describe_environment() -> dict[str, Any]:
    """As it is kept."""
    packages = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": sys.version,
        "executable": sys.executable,
        "command": sys.argv,
        **code_version(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }
