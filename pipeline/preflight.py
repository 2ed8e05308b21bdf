"""What must be true before anything is installed, said in words. Runs on any Python, with nothing installed.

    python3 pipeline/preflight.py --install      before `make setup` fills .venv
"""

import os
import shutil
import sys

OLDEST, NEWEST = (3, 10), (3, 13)
INSTALL_GIB = 9  # torch with its CUDA packages is most of it


def problems(install):
    """Every reason why setting up would fail, each with what to do."""
    found = []
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        found.append(
            "this is Python %d.%d, and the packages need %d.%d to %d.%d: run `make PYTHON=python3.11 ...` with one of "
            "those" % (version + OLDEST + NEWEST)
        )
    try:
        import ensurepip
        import venv
    except ImportError:
        found.append("this Python cannot make virtual environments: install python3-venv (Debian, Ubuntu)")
    free_gib = shutil.disk_usage(".").free / 2**30
    if install and free_gib < INSTALL_GIB:
        found.append(
            "only %.1f GiB are free in %s, and the packages take about %d: free some, or clone elsewhere"
            % (free_gib, os.getcwd(), INSTALL_GIB)
        )
    if not os.access(".", os.W_OK):
        found.append("%s cannot be written to" % os.getcwd())
    return found


if __name__ == "__main__":
    found = problems("--install" in sys.argv)
    for problem in found:
        sys.stderr.write("error: %s\n" % problem)
    sys.exit(2 if found else 0)
