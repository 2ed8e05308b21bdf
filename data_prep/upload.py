"""`data-prep upload`: copy a published corpus to a URL, from which training and `subset` read it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from data_prep.manifest import MANIFEST_FILES, Manifest, read_manifest
from data_prep.progress import Report, silent
from data_prep.shard import index_name
from pipeline.errors import UserError
from pipeline.files import sha256_file
from pipeline.storage import is_url, join, sizes, upload


def upload_corpus(
    folder: Path, url: str, *, threads: int = 8, dry_run: bool = False, report: Report = silent
) -> dict[str, Any]:
    """Copy shards and indices, then the manifest; returns {uploaded, already_there, missing: files; fingerprint}.

    A manifest at the URL so lists only what is there. What is there in the right size is not copied again; every file
    is checked against the manifest before it is copied. threads: files at once. report: called with (files, of how
    many). Raises UserError when a shard is not what the manifest says, or another corpus lies at the URL.
    """
    if not is_url(url):
        raise UserError(f"{url} is no URL such as s3://bucket/folder: to copy to a path, use cp")
    manifest = read_manifest(folder)
    there = sizes(url)
    _refuse_another(manifest, url, there)
    files = list(_files(manifest, folder))
    missing = [(name, digest) for name, digest in files if there.get(name) != (folder / name).stat().st_size]
    if not dry_run:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(_copy, folder / name, join(url, name), digest) for name, digest in missing]
            for done, future in enumerate(as_completed(futures), start=len(files) - len(missing) + 1):
                future.result()
                report(done, len(files))
        for name in reversed(MANIFEST_FILES):  # the Parquet, then the JSON that holds its fingerprint
            upload(folder / name, join(url, name))
    return {
        "uploaded": 0 if dry_run else len(missing),
        "already_there": len(files) - len(missing),
        "missing": len(missing) if dry_run else 0,
        "fingerprint": manifest.fingerprint,
    }


def _files(manifest: Manifest, folder: Path) -> Iterator[tuple[str, str]]:
    """(name, sha256) of every index and shard. Raises UserError where one is not there."""
    columns = (manifest.table[name].to_pylist() for name in ("path", "sha256", "index_sha256"))
    for path, digest, index_digest in zip(*columns, strict=True):
        for name, wanted in ((index_name(path), index_digest), (path, digest)):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing, though the manifest lists its shard: verify the corpus")
            yield name, wanted


def _refuse_another(manifest: Manifest, url: str, there: dict[str, int]) -> None:
    if not there.keys() >= set(MANIFEST_FILES):
        return
    other = read_manifest(url)
    if other.fingerprint != manifest.fingerprint:
        raise UserError(f"another corpus lies at {url} ({other.total_samples:,} samples): give a folder of its own")


def _copy(path: Path, url: str, digest: str) -> None:
    if sha256_file(path) != digest:
        raise UserError(f"{path} is not what the manifest says (sha256): run `data-prep verify NAME --again`")
    upload(path, url)
