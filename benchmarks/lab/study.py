"""Many runs: each kept in a JSON lines file as it ends, none done twice, as many at once as there are cores."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lab.corpora import load
from lab.training import Trial, run
from pipeline.locks import exclusive

RESULTS = Path(__file__).resolve().parents[1] / "results"


def study(path: Path, trials: Mapping[str, Trial], jobs: int | None = None) -> dict[str, dict[str, Any]]:
    """The results of `trials` by label, {trial, seconds, curve, final, ...}; those that the file lacks are run.

    A run counts as done when a line of the file has the same settings, whatever its label. jobs: processes at once.
    Raises UserError while another process makes runs of the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock"), str(path)):
        return _study(path, trials, jobs or os.cpu_count() or 1)


def _study(path: Path, trials: Mapping[str, Trial], jobs: int) -> dict[str, dict[str, Any]]:
    done = read(path)
    missing = {label: trial for label, trial in trials.items() if key(trial) not in done}
    if missing:
        for corpus in {trial.corpus for trial in missing.values()}:
            load(corpus)  # before the fork, so that the processes share it
        started = time.monotonic()
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with multiprocessing.get_context("fork").Pool(jobs) as pool, open(path, "a") as stream:
            stream.write("\n" if torn else "")
            for number, (label, result) in enumerate(pool.imap_unordered(_one, missing.items()), start=1):
                stream.write(json.dumps(result) + "\n")
                stream.flush()
                left = (time.monotonic() - started) / number * (len(missing) - number)
                print(
                    f"{number}/{len(missing)} {label}: {result['seconds']:.0f} s; {left / 60:.0f} min left",
                    file=sys.stderr,
                    flush=True,
                )
        done = read(path)
    return {label: done[key(trial)] for label, trial in trials.items()}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Results by key; the last line of a run that was killed is passed over."""
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            result = json.loads(line)
        except ValueError:
            continue
        results[key(Trial(**result["trial"]))] = result
    return results


def key(trial: Trial) -> str:
    """Of the settings that differ from the defaults."""
    return json.dumps(_settings(trial), sort_keys=True)


def mean_and_error(values: list[float]) -> dict[str, float | None]:
    """The mean and its standard error, None of one value."""
    error = round(statistics.stdev(values) / len(values) ** 0.5, 3) if len(values) > 1 else None
    return {"mean": round(statistics.mean(values), 3), "se": error}


def machine() -> dict[str, Any]:
    """What belongs beside a number."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _settings(trial: Trial) -> dict[str, Any]:
    return {**trial.model_dump(exclude_defaults=True), "corpus": trial.corpus}


def _one(item: tuple[str, Trial]) -> tuple[str, dict[str, Any]]:
    label, trial = item
    torch.set_num_threads(1)
    return label, {"trial": _settings(trial), **run(trial, load(trial.corpus))}
