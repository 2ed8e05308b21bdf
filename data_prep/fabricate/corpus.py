"""A corpus of drawn scenes: image files, the list of their URLs and captions, and evaluation tasks."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.fabricate.captions import training_caption
from data_prep.fabricate.evaldata import write_tasks
from data_prep.fabricate.listing import write_listing
from data_prep.fabricate.pool import parallel_map
from data_prep.fabricate.render import render
from data_prep.fabricate.scenes import Scene, training_scene
from data_prep.fabricate.tasks import SMALLEST, scene_tasks
from data_prep.fabricate.troubles import DUPLICATE, Trouble, duplicate_rows, troubled_rows
from data_prep.progress import Report, silent
from data_prep.serve import BEHAVIOURS_FILE, Behaviour
from pipeline.errors import UserError
from pipeline.files import write_json


class Row(NamedTuple):
    """One line of the corpus: a scene, and what goes wrong when it is asked for."""

    scene: Scene
    trouble: Trouble | None

    @property
    def image_path(self) -> str:
        """Where the file lies below the served folder."""
        return f"images/{self.scene.uid[:2]}/{self.scene.uid}.{self.scene.format}"

    @property
    def url_path(self) -> str:
        moved = self.trouble is not None and self.trouble.name == "redirect"
        return f"/moved/{self.scene.uid}" if moved else f"/{self.image_path}"

    @property
    def has_image(self) -> bool:
        return self.trouble is None or self.trouble.has_image

    def behaviour(self) -> dict[str, Any]:
        """What `behaviours.json` says of the row; nothing for a good one."""
        if self.trouble is None:
            return {}
        redirect = self.trouble.name == "redirect"
        target = Behaviour(status=302, location=f"/{self.image_path}") if redirect else self.trouble.behaviour
        return {self.url_path: target.to_json()}


def fabricate_scenes(
    corpus_folder: Path,
    evaldata: Path,
    *,
    scenes: int,
    evaluation_scenes: int,
    seed: int,
    base_url: str,
    progress: Report = silent,
    processes: int | None = None,
) -> dict[str, Any]:
    """Draw a corpus of `scenes` good rows, with troubled and repeated ones on top, and its evaluation tasks.

    Leaves `source/` (to be served at `base_url`) and, last, `metadata/scenes.parquet` in `corpus_folder`, and
    the tasks in `evaldata`. Images that exist are kept: a killed run goes on where it was, to the same bytes.
    progress: called with (images done, images in all). processes: None for one per usable core.
    Returns {source, rows, behaviours: {name: rows}, evaluation: {task: samples}}.
    Raises UserError for fewer evaluation scenes than the tasks need.
    """
    if evaluation_scenes < SMALLEST:
        raise UserError(f"evaluation_scenes={evaluation_scenes} is too few: the tasks need at least {SMALLEST}")
    corpus_folder, source = Path(corpus_folder), Path(corpus_folder) / "source"
    rows = corpus_rows(seed, scenes)
    files = [(source / row.image_path, row.scene) for row in rows if row.has_image]
    missing = [(path, scene) for path, scene in files if not _is_drawn(path)]
    report = _Reporter(progress, len(files) + evaluation_scenes, done=len(files) - len(missing))
    for _ in report.each(parallel_map(_draw_file, missing, processes)):
        pass
    tasks = scene_tasks(
        seed, evaluation_scenes, lambda drawn: list(report.each(parallel_map(render, drawn, processes)))
    )
    write_tasks(Path(evaldata), tasks)
    write_json(source / BEHAVIOURS_FILE, {path: value for row in rows for path, value in row.behaviour().items()})
    os.sync()  # once for all images, before the list that says they exist
    listed = listed_rows(rows, seed, scenes)
    base = base_url.rstrip("/")
    write_listing(
        corpus_folder / "metadata" / "scenes.parquet",
        [(row.scene.uid, base + row.url_path, training_caption(row.scene)) for row in listed],
    )
    counts = Counter(row.trouble.name if row.trouble else "good" for row in rows)
    return {
        "source": str(source),
        "rows": len(listed),
        "behaviours": {**counts, DUPLICATE: len(listed) - len(rows)},
        "evaluation": {task.name: len(task.samples) for task in tasks},
    }


def corpus_rows(seed: int, scenes: int) -> list[Row]:
    """The distinct rows: scenes 0 .. `scenes`-1 are good, those after them are in trouble."""
    troubles = [*[None] * scenes, *troubled_rows(scenes)]
    return [Row(training_scene(seed, index), trouble) for index, trouble in enumerate(troubles)]


def listed_rows(rows: list[Row], seed: int, scenes: int) -> list[Row]:
    """The rows as the list has them: some good ones twice, all shuffled."""
    rng = random.Random(f"listing/{seed}")
    listed = [*rows, *rng.sample(rows[:scenes], duplicate_rows(scenes))]
    rng.shuffle(listed)
    return listed


def _is_drawn(path: Path) -> bool:
    """A file that is there is whole, unless the power failed before it reached the disk: then it is empty."""
    return path.is_file() and path.stat().st_size > 0


def _draw_file(job: tuple[Path, Scene]) -> None:
    """Draw one image under a temporary name, then rename it. An fsync for each would triple the time."""
    path, scene = job
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(render(scene))
    os.replace(temporary, path)


class _Reporter:
    """Counts images as they are drawn, and says so."""

    def __init__(self, progress: Report, total: int, done: int) -> None:
        self._progress, self._total, self._done = progress, total, done

    def each(self, images: Iterator[Any]) -> Iterator[Any]:
        for image in images:
            self._done += 1
            self._progress(self._done, self._total)
            yield image
