"""`data-prep download`: img2dataset on the rows of a work item; the only file that imports img2dataset.

img2dataset's unit of work is its `Downloader`, called with one shard; its distributors only map it over
shards. We map it ourselves, because they print a failed shard and go on, hang when a worker is killed, leave
workers behind that write into shards after the parent's death, and end with status 0 on SIGINT.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_prep.corpus import Corpus, Fetch, Images
from data_prep.downloaded import LOG, Done, claim, read_done, remove_unfinished, write_done
from data_prep.incoming import GuardedResizer
from data_prep.plan import Plan, read_item, read_plan
from data_prep.progress import Report, silent
from data_prep.workers import worker_pool
from pipeline.errors import UserError
from pipeline.locks import exclusive


@dataclass(frozen=True)
class _Shard:
    """One call of img2dataset's Downloader. rows: Arrow file of its rows; capacity: rows of a full shard."""

    folder: Path
    number: int
    rows: Path
    capacity: int
    images: Images
    fetch: Fetch


def download(
    corpus: Corpus, fetch: Fetch, items: Sequence[int] | None = None, report: Report = silent
) -> list[tuple[Done, bool]]:
    """Download work items, by default all; returns for each its record and whether it is new.

    An item that is done is left alone; of one that was killed, finished shards are kept. report: called with
    (rows done, rows to do). Raises UserError when another process works on an item, an item fails as a whole,
    or img2dataset breaks on a shard.
    """
    plan = read_plan(corpus)
    chosen = plan.select(items)
    total, rows_done, results = sum(plan.items[item]["rows"] for item in chosen), 0, []

    def advance(rows: int) -> None:
        nonlocal rows_done
        rows_done += rows
        report(rows_done, total)

    with worker_pool(fetch.processes) as pool:
        for item in chosen:
            with exclusive(corpus.lock(f"item-{item:05d}"), f"work item {item} of {corpus.folder}"):
                done = read_done(corpus, item, plan.fingerprint)
                if done is not None:
                    advance(done.rows)
                    results.append((done, False))
                else:
                    results.append((_download_item(corpus, plan, item, fetch, pool, advance), True))
    return results


def _download_item(
    corpus: Corpus, plan: Plan, item: int, fetch: Fetch, pool: Executor, advance: Callable[[int], None]
) -> Done:
    table, folder = read_item(corpus, plan, item), corpus.download(item)
    capacity = plan.samples_per_shard
    shards = math.ceil(table.num_rows / capacity)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, plan.fingerprint)
    to_do = remove_unfinished(folder, shards)
    scratch = folder / "_tmp"
    scratch.mkdir()
    running = {}
    try:
        for number in to_do:
            rows = table.slice(number * capacity, capacity)
            arrow = scratch / f"{number}.arrow"
            with pa.ipc.new_file(str(arrow), rows.schema) as writer:
                writer.write_table(rows)
            shard = _Shard(folder, number, arrow, capacity, plan.images, fetch)
            running[pool.submit(_download_shard, shard)] = rows.num_rows
        advance(table.num_rows - sum(running.values()))
        for future in as_completed(running):
            future.result()
            advance(running[future])
    except BaseException as error:
        # The caller holds the item's lock: nobody may write into its folder any more when that is given up.
        pool.shutdown(wait=True, cancel_futures=True)
        if not isinstance(error, BrokenProcessPool):
            raise
        raise UserError(
            f"a download process of work item {item} was killed (out of memory?). Finished shards are kept: "
            "run the same command again, with fewer --processes or --threads if it happens again. "
            f"Log: {folder / LOG}"
        ) from error
    scratch.rmdir()
    return write_done(corpus, item, plan.fingerprint, table.num_rows, shards)


def _download_shard(shard: _Shard) -> None:
    """Runs in a worker process, whose output goes to the item's log."""
    log = os.open(shard.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for its own newest version
    # webdataset does without torch, and so does this process: it starts twice as fast.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    images, fetch = shard.images, shard.fetch
    resizer = Resizer(
        image_size=images.image_size,
        resize_mode="keep_ratio_largest",
        resize_only_if_bigger=True,
        encode_format="jpg",
        encode_quality=images.jpeg_quality,
        skip_reencode=True,  # a JPEG that is small enough keeps its bytes
        min_image_size=images.min_image_size,
    )
    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=GuardedResizer(resizer, images.max_pixels),
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
    if not finished:
        raise UserError(
            f"img2dataset failed on shard {shard.number} in {shard.folder}: see the end of "
            f"{shard.folder / LOG}. Finished shards are kept: run the same command again."
        )
