"""Training under a time limit that is far too short: SLURM asks it to stop in every slice, and once has to end it."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from pipeline.launch.attempts import read_attempts
from pipeline.tracking.jsonl import read_points
from tests.slurm.chain import FROM_TRAINING, SITE, Chain, is_pending, rank_of

LOOKS_EVERY_SECONDS = 30  # for who is to be asked to stop, up to so much early, or to be killed
ANSWERS = (True, False, True, True)  # of each slice but the last: whether training saves before the limit


def begin_slices(of: Chain, workdir: Path) -> tuple[Chain, float]:
    """The training of a chain that is done, submitted anew, and the limit in seconds.

    As short as SLURM knows, a minute, unless training takes longer than half of that to come to its first steps here.
    """
    [undisturbed] = read_attempts(of.paths.attempts("train", 0))
    start = read_points(of.paths.train / "metrics.jsonl")[0].time - undisturbed.began_at
    minutes = math.ceil((2 * start + LOOKS_EVERY_SECONDS + 1) / 60)
    flags = f"sbatch_flags: ['--time={minutes}', '--nodelist=n[3-4]']"  # others lose n2 meanwhile
    chain = of.again(workdir, *FROM_TRAINING, site=f"{SITE[:-2]}, {flags}}}\nsignal_seconds: 1\n")
    submitted = chain.submit()
    assert submitted.returncode == 0, submitted.stderr
    return chain, 60.0 * minutes


def train_in_slices(chain: Chain, limit_seconds: float) -> None:
    """Hold training in the middle of each slice until it is asked to stop: on no machine is it done before."""
    for answers in ANSWERS:
        before = chain.saved()
        chain.wait(until=lambda before=before: chain.saved() > before)
        rank, attempts = rank_of(chain, 1), read_attempts(chain.paths.attempts("train", 0))
        os.kill(rank, signal.SIGSTOP)
        asked_by, so_far = attempts[-1].began_at + limit_seconds, len(attempts)
        while answers and not is_pending(rank, signal.SIGUSR1) and time.time() < asked_by:
            time.sleep(0.1)
        if answers:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGCONT)
        chain.wait(until=lambda so_far=so_far: len(chain.attempts("train")) > so_far)
    chain.wait()
