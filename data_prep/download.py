"""`data-prep download`: img2dataset on the rows of a work item; the only file that imports img2dataset.

img2dataset's unit of work is its `Downloader`, called with one shard; its distributors only map it over
shards. We map it ourselves, because they print a failed shard and go on, hang when a worker is killed, leave
workers behind that write into shards after the parent's death, and end with status 0 on SIGINT.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from data_prep.corpus import Corpus, Fetch, Images
from data_prep.downloaded import (
    LOG,
    Done,
    attempt_rows,
    claim,
    count_attempts,
    forget_shards,
    read_causes,
    read_done,
    remove_unfinished,
    shard_files,
    write_done,
)
from data_prep.guarded_fetch import GuardedFetch
from data_prep.incoming import GuardedResizer, Resized
from data_prep.outcomes import OK, classify, tally
from data_prep.plan import Plan, read_item, read_plan
from data_prep.preflight import preflight
from data_prep.progress import Report, silent
from data_prep.speed import measure_speed
from data_prep.watch import FIRST_ROWS, UNSTATED_YIELD, Watch
from data_prep.workers import worker_pool
from pipeline.errors import UserError
from pipeline.locks import exclusive


@dataclass(frozen=True)
class Shard:
    """One call of img2dataset's Downloader. rows: Arrow file of its rows; capacity: rows of a full shard."""

    folder: Path
    number: int
    rows: Path
    capacity: int
    images: Images
    fetch: Fetch
    expected_yield: float


def download(
    corpus: Corpus,
    fetch: Fetch,
    items: Sequence[int] | None = None,
    report: Report = silent,
    expected_yield: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[tuple[Done, bool]]:
    """Download work items, by default all; returns for each its record and whether it is new.

    An item that is done is left alone; of one that was killed, finished shards are kept. report: called with
    (rows done, rows to do). expected_yield: share of rows that should become images, by default what the corpus
    publishes; 0 accepts any. say: called with how fast URLs came at a first look, which items of FIRST_ROWS rows get.
    Raises UserError when another process works on an item, this machine is not fit for it (`preflight`), far
    fewer rows than expected become images, or img2dataset breaks on a shard.
    """
    plan = read_plan(corpus)
    chosen = plan.select(items)
    expected_yield = promised_yield(corpus, expected_yield)
    to_do = [item for item in chosen if read_done(corpus, item, plan.fingerprint) is None]
    if to_do:
        preflight(corpus, plan, to_do, fetch)
    fresh = next((item for item in to_do if not corpus.download(item).exists()), None)
    if fresh is not None and plan.items[fresh]["rows"] >= FIRST_ROWS:
        urls = read_item(corpus, plan, fresh)["url"].to_pylist()
        speed = measure_speed(urls, fetch, plan.images, expected_yield)
        say(speed.describe(sum(plan.items[item]["rows"] for item in to_do), fetch.processes))
    total, rows_done, results = sum(plan.items[item]["rows"] for item in chosen), 0, []

    def advance(rows: int) -> None:
        nonlocal rows_done
        rows_done += rows
        report(rows_done, total)

    with worker_pool(fetch.processes) as pool:
        for item in chosen:
            with exclusive(corpus.lock(f"item-{item:05d}"), f"work item {item} of {corpus.folder}"):
                done = read_done(corpus, item, plan.fingerprint)
                new = done is None
                if done is None:
                    _download_item(corpus, plan, item, fetch, expected_yield, pool, advance)
                    done = write_done(corpus, plan, item, expected_yield)
                else:
                    advance(done.rows)
                results.append((done, new))
    return results


def promised_yield(corpus: Corpus, expected_yield: float | None) -> float:
    """The share of rows that should become images, by the user or else by what the corpus publishes."""
    published = corpus.definition.published_yield or UNSTATED_YIELD
    return published if expected_yield is None else expected_yield


def _download_item(
    corpus: Corpus,
    plan: Plan,
    item: int,
    fetch: Fetch,
    expected_yield: float,
    pool: Executor,
    advance: Callable[[int], None],
) -> None:
    """What is missing of every attempt at an item."""
    for attempt in range(count_attempts(corpus, item)):
        table, folder = attempt_rows(corpus, plan, item, attempt), corpus.download(item, attempt)
        first = attempt == 0
        expected = expected_yield if first else 0.0  # what failed once may well fail again
        shards = _unfinished(table, folder, plan, fetch, expected)
        there = table.num_rows - sum(rows for _, rows in shards)
        if first:
            advance(there)
        watch = Watch(expected)
        if there < FIRST_ROWS:  # else they were judged when they came
            finished = set(range(math.ceil(table.num_rows / plan.samples_per_shard))) - {s.number for s, _ in shards}
            watch.add(tally(cause for shard in finished for _, cause in read_causes(folder, shard)))
        try:
            _download_shards(shards, watch, folder / LOG, pool, advance if first else lambda _: None)
        except UserError:
            if watch.stopped:
                forget_shards(folder)
            raise
        (folder / "_tmp").rmdir()


def _unfinished(
    table: pa.Table, folder: Path, plan: Plan, fetch: Fetch, expected_yield: float
) -> list[tuple[Shard, int]]:
    """The shards that an attempt still lacks, each with its number of rows, which are written out for img2dataset."""
    capacity = plan.samples_per_shard
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, plan.fingerprint)
    to_do = remove_unfinished(folder, math.ceil(table.num_rows / capacity))
    (folder / "_tmp").mkdir()
    shards = []
    for number in to_do:
        rows = table.slice(number * capacity, capacity)
        arrow = folder / "_tmp" / f"{number}.arrow"
        with pa.ipc.new_file(str(arrow), rows.schema) as writer:
            writer.write_table(rows)
        shards.append((Shard(folder, number, arrow, capacity, plan.images, fetch, expected_yield), rows.num_rows))
    return shards


def _download_shards(
    shards: list[tuple[Shard, int]], watch: Watch, log: Path, pool: Executor, advance: Callable[[int], None]
) -> None:
    """watch: of the whole attempt. Raises UserError when it stops, or a shard fails."""
    running = {}
    try:
        for shard, rows in shards:
            running[pool.submit(_download_shard, shard)] = rows
        for future in as_completed(running):
            watch.add(future.result())
            advance(running[future])
            if watch.stopped:
                raise UserError(f"{log.parent} was stopped: {watch.stopped} Nothing of it counts as done; log: {log}")
    except BaseException as error:
        # The caller holds the item's lock: nobody may write into its folder any more when that is given up.
        pool.shutdown(wait=True, cancel_futures=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise UserError(
            "a download process was killed (out of memory?). Finished shards are kept: run the same command again, "
            f"with fewer --processes or --threads if it happens again. Log: {log}"
        ) from error


def _download_shard(shard: Shard) -> dict[str, int]:
    """Runs in a worker process, whose output goes to the item's log; returns how many rows ended how."""
    log = os.open(shard.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = sys.stderr = _Output()
    watch = Watch(shard.expected_yield)
    finished = run_img2dataset(shard, watch)
    what = f"shard {shard.number} in {shard.folder}"
    if watch.stopped:
        shard_files(shard.folder, shard.number)[2].unlink(missing_ok=True)  # it says "finished"
        raise UserError(
            f"{what} was stopped: {watch.stopped} Nothing of it counts as done, finished shards are kept; "
            f"log: {shard.folder / LOG}"
        )
    if not finished:
        raise UserError(
            f"img2dataset failed on {what}: see the end of {shard.folder / LOG}. Finished shards are kept: run the "
            "same command again."
        )
    return watch.counts


class _Output(io.TextIOBase):
    """A process's output. What a full disk has no room for is left out: img2dataset hangs where it cannot print."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            os.write(1, text.encode(errors="replace"))
        return len(text)


def run_img2dataset(shard: Shard, watch: Watch | None) -> bool:
    """Whether img2dataset came to the end of the shard. watch: None for its own fetch, without any guard."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for its own newest version
    # webdataset does without torch, and so does this process: it starts twice as fast.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    import img2dataset.downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    images, fetch = shard.images, shard.fetch
    resizer: Any = Resizer(
        image_size=images.image_size,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_format="jpg",
        encode_quality=images.jpeg_quality,
        skip_reencode=True,  # a JPEG that is small enough keeps its bytes
        min_image_size=images.min_image_size,
    )
    writer: Any = WebDatasetSampleWriter
    if watch is not None:
        resizer = _counted(GuardedResizer(resizer, images.max_pixels), watch)
        writer = _watched(writer, watch)
        img2dataset.downloader.download_image_with_retry = GuardedFetch(fetch, images, watch)
    downloader = img2dataset.downloader.Downloader(
        sample_writer_class=writer,
        resizer=resizer,
        thread_count=fetch.threads,
        save_caption=True,
        extract_exif=False,
        output_folder=str(shard.folder),
        column_list=pa.ipc.open_file(str(shard.rows)).schema.names,
        timeout=fetch.timeout_seconds,
        number_sample_per_shard=shard.capacity,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=fetch.retries,
        user_agent_token=images.user_agent_token,
        disallowed_header_directives=list(images.opt_out_directives) or None,
    )
    finished, _ = downloader((shard.number, str(shard.rows)))
    return bool(finished)


def _counted(resizer: GuardedResizer, watch: Watch) -> Callable[..., Resized]:
    def resize(stream: IO[bytes], boxes: Any = None) -> Resized:
        result = resizer(stream, boxes)
        watch.count(OK if result[-1] is None else classify("failed_to_resize", result[-1]))
        return result

    return resize


def _watched(writer_class: Any, watch: Watch) -> Any:
    """img2dataset prints what fails when it writes, a full disk for one, and goes on with the next row: stop it."""

    class Writer(writer_class):
        def write(self, *sample: Any) -> None:
            try:
                super().write(*sample)
            except OSError as error:
                watch.stop(f"it cannot be written ({error}). Make room, then run the same command again.")
                raise

        def close(self) -> None:
            try:
                super().close()
            except OSError as error:
                watch.stop(f"it cannot be written ({error}). Make room, then run the same command again.")
                raise

    return Writer
