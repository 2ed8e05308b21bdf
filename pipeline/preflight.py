"""What must be true before anything is installed, said in words. Runs on any Python, with nothing installed.

python3 pipeline/preflight.py --install      before `make setup` fills .venv
"""

import importlib.util
import os
import shutil
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
INSTALL_GIB = 9  # torch with its CUDA packages is most of it


def problems(install):  # type: ignore[no-untyped-def]  # old Pythons must be able to read this file
    """Every reason why setting up would fail, each with what to do."""
    found = []
    version = tuple(sys.version_info[:2])
    if not OLDEST <= version <= NEWEST:
        found.append(
            "this is Python {}.{}, and the packages need {}.{} to {}.{}: run `make PYTHON=python3.11 ...` "
            "with one of those".format(*version, *OLDEST, *NEWEST)
        )
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        found.append("this Python cannot make virtual environments: install python3-venv (Debian, Ubuntu)")
    here = os.getcwd()
    free_gib = shutil.disk_usage(here).free / 2**30
    if install and free_gib < INSTALL_GIB:
        found.append(
            f"only {free_gib:.1f} GiB are free in {here}, and the packages take about {INSTALL_GIB}: "
            "free some, or clone elsewhere"
        )
    if not os.access(here, os.W_OK):
        found.append(f"{here} cannot be written to")
    return found


if __name__ == "__main__":
    reasons = problems("--install" in sys.argv)
    for reason in reasons:
        sys.stderr.write(f"error: {reason}\n")
    sys.exit(2 if reasons else 0)
