"""The stages as data: what each needs, the command of each of its elements, and the files that prove it.

Commands are the public ones, so whatever the chain does can be done by hand; `logs/` shows each as it was typed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.cluster import Kind
from pipeline.config.loader import override
from pipeline.launch.paths import RunPaths

Command = list[str]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    needs: stages; each element waits for its share of theirs (`needed`). command(paths, element): argv.
    proofs(paths, element): files whose content stands for what the element made. elements: how many independent
    pieces of work. resources: which kind of job it is. together: the command is one of ranks that work as one.
    served: its commands download from this machine's image server. per_member: elements that each member of a
    sweep has, one after the other; 0: the stage is of the run as a whole.
    """

    name: str
    needs: tuple[str, ...]
    command: Callable[[RunPaths, int], Command]
    proofs: Callable[[RunPaths, int], list[Path]]
    elements: int = 1
    resources: Kind = "ingest"
    together: bool = False
    served: bool = False
    per_member: int = 0

    def member_of(self, element: int) -> int:
        """The number of the sweep's member that the element works for; 0 where it is for the run as a whole."""
        return element // self.per_member if self.per_member else 0

    def paths_of(self, paths: RunPaths, element: int) -> RunPaths:
        """Those of the member that the element works for, or of the run as a whole."""
        return paths.member(self.member_of(element)) if self.per_member else paths


def build_stages(paths: RunPaths) -> list[Stage]:
    """The stages of a run in an order in which each comes after what it needs."""
    return [*_ingest(paths), *_per_member(paths), *_comparison(paths)]


def needed(stage: Stage, element: int, need: Stage) -> range:
    """Those elements of a needed stage that an element waits for.

    Both stages' elements go along the same things (items of a corpus, members of a sweep), in one order: 4 wait for
    one each of 4, one waits for all of 4, and each of 4 for the only one.
    """
    first = element * need.elements // stage.elements
    return range(first, max(first + 1, (element + 1) * need.elements // stage.elements))


def _ingest(paths: RunPaths) -> list[Stage]:
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
        Stage("manifest", ("verify",), _manifest, lambda p, i: [p.corpus / "manifest.json"], resources="manifest"),
    ]


def _per_member(paths: RunPaths) -> list[Stage]:
    members = max(1, len(paths.members))

    def stage(
        name: str,
        needs: str,
        command: Callable[[RunPaths, int], Command],
        proofs: Callable[[RunPaths, int], list[Path]],
        resources: Kind,
        each: int = 1,
        together: bool = False,
    ) -> Stage:
        """command and proofs take a member's paths and the element's number among the member's."""

        return Stage(
            name,
            (needs,),
            lambda p, i: command(p.member(i // each), i % each),
            lambda p, i: proofs(p.member(i // each), i % each),
            elements=members * each,
            resources=resources,
            together=together,
            per_member=each,
        )

    def trained(p: RunPaths, i: int) -> list[Path]:
        return [p.train / "summary.json", p.train / "checkpoints/latest"]

    def exported(p: RunPaths, i: int) -> list[Path]:
        return [p.model / "export.json", p.model / "open_clip_model.safetensors"]

    def averaged(p: RunPaths, i: int) -> list[Path]:
        return [p.results / "aggregate.json"]

    def reported(p: RunPaths, i: int) -> list[Path]:
        return [p.home / "report.html", p.home / "summary.json"]

    stages = [
        stage("train", "manifest", _train, trained, "train", together=True),
        stage("export", "train", _export, exported, "export"),
    ]
    workers = paths.config.evaluate.elements
    if workers == 1:
        stages.append(stage("evaluate", "export", _evaluate, averaged, "evaluate"))
    else:

        def worked(p: RunPaths, i: int) -> list[Path]:
            return [p.results / f"workers/{i}-of-{workers}.json"]

        stages.append(stage("evaluate", "export", _evaluate_share, worked, "evaluate", each=workers))
        stages.append(stage("aggregate", "evaluate", _aggregate, averaged, "evaluate"))
    return [*stages, stage("report", stages[-1].name, _report, reported, "report")]


def _comparison(paths: RunPaths) -> list[Stage]:
    if not paths.members:
        return []

    def compared(p: RunPaths, i: int) -> list[Path]:
        return [p.root / "compare.html", p.root / "summary.json"]

    return [Stage("compare", ("report",), _report, compared, resources="report")]


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
    during = paths.config.evaluate_during
    settings = {"loader.manifest": paths.corpus}
    if during.every is not None and during.data is None:
        settings["evaluate_during.data"] = paths.evaldata
    chosen = [override(key, str(folder)) for key, folder in settings.items()]
    return _neuclip("train", paths.recipe, "--run-dir", paths.home, *chosen)


def _export(paths: RunPaths, element: int) -> Command:
    return _neuclip("export", paths.train / "checkpoints", paths.model)


def _evaluate(paths: RunPaths, element: int) -> Command:
    evaluate = paths.config.evaluate
    how = ["--tasks", _tasks(paths), "--batch-size", evaluate.batch_size, "--workers", evaluate.workers, "--no-mlflow"]
    return _neuclip("evaluate", paths.model, "--data", paths.evaldata, "--out", paths.results, *how)


def _evaluate_share(paths: RunPaths, element: int) -> Command:
    return [*_evaluate(paths, element), "--rank", str(element), "--world-size", str(paths.config.evaluate.elements)]


def _aggregate(paths: RunPaths, element: int) -> Command:
    which = ["--data", paths.evaldata, "--tasks", _tasks(paths), "--model", paths.model]
    return _neuclip("aggregate", paths.results, *which, "--no-mlflow")


def _tasks(paths: RunPaths) -> str:
    tasks = paths.config.evaluate.tasks
    return tasks if isinstance(tasks, str) else ",".join(tasks)


def _report(paths: RunPaths, element: int) -> Command:
    return _neuclip("report", paths.home)
