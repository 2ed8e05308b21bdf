"""Retries: which rows are asked for again, that none is twice, and that a kill anywhere changes nothing.

What a retry brings is written by hand.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import data_prep.retry
import data_prep.verify
from data_prep.cli import main
from data_prep.corpus import Corpus
from data_prep.downloaded import Done, attempt_rows, count_attempts, read_done, shard_files, write_done
from data_prep.manifest import read_manifest
from data_prep.outcomes import matches, may_pass
from data_prep.plan import Plan, read_item, read_plan
from data_prep.publish import publish
from data_prep.retry import retry
from data_prep.verify import verify
from pipeline.errors import UserError
from pipeline.files import sha256_file
from tests.unit.downloads_support import ROWS, Entry, downloaded, encoded, entries, outcomes, planned, write_shard_files

FAILED = {2: "HTTP Error 503: busy", 5: "timed out", 9: "HTTP Error 404: Not Found", 13: "timed out", 17: "timed out"}


@pytest.fixture
def tried(tmp_path: Path) -> tuple[Corpus, Plan, list[Entry]]:
    """A corpus of which FAILED rows failed, verified and published."""
    corpus, plan = planned(tmp_path)
    rows = entries(corpus, plan, 0)
    for number, message in FAILED.items():
        rows[number] |= {"status": "failed_to_download", "error_message": message}
    downloaded(corpus, plan, 0, rows)
    verify(corpus)
    publish(corpus)
    return corpus, plan, rows


def bring(monkeypatch: pytest.MonkeyPatch, good: set[str]) -> list[list[str]]:
    """Have `download` finish the newest attempt: images for the uids in `good`, time-outs for others. What it was
    asked for.
    """
    asked: list[list[str]] = []

    def download(corpus: Corpus, _: Any, items: list[int], *__: Any) -> list[tuple[Done, bool]]:
        plan, results = read_plan(corpus), []
        for item in items:
            attempt = count_attempts(corpus, item) - 1
            rows = attempt_rows(corpus, plan, item, attempt).to_pylist()
            asked.append([row["uid"] for row in rows])
            late: Entry = {"status": "failed_to_download", "error_message": "timed out"}
            whole: Entry = {"status": "success", "error_message": None, "image": encoded("JPEG", 77)}
            made = [{**row, **(whole if row["uid"] in good else late)} for row in rows]
            write_shard_files(corpus.download(item, attempt), 0, made)
            results.append((write_done(corpus, plan, item, 0.0), True))
        return results

    monkeypatch.setattr(data_prep.retry, "download", download)
    return asked


def uids(corpus: Corpus) -> list[str]:
    found = []
    for path in (corpus.folder / row["path"] for row in read_manifest(corpus.folder).table.to_pylist()):
        with tarfile.open(path) as tar:
            found += [name.split(".")[0] for name in tar.getnames() if name.endswith(".json")]
    return found


def fetch(corpus: Corpus) -> Any:
    return corpus.definition.fetch


def test_what_failed_is_added_as_further_shards(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, _, rows = tried
    before = {path.name: sha256_file(path) for path in (corpus.folder / "shards").iterdir()}
    first_indices = read_manifest(corpus.folder).table.to_pylist()
    uid = {number: rows[number]["uid"] for number in FAILED}
    asked = bring(monkeypatch, {uid[5], uid[2]})
    result = retry(corpus, fetch(corpus), ["timeout", "5xx"])
    assert [sorted(some) for some in asked] == [sorted(uid[number] for number in (2, 5, 13, 17))]
    assert result.rows == {"http_503": 1, "timeout": 3}
    with pytest.raises(UserError, match=r"still to verify \(0\)"):
        publish(corpus)
    assert verify(corpus)[0].new
    summary, _ = publish(corpus)
    assert summary["samples"] == ROWS - 3
    assert summary["outcomes"] == {"http_404": 1, "ok": ROWS - 3, "timeout": 2}
    assert {name: sha256_file(corpus.folder / "shards" / name) for name in before} == before
    shards = read_manifest(corpus.folder).table.to_pylist()
    assert shards[: len(first_indices)] == first_indices, "samples keep their index"
    assert [(row["path"], row["attempt"], row["samples"]) for row in shards[len(first_indices) :]] == [
        ("shards/00000-retry1-000.tar", 1, 2)
    ]
    assert len(uids(corpus)) == len(set(uids(corpus))) == ROWS - 3

    asked = bring(monkeypatch, {uid[13]})
    retry(corpus, fetch(corpus), ["timeout"])
    assert [sorted(some) for some in asked] == [sorted((uid[13], uid[17]))]
    monkeypatch.setattr(data_prep.verify, "prove", only_attempt(2, data_prep.verify.prove))
    verify(corpus)  # the first two are proven already
    assert publish(corpus)[0]["samples"] == ROWS - 2
    attempts = pq.read_table(corpus.outcomes(0)).to_pylist()
    got = {row["uid"]: (row["outcome"], row["attempt"]) for row in attempts if row["attempt"]}
    assert got == {uid[2]: ("ok", 1), uid[5]: ("ok", 1), uid[13]: ("ok", 2), uid[17]: ("timeout", 2)}


def test_samples_of_later_items_keep_their_index_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = planned(tmp_path, tasks=2)
    for item in range(2):
        rows = entries(corpus, plan, item)
        rows[0] |= {"status": "failed_to_download", "error_message": "timed out"}
        downloaded(corpus, plan, item, rows)
    verify(corpus)
    publish(corpus)
    before = read_manifest(corpus.folder).table.to_pylist()
    bring(monkeypatch, set(read_item(corpus, plan, 0)["uid"].to_pylist()))
    assert retry(corpus, fetch(corpus)).rows == {"timeout": 2}
    verify(corpus)
    publish(corpus)
    assert read_manifest(corpus.folder).table.to_pylist()[: len(before)] == before


def only_attempt(attempt: int, prove: Any) -> Any:
    def guarded(folder: Path, *rest: Any) -> Any:
        assert folder.name == f"00000-{attempt}"
        return prove(folder, *rest)

    return guarded


def test_nothing_to_try_again(tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan, _ = tried
    asked = bring(monkeypatch, set())
    assert retry(corpus, fetch(corpus), ["dns"]).rows == {}
    result = retry(corpus, fetch(corpus), ["timeout"], dry_run=True)
    assert result.rows == {"timeout": 3}
    assert not asked
    assert count_attempts(corpus, 0) == 1
    assert read_done(corpus, 0, plan.fingerprint)
    with pytest.raises(UserError, match="rows that are ok are there"):
        retry(corpus, fetch(corpus), ["ok", "dns"])


def test_the_same_retry_twice_waits_for_verify(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, _, _ = tried
    asked = bring(monkeypatch, set())
    retry(corpus, fetch(corpus), ["timeout"])
    again = retry(corpus, fetch(corpus), ["timeout"])
    assert (again.done, again.unverified, len(asked)) == ([], [0], 1)


def test_a_retry_needs_a_verified_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, plan = planned(tmp_path)
    bring(monkeypatch, set())
    with pytest.raises(UserError, match="work item 0 is not downloaded: run `data-prep download toy`"):
        retry(corpus, fetch(corpus))
    downloaded(corpus, plan, 0, entries(corpus, plan, 0))
    with pytest.raises(UserError, match="run it first"):
        retry(corpus, fetch(corpus))


def test_a_killed_retry_goes_on_with_the_rows_it_had(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, plan, rows = tried
    monkeypatch.setattr(data_prep.retry, "download", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        retry(corpus, fetch(corpus), ["timeout"])
    assert read_done(corpus, 0, plan.fingerprint) is None, "the item is not whole while an attempt is open"
    with pytest.raises(UserError, match=r"still to download \(0\)"):
        publish(corpus)
    asked = bring(monkeypatch, {rows[5]["uid"]})
    result = retry(corpus, fetch(corpus), ["5xx"])
    assert (result.continued, result.rows) == ([0], {})
    assert sorted(asked[0]) == sorted(rows[number]["uid"] for number in (5, 13, 17))
    verify(corpus)
    assert publish(corpus)[0]["samples"] == ROWS - 4


@pytest.mark.parametrize("moment", ["write_shard", "_write_outcomes", "write_json"])
def test_a_verification_killed_after_a_retry_is_done_again(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    corpus, _, rows = tried
    bring(monkeypatch, {rows[5]["uid"]})
    retry(corpus, fetch(corpus), ["timeout"])
    with monkeypatch.context() as patch:
        patch.setattr(data_prep.verify, moment, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            verify(corpus)
    verify(corpus)
    assert publish(corpus)[0]["samples"] == ROWS - 4
    assert rows[5]["uid"] in uids(corpus)


def test_a_row_that_two_attempts_have_is_one_sample(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of the first attempt was damaged after the retry, and made again: this time all of it came."""
    corpus, plan, rows = tried
    bring(monkeypatch, {rows[number]["uid"] for number in FAILED})
    retry(corpus, fetch(corpus), ["timeout", "http_503", "http_404"])
    verify(corpus)
    whole: Entry = {"status": "success", "error_message": None}
    downloaded(corpus, plan, 0, [{**row, **whole} for row in rows])
    assert verify(corpus)[0].new
    assert publish(corpus)[0]["samples"] == ROWS == len(set(uids(corpus))) == len(uids(corpus))
    assert set(outcomes(corpus).values()) == {"ok"}


def test_damage_in_a_retry_is_made_again(
    tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, plan, rows = tried
    bring(monkeypatch, {rows[5]["uid"]})
    retry(corpus, fetch(corpus), ["timeout"])
    tar = shard_files(corpus.download(0, 1), 0)[0]
    tar.write_bytes(tar.read_bytes()[:700])
    assert "00000.tar" in verify(corpus)[0].damage[0]
    assert read_done(corpus, 0, plan.fingerprint) is None
    assert shard_files(corpus.download(0), 0)[0].is_file()
    assert not tar.exists()


def test_the_command_says_what_it_did(tried: tuple[Corpus, Plan, list[Entry]], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, _, rows = tried
    bring(monkeypatch, {rows[5]["uid"]})
    name = str(corpus.folder)
    text = CliRunner().invoke(main, ["retry", name, "--causes", "timeout, 5xx", "--dry-run"]).output
    assert text.startswith("would try 4 rows again (3 timeout, 1 http_503)")
    facts = json.loads(CliRunner().invoke(main, ["retry", name, "--causes", "timeout", "--json"]).output)
    assert (facts["rows"], facts["tried"]) == ({"timeout": 3}, [0])
    verify(corpus)
    text = CliRunner().invoke(main, ["retry", name, "--causes", "dns"]).output
    assert text.startswith("nothing to try again, nothing done")


def test_causes_by_name_and_by_class() -> None:
    assert matches("http_503", ["5xx"])
    assert matches("http_503", ["http_503"])
    assert matches("http_503", ["503"])
    assert not matches("http_404", ["5xx", "timeout"])
    assert matches("timeout", ["dns", "timeout"])
    passing = ("timeout", "dns", "connection", "truncated", "lost", "http_500", "http_503", "http_429", "http_408")
    lasting = ("ok", "http_404", "http_410", "http_403", "opt_out", "not_an_image", "too_large", "tls", "bad_url")
    assert all(map(may_pass, passing))
    assert not any(map(may_pass, lasting))
