"""Is this machine fit for a download? Asked before the first URL, because afterwards every row bears the blame."""

from __future__ import annotations

import resource
import socket
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from data_prep.corpus import Corpus, Fetch
from data_prep.downloaded import read_done
from data_prep.hosts import host_of
from data_prep.plan import Plan, read_item, read_plan
from data_prep.speed import measure_speed
from data_prep.watch import UNSTATED_YIELD
from pipeline.errors import UserError
from pipeline.files import free_bytes

_FILES_PER_THREAD, _FILES_BESIDES = 3, 128  # a socket, a spooled body, the resolver's socket
_SAMPLED_HOSTS = 16
_BITS_PER_PIXEL = 1.5  # of a JPEG of quality 95, roughly


def preflight(corpus: Corpus, plan: Plan, items: Sequence[int], fetch: Fetch) -> dict[str, int]:
    """{open_files, disk_bytes_free, disk_bytes_needed, hosts_tried, hosts_resolved}: what was found for `items`.

    disk_bytes_needed: a rough estimate for all of them. Raises the process's limit of open files if need be.
    Raises UserError when open files are too few, the disk cannot hold the shards in progress, or the resolver
    fails for every host of a sample.
    """
    open_files = _enough_open_files(fetch.threads)
    per_image = plan.images.image_size**2 * _BITS_PER_PIXEL / 8
    free = free_bytes(corpus.folder)
    in_progress = int(fetch.processes * plan.samples_per_shard * per_image)
    rows = sum(plan.items[item]["rows"] for item in items)
    if free < min(in_progress, rows * per_image):
        raise UserError(
            f"{corpus.folder} has {free / 1e9:.2f} GB free; the {fetch.processes} shards in progress take about "
            f"{in_progress / 1e9:.2f} GB, all {rows:,} rows about {rows * per_image / 1e9:.2f} GB. Make room first."
        )
    tried, resolved = _resolve(corpus, plan, items)
    return {
        "open_files": open_files,
        "disk_bytes_free": free,
        "disk_bytes_needed": int(rows * per_image),
        "hosts_tried": tried,
        "hosts_resolved": resolved,
    }


def look(
    corpus: Corpus, fetch: Fetch, items: Sequence[int] | None = None, expected_yield: float = UNSTATED_YIELD
) -> dict[str, float]:
    """What a download would do, the findings of `preflight`, and how fast some URLs come; writes nothing.

    {items_done, items, rows, ..., images_per_second, megabytes_per_second, hours}. Raises UserError as `preflight` and
    `measure_speed` do.
    """
    plan = read_plan(corpus)
    chosen = plan.select(items)
    to_do = [item for item in chosen if read_done(corpus, item, plan.fingerprint) is None]
    rows = {"items_done": len(chosen) - len(to_do), "items": len(to_do)}
    rows["rows"] = sum(plan.items[item]["rows"] for item in to_do)
    if not rows["rows"]:
        return {**rows}
    facts = preflight(corpus, plan, to_do, fetch)
    first = next(item for item in to_do if plan.items[item]["rows"])
    urls = read_item(corpus, plan, first)["url"].to_pylist()
    speed = measure_speed(urls, fetch, plan.images, expected_yield)
    measured = {
        "images_per_second": round(speed.images_per_second, 2),
        "megabytes_per_second": round(speed.megabytes_per_second, 3),
        "hours": round(speed.hours(rows["rows"], fetch.processes), 2),
    }
    return {**rows, **facts, **measured}


def _enough_open_files(threads: int) -> int:
    """The limit of a process, raised to what `threads` need where the system lets us; workers inherit it."""
    need = threads * _FILES_PER_THREAD + _FILES_BESIDES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        raise UserError(
            f"{threads} threads need about {need} open files, and this system allows {hard} (ulimit -Hn): "
            f"run it with --threads {max(1, (hard - _FILES_BESIDES) // _FILES_PER_THREAD)} at most, or raise the limit"
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return max(soft, need)


def _resolve(corpus: Corpus, plan: Plan, items: Sequence[int]) -> tuple[int, int]:
    """How many hosts were looked up, and how many have an address. A name that does not exist is no fault of ours."""
    if urllib.request.getproxies():
        return 0, 0  # it is the proxy that looks names up
    first = read_item(corpus, plan, items[0])["url"].slice(0, 50 * _SAMPLED_HOSTS).to_pylist()
    hosts = list(dict.fromkeys(filter(None, map(host_of, first))))[:_SAMPLED_HOSTS]
    if not hosts:
        return 0, 0
    with ThreadPoolExecutor(len(hosts)) as threads:
        answers = list(threads.map(_look_up, hosts))
    if all(isinstance(answer, socket.gaierror) and answer.errno == socket.EAI_AGAIN for answer in answers):
        raise UserError(
            f"DNS: this machine's resolver answers for none of {len(hosts)} hosts, {hosts[0]} for one ({answers[0]}). "
            "Check /etc/resolv.conf and the network; on a cluster, a proxy (https_proxy) may be the way out."
        )
    return len(hosts), sum(answer is None for answer in answers)


def _look_up(host: str) -> Exception | None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        return error
    return None
