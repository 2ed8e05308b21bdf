"""How a run is asked to stop by anybody who may write into its directory, and how a process says that it did."""

STOP_FILE = "STOP"  # in the run directory
EXIT_STOPPED = 75  # EX_TEMPFAIL: run the same command again to go on
