"""Corpora with every file that `data-prep` reads: published, derived and cut off while it was, planned in parts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from data_prep import derive
from data_prep.cli import main
from data_prep.corpus import Corpus
from data_prep.downloaded import claim
from pipeline.files import read_json, write_json
from tests.unit.downloads_support import downloaded, encoded, entries, planned

CUT = ["--tasks", "2", "--samples-per-shard", "8"]
SMALL = ["subset", "toy", "--where", "caption_length > 9", "--out", "small"]
MERGE = ["merge", "toy", "small", "--out"]


def data_prep(root: Path, *arguments: object) -> Result:
    """Runs the command; whatever it says, it says as a command does."""
    done = CliRunner().invoke(main, ["--root", str(root), *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def succeed(root: Path, *arguments: object) -> Result:
    done = data_prep(root, *arguments)
    assert done.exit_code == 0, done.output
    return done


def fabricate(root: Path) -> Path:
    """Corpora: `toy`, made of it `small` and `both`, which `half` was to become; and `parted`.

    Also `pictures/behaviours.json` and `evaldata/download.json`.
    """
    corpus, plan = planned(root / "toy", rows=30, tasks=2)
    (root / "lists").mkdir()
    shutil.copy(corpus.folder / "metadata/0.parquet", root / "lists")
    define(corpus, urls=(f"file://{root}/lists/0.parquet",))
    succeed(root, "metadata", "toy")
    for item in range(2):
        rows = entries(corpus, plan, item)
        rows[0] |= {"status": "failed_to_download", "error_message": "HTTP Error 503: Busy"}
        corpus.download(item).mkdir(parents=True)
        claim(corpus.download(item), plan.fingerprint)
        downloaded(corpus, plan, item, rows)
        for stats in corpus.download(item).glob("*_stats.json"):
            write_json(stats, {**read_json(stats), "start_time": 1.7e9, "end_time": 1.7e9 + 9})
    for command in (["verify", "toy"], ["manifest", "toy"], SMALL, [*MERGE, "both"]):
        succeed(root, *command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derive, "write_manifest", killed)
        with pytest.raises(KeyError):
            data_prep(root, *MERGE, "half")
    define(parted := planned(root / "parted", tasks=2)[0])
    parted.plan_file.unlink()
    for part in range(2):
        succeed(root, "plan", "parted", *CUT, "--part", f"{part}/2")
    behaviours = {"/a.png": {"status": 302, "failures": 1, "location": "/b", "delay_seconds": 0.5, "truncated": False,
                             "html": False, "headers": {"Retry-After": "1"}}}  # fmt: skip
    write_json(root / "pictures/behaviours.json", behaviours)
    (root / "pictures/a.png").write_bytes(encoded("PNG"))
    record = {"commits": {"a/b": "0" * 40}, "files": {"wds_birds_test/0.tar": {"size": 3, "sha256": "0" * 64}}}
    write_json(root / "evaldata/download.json", record)
    return root


def killed(*_: object) -> None:
    raise KeyError


def define(corpus: Corpus, **more: Any) -> None:
    replace(corpus, definition=corpus.definition.model_copy(update=more)).save_definition()
