"""Publish: one manifest of what is proven, whatever the order of downloads, and none before everything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from data_prep.cli import main
from data_prep.publish import publish
from data_prep.verify import verify
from pipeline.errors import UserError
from pipeline.files import sha256_file
from tests.unit.downloads_support import Toy, downloaded, entries, planned


def test_the_order_of_downloads_leaves_no_trace(tmp_path: Path) -> None:
    fingerprints, digests = [], []
    for order in (1, -1):
        corpus, plan = planned(tmp_path / str(order), tasks=2)
        for item in range(2):
            downloaded(corpus, plan, item, entries(corpus, plan, item)[::order], order)
        verify(corpus)
        summary, new = publish(corpus)
        assert new
        fingerprints.append(summary["fingerprint"])
        digests.append([sha256_file(path) for path in sorted((corpus.folder / "shards").iterdir())])
    assert fingerprints[0] == fingerprints[1]
    assert digests[0] == digests[1]


def test_verifying_again_does_nothing_until_the_download_changes(toy: Toy) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    first, _ = publish(corpus)
    stamps = {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.tar")}
    (again,) = verify(corpus)
    assert not again.new
    assert publish(corpus) == (first, False)
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.rglob("*.tar")} == stamps
    for row in rows[:15]:  # a later download got less: the shards of the earlier one must go
        row |= {"status": "failed_to_download", "error_message": "HTTP Error 410: Gone"}
    downloaded(corpus, plan, 0, rows)
    with pytest.raises(UserError, match=r"1 of 1 work items still to verify \(0\)"):
        publish(corpus)
    assert verify(corpus)[0].new
    assert publish(corpus)[0]["ok"] == 5
    assert [path.name for path in sorted((corpus.folder / "shards").glob("*.tar"))] == ["00000-000.tar"]


def test_items_that_are_missing_are_named(tmp_path: Path) -> None:
    corpus, plan = planned(tmp_path, tasks=3)
    with pytest.raises(UserError, match="nothing is downloaded"):
        verify(corpus)
    downloaded(corpus, plan, 1, entries(corpus, plan, 1))
    with pytest.raises(UserError, match="work item 2 is not downloaded"):
        verify(corpus, [1, 2])
    assert [verdict.item for verdict in verify(corpus)] == [1]
    downloaded(corpus, plan, 2, entries(corpus, plan, 2))
    with pytest.raises(UserError, match=r"1 of 3 .* download \(0\); 1 of 3 .* verify \(2\)"):
        publish(corpus)


def test_publishing_refuses_outcomes_that_do_not_add_up(toy: Toy) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    sound = pq.read_table(corpus.outcomes(0))
    for damaged in (sound.slice(1), pa.concat_tables([sound.slice(1), sound.slice(5, 1)])):
        pq.write_table(damaged, corpus.outcomes(0))
        with pytest.raises(UserError, match="does not account for work item 0"):
            publish(corpus)
    corpus.outcomes(0).write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        publish(corpus)
    assert not (corpus.folder / "manifest.json").exists()


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path) -> None:
    corpus, plan = planned(tmp_path / "toy", tasks=2)
    corpus.save_definition()

    def call(command: str) -> dict[str, Any]:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        result = CliRunner().invoke(main, ["--root", str(tmp_path), command, "toy", "--dry-run", "--json"])
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    sizes = [plan.items[item]["rows"] for item in range(2)]
    for item in range(2):
        downloaded(corpus, plan, item, entries(corpus, plan, item))
    verify(corpus, [1])
    assert call("verify") == {"to_verify": [0], "rows": sizes[0], "already_verified": [1]}
    with pytest.raises(UserError, match="1 of 2 work items still to verify"):
        publish(corpus, dry_run=True)
    verify(corpus)
    next(corpus.folder.glob("shards/00000-*.tar")).unlink()
    assert call("verify")["to_verify"] == [0], "its shard is gone"
    verify(corpus)
    would = call("manifest")
    seen: list[tuple[int, int]] = []
    summary, new = publish(corpus, lambda done, total: seen.append((done, total)))
    assert (would.pop("new"), would) == (new, summary)
    assert seen == [(1, 2), (2, 2)]
    assert call("manifest")["new"] is False


def test_a_torn_manifest_is_published_again(toy: Toy) -> None:
    corpus, plan, rows = toy
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    first, _ = publish(corpus)
    for name in ("manifest.parquet", "manifest.json"):
        content = (corpus.folder / name).read_bytes()
        (corpus.folder / name).write_bytes(content[:50])
        (corpus.folder / f".{name}.0123abcd.tmp").write_bytes(content[:50])  # of a publisher that was killed
        assert publish(corpus) == (first, True)
        assert (corpus.folder / name).read_bytes() == content
        assert not list(corpus.folder.glob(".*.tmp"))
