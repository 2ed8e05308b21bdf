"""The stages as data: what each needs, the command of each of its elements, and the files that prove it.

Commands are the public ones, so whatever the chain does can be done by hand; `logs/` shows each as it was typed.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.launch.paths import RunPaths

Command = list[str]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    command(paths, element): argv. proofs(paths, element): files whose content stands for what the element made.
    elements: how many independent pieces of work. together: the command starts ranks that work as one.
    served: its commands download from this machine's image server.
    """

    name: str
    needs: tuple[str, ...]
    command: Callable[[RunPaths, int], Command]
    proofs: Callable[[RunPaths, int], list[Path]]
    elements: int = 1
    together: bool = False
    served: bool = False


def build_stages(paths: RunPaths) -> list[Stage]:
    """The stages of a run in an order in which each comes after what it needs."""
    corpus = paths.config.corpus
    first = [Stage("fabricate", (), _fabricate, lambda p, i: [p.evaldata / "tasks.yaml"])]
    return [
        *(first if corpus.fabricate else []),
        Stage("plan", ("fabricate",) if corpus.fabricate else (), _plan, lambda p, i: [p.corpus / "plan.json"]),
        Stage(
            "download",
            ("plan",),
            _download,
            lambda p, i: [p.corpus / f"download/{i:05d}/done.json"],
            elements=corpus.tasks,
            served=corpus.fabricate is not None,
        ),
        Stage(
            "verify",
            ("download",),
            _verify,
            lambda p, i: [p.corpus / f"verify/{i:05d}.json"],
            elements=corpus.tasks,
        ),
        Stage("manifest", ("verify",), _manifest, lambda p, i: [p.corpus / "manifest.json"]),
        Stage(
            "train",
            ("manifest",),
            _train,
            lambda p, i: [p.train / "summary.json", p.train / "checkpoints/latest"],
            together=True,
        ),
        Stage(
            "export",
            ("train",),
            _export,
            lambda p, i: [p.model / "export.json", p.model / "open_clip_model.safetensors"],
        ),
        Stage("evaluate", ("export",), _evaluate, lambda p, i: [p.results / "aggregate.json"]),
        Stage("report", ("evaluate",), _report, lambda p, i: [p.root / "report.html", p.root / "summary.json"]),
    ]


def _data_prep(paths: RunPaths, *arguments: object) -> Command:
    return [sys.executable, "-m", "data_prep", "--root", str(paths.corpora), *map(str, arguments)]


def _neuclip(*arguments: object) -> Command:
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


def _fabricate(paths: RunPaths, element: int) -> Command:
    corpus = paths.config.corpus
    common = [
        "--evaldata",
        paths.evaldata,
        "--seed",
        paths.config.seed,
        "--base-url",
        f"http://127.0.0.1:{corpus.port}",
    ]
    if corpus.fabricate == "emoji":
        style = ["--data", paths.config.data, "--held-out-style", corpus.held_out_style]
        return _data_prep(paths, "fabricate", "emoji", corpus.name, *style, *common)
    sizes = ["--scenes", corpus.scenes, "--evaluation-scenes", corpus.evaluation_scenes]
    return _data_prep(paths, "fabricate", "scenes", corpus.name, *sizes, *common)


def _plan(paths: RunPaths, element: int) -> Command:
    corpus = paths.config.corpus
    cut = ["--tasks", corpus.tasks, "--samples-per-shard", corpus.samples_per_shard]
    return _data_prep(paths, "plan", corpus.name, *cut)


def _download(paths: RunPaths, element: int) -> Command:
    corpus = paths.config.corpus
    effort = ["--processes", corpus.processes, "--threads", corpus.threads, "--retries", corpus.retries]
    limits = ["--timeout", corpus.timeout_seconds]
    return _data_prep(paths, "download", corpus.name, "--task", element, *effort, *limits)


def _verify(paths: RunPaths, element: int) -> Command:
    return _data_prep(paths, "verify", paths.config.corpus.name, "--task", element)


def _manifest(paths: RunPaths, element: int) -> Command:
    return _data_prep(paths, "manifest", paths.config.corpus.name)


def _train(paths: RunPaths, element: int) -> Command:
    train = _neuclip("train", paths.recipe, "--run-dir", paths.root, f"loader.manifest={json.dumps(str(paths.corpus))}")
    during = paths.config.evaluate_during
    if during.every is not None and during.data is None:
        train.append(f"evaluate_during.data={json.dumps(str(paths.evaldata))}")
    ranks = paths.config.train.processes
    # The launcher's own meeting point is a file, and the ranks meet on the loopback: no port is open to the network.
    meet = ["--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--local-addr", "127.0.0.1"]
    at = ["--rdzv-endpoint", str(paths.root / f"stages/rendezvous-{uuid.uuid4().hex}"), "--rdzv-id", "train"]
    launcher = ["torch.distributed.run", "--nproc-per-node", str(ranks), *meet, *at, "--module"]
    return [sys.executable, "-m", *launcher, *train[2:]]


def _export(paths: RunPaths, element: int) -> Command:
    return _neuclip("export", paths.train / "checkpoints", paths.model)


def _evaluate(paths: RunPaths, element: int) -> Command:
    evaluate = paths.config.evaluate
    tasks = evaluate.tasks if isinstance(evaluate.tasks, str) else ",".join(evaluate.tasks)
    how = ["--tasks", tasks, "--batch-size", evaluate.batch_size, "--workers", evaluate.workers, "--no-mlflow"]
    return _neuclip("evaluate", paths.model, "--data", paths.evaldata, "--out", paths.results, *how)


def _report(paths: RunPaths, element: int) -> Command:
    return _neuclip("report", paths.root)
