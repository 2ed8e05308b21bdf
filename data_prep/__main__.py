"""The command line `data-prep`; `python -m data_prep` is the same.

What it imports takes a while, in which Ctrl-C is to be answered as it is later.
"""

from typing import NoReturn

from pipeline.leaving import leave_with
from pipeline.stopping import end_interrupted


def main() -> NoReturn:
    """Import the commands, and do what was typed."""
    leave_with(_commands)


def _commands() -> None:
    try:
        from data_prep.cli import main as commands

        commands()
    except KeyboardInterrupt:
        end_interrupted()


if __name__ == "__main__":
    main()
