"""The record of a download: only what was finished counts, and only for its own plan."""

from __future__ import annotations

import pytest

from data_prep.downloaded import claim, read_done, remove_unfinished, shard_files
from data_prep.plan import read_plan
from pipeline.errors import UserError
from tests.unit.downloads_support import ROWS, Toy, downloaded


def test_a_failed_item_is_not_done_and_can_be_tried_again(toy: Toy) -> None:
    corpus, plan, rows = toy
    message = "<urlopen error [Errno 111] Connection refused>"
    dead = [{**row, "status": "failed_to_download", "error_message": message} for row in rows]
    with pytest.raises(UserError, match=r"0 of 20 rows .* \(20 connection\)\. Is the server running"):
        downloaded(corpus, plan, 0, dead)
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert remove_unfinished(corpus.download(0), 3) == [0, 1, 2]


def test_only_finished_shards_survive_a_kill(toy: Toy) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    folder = corpus.download(0)
    claim(folder, plan.fingerprint)
    (folder / "_tmp").mkdir()
    (folder / "_tmp/1.arrow").write_bytes(b"x")
    stats = shard_files(folder, 1)[2]
    stats.write_text(stats.read_text()[:10])  # img2dataset writes it in place
    shard_files(folder, 2)[1].write_bytes(b"")  # a power cut, before its data reached the disk
    assert remove_unfinished(folder, 3) == [1, 2]
    kept = {path for shard in (0,) for path in shard_files(folder, shard)}
    assert set(folder.iterdir()) == kept | {folder / "input.json"}
    claim(folder, plan.fingerprint)
    with pytest.raises(UserError, match="downloads of another plan"):
        claim(folder, "f" * 64)


def test_records_of_another_plan_do_not_count(toy: Toy) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    assert read_done(corpus, 0, plan.fingerprint).ok == ROWS
    assert read_done(corpus, 0, "f" * 64) is None
    corpus.done_file(0).write_text("{")
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert read_plan(corpus) == plan
