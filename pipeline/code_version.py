"""Which code this is: the version of the package, and the commit where it is a git checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pipeline import __version__

_SOURCE = Path(__file__).parents[1]


def code_version() -> dict[str, str | None]:
    """{"version", "commit"}: null outside a checkout; a `+` behind it where files were changed since."""
    commit = _git("rev-parse", "HEAD")
    changed = "+" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    return {"version": __version__, "commit": commit + changed if commit else None}


def _git(*arguments: str) -> str:
    if not (_SOURCE / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(_SOURCE), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
