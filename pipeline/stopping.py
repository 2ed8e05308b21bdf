"""How a run is asked to stop by anybody who may write into its directory, and what exit statuses say of an end."""

import signal
import sys
from typing import NoReturn

STOP_FILE = "STOP"  # in the run directory
SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)  # schedulers ahead of an end, anybody, Ctrl-C
EXIT_STOPPED = 75  # EX_TEMPFAIL: run the same command again to go on
EXIT_LOST = 76  # a rank hung or was lost: the same command goes on from the newest checkpoint
EXIT_INTERRUPTED = 128 + signal.SIGINT  # Ctrl-C, where nothing was to be saved


def end_interrupted() -> NoReturn:
    """Answer a KeyboardInterrupt: one line, EXIT_INTERRUPTED. Another Ctrl-C ends what is still slow to end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    print("stopped: interrupted", file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)
