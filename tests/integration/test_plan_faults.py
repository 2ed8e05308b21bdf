"""Planning survives what a cluster does to it: kill -9, a full disk, metadata of which one file is bad."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_prep.spill
from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.explain import explain
from data_prep.parts import make_part
from data_prep.plan import make_plan, read_item, read_plan
from pipeline.errors import UserError
from pipeline.files import sha256_file
from tests.real_data import DATA

ROWS, FILES, TASKS, KILLS = 40_000, 4, 5, 8
CUT = {"tasks": TASKS, "samples_per_shard": 100}


def corpus_at(folder: Path, rows: int = ROWS) -> Corpus:
    (folder / "metadata").mkdir(parents=True)
    for file in range(FILES):
        numbers = range(file * rows // FILES, (file + 1) * rows // FILES)
        urls = [f"http://h/{number % (rows * 9 // 10)}" for number in numbers]
        table = pa.table({"url": urls, "caption": [f"caption {len(url)}" for url in urls]})
        pq.write_table(table, folder / f"metadata/{file}.parquet", row_group_size=1000)
    corpus = Corpus(folder, CorpusDefinition(name="toy", title="Toy", licence="x"))
    corpus.save_definition()
    return corpus


def start(corpus: Corpus, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "data_prep", "--root", str(corpus.folder.parent), "plan", "toy"]
    command += ["--tasks", str(TASKS), "--samples-per-shard", "100", *arguments]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_killed_at_random_moments_it_ends_as_undisturbed(tmp_path: Path) -> None:
    undisturbed, _ = make_plan(corpus_at(tmp_path / "undisturbed/toy"), **CUT)
    corpus = corpus_at(tmp_path / "killed/toy")
    begun = time.monotonic()
    assert start(corpus).wait() == 0
    seconds = time.monotonic() - begun
    corpus.plan_file.unlink()
    moments, torn = random.Random(5), 0
    for kill in range(KILLS):
        process = start(corpus)
        if kill % 2:  # while it writes
            deadline = time.monotonic() + 30
            while not (corpus.folder / "plan/scratch").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, seconds / 4))
        else:
            time.sleep(moments.uniform(0.2, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if corpus.plan_file.exists():  # it was through: then it is whole
            assert read_plan(corpus) == undisturbed
            corpus.plan_file.unlink()
        torn += (corpus.folder / "plan/scratch").exists()
    assert torn, "no kill came while it wrote"
    assert start(corpus).wait() == 0
    assert read_plan(corpus) == undisturbed
    assert [sha256_file(corpus.plan_item(item)) for item in range(TASKS)] == [i["sha256"] for i in undisturbed.items]
    assert not (corpus.folder / "plan/scratch").exists()


def test_a_second_run_at_once_is_refused(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path / "toy")
    first = start(corpus)
    while not (corpus.folder / "plan/scratch").exists():
        assert first.poll() is None
        time.sleep(0.001)
    first.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            make_plan(corpus, **CUT)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert not make_plan(corpus, **CUT)[1]


def test_one_bad_file_stops_the_plan_before_anything_is_frozen(tmp_path: Path) -> None:
    corpus = corpus_at(tmp_path, 400)
    path = corpus.folder / "metadata/2.parquet"
    good = path.read_bytes()
    pq.write_table(pa.table({"url": [1.5], "caption": ["c"]}), path)  # as where a URL was lost, and pandas guessed
    with pytest.raises(UserError, match=r"metadata/2\.parquet: column 'url' holds double, not text .*row group 0"):
        make_plan(corpus, **CUT)
    content = bytearray(good)
    offset = pq.ParquetFile(pa.BufferReader(good)).metadata.row_group(0).column(0).data_page_offset
    content[offset : offset + 30] = b"\0" * 30
    path.write_bytes(content)
    for attempt in (lambda: make_plan(corpus, **CUT), lambda: make_part(corpus, **CUT, part=0, parts=1)):
        with pytest.raises(UserError, match=r"metadata/2\.parquet is damaged in row group 0 of 1, 100 rows"):
            attempt()
    assert not corpus.plan_file.exists()
    assert not list(corpus.folder.rglob("plan/*.parquet"))
    path.write_bytes(good)
    assert make_plan(corpus, **CUT)[0].rows_read == 400


def test_a_full_disk_ends_the_plan_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_at(tmp_path, 400)
    init = data_prep.spill.Spill.__init__

    def on_a_full_disk(spill: data_prep.spill.Spill, *arguments: object) -> None:
        init(spill, *arguments)
        (spill.folder / "000000.arrow").symlink_to("/dev/full")  # the kernel's own error

    with monkeypatch.context() as patch:
        patch.setattr(data_prep.spill.Spill, "__init__", on_a_full_disk)
        with pytest.raises(
            UserError, match=r"no space left to write .*plan/scratch/rows/000000\.arrow: .*same command again"
        ):
            make_plan(corpus, **CUT)
    assert not corpus.plan_file.exists()
    assert not list((corpus.folder / "plan").iterdir())
    assert make_plan(corpus, **CUT)[1]


@pytest.mark.skipif(not (DATA / "urlcaption").is_dir(), reason=f"no list of real URLs at {DATA}/urlcaption")
def test_a_real_list_is_accounted_for_to_the_last_row(tmp_path: Path) -> None:
    source = DATA / "urlcaption/test_10000.parquet"
    table = pq.read_table(source).to_pylist()
    definition = CorpusDefinition(
        name="real",
        title="10,000 rows",
        licence="of each image",
        metadata=str(source),
        columns={"url": "URL", "caption": "TEXT"},
    )
    corpus = Corpus(tmp_path / "real", definition)
    plan, _ = make_plan(corpus, tasks=4, samples_per_shard=1000)
    assert plan.rows_read == 10_000
    assert (plan.rows_planned, plan.dropped) == (9_999, {"not_http": 1})
    planned = {(row["url"], row["caption"]) for item in range(4) for row in read_item(corpus, plan, item).to_pylist()}
    left_out = [n for n, row in enumerate(table) if (row["URL"], " ".join(row["TEXT"].split())) not in planned]
    assert len(planned) == 9_999
    assert [explain(corpus, str(number))[0].fate for number in left_out] == ["not_http"]
