"""`data-prep metadata`: fetch a corpus's metadata from the Hugging Face hub or from URLs.

What was fetched is recorded in `metadata.json` of the corpus's folder: the commit of each repository, and of every
file its size and sha256. The commit that was found first stays the corpus's, even if its branch moves on; a file that
is there as recorded is not fetched again; one that was cut off is continued.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.corpus import Corpus, CorpusDefinition, Hub
from data_prep.corpus_files import METADATA
from data_prep.progress import Report, silent
from pipeline.errors import UserError
from pipeline.files import fsync_folder, sha256_file, write_json
from pipeline.hub import HubFile, fetch, list_files
from pipeline.locks import exclusive
from pipeline.storage import download, is_url, matching


@dataclass(frozen=True)
class Wanted:
    """One file to fetch into `folder`. source: on the hub, or a URL."""

    source: HubFile | str
    folder: Path

    @property
    def path(self) -> str:
        """In the repository, and in the folder."""
        return self.source.rpartition("/")[2] if isinstance(self.source, str) else self.source.path

    @property
    def size(self) -> int:
        """0 where a URL does not say."""
        return 0 if isinstance(self.source, str) else self.source.size

    @property
    def target(self) -> Path:
        return self.folder / self.path

    def name_in(self, corpus: Corpus) -> str:
        return str(self.target.relative_to(corpus.folder))


def fetch_metadata(corpus: Corpus, *, dry_run: bool = False, report: Report = silent) -> dict[str, Any]:
    """Fetch what is missing; returns {fetched, already_there, missing: files; bytes, commits, by_hand}.

    dry_run: only ask what there is. report: called with (files here, files in all).
    Raises UserError when the definition names no source, the hub refuses or cannot be reached, or a file is not what
    the hub says it is.
    """
    definition = corpus.definition
    if not definition.hub and not definition.urls_to_copy:
        raise UserError(
            f"{definition.name} names no place to fetch its metadata from. "
            + (f"It is made by hand:\n{definition.by_hand}" if definition.by_hand else "Put it there yourself.")
        )
    record = _recorded(corpus)
    if dry_run:
        wanted = _wanted(corpus, record)
        there = sum(_is_there(corpus, file, record) for file in wanted)
        return _result(definition, wanted, 0, there, record)
    with exclusive(corpus.lock("metadata"), f"the metadata of {corpus.folder}"):
        wanted = _wanted(corpus, record)
        record["wanted"] = [file.name_in(corpus) for file in wanted]
        write_json(corpus.folder / "metadata.json", record)  # the commits and names, before the first byte
        fetched = 0
        for number, file in enumerate(wanted):
            if not _is_there(corpus, file, record):
                digest = _fetch(definition, file)
                record["files"][file.name_in(corpus)] = {"sha256": digest, "size": file.target.stat().st_size}
                write_json(corpus.folder / "metadata.json", record)
                fetched += 1
            report(number + 1, len(wanted))
        return _result(definition, wanted, fetched, len(wanted), record)


def copy_metadata(corpus: Corpus, report: Report = silent) -> None:
    """Copy what the definition's `metadata` names by URL, unless all of it is here. Raises UserError."""
    if any(map(is_url, corpus.definition.metadata_patterns)):
        record = _recorded(corpus)
        if "wanted" not in record or set(record["wanted"]) - record["files"].keys():
            fetch_metadata(corpus, report=report)


def _recorded(corpus: Corpus) -> dict[str, Any]:
    return METADATA.read(corpus.folder / "metadata.json") or {"commits": {}, "files": {}}


def _result(
    definition: CorpusDefinition, wanted: list[Wanted], fetched: int, there: int, record: dict[str, Any]
) -> dict[str, Any]:
    return {
        "fetched": fetched,
        "already_there": there - fetched,
        "missing": len(wanted) - there,
        "bytes": sum(file.size for file in wanted),
        "commits": record["commits"],
        "by_hand": definition.by_hand,
    }


def _wanted(corpus: Corpus, record: dict[str, Any]) -> list[Wanted]:
    files = [file for part in corpus.definition.hub for file in _of_hub(corpus, part, record)]
    for pattern in corpus.definition.urls_to_copy:
        found = matching(pattern)
        if not found:
            raise UserError(
                f"nothing is at {pattern}: mend `urls` or `metadata` in the definition of {corpus.definition.name}"
            )
        files += [Wanted(url, corpus.folder / "metadata") for url in found]
    target, times = Counter(file.target for file in files).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} files would become {target}: give them other folders (`hub.into`) or names")
    return files


def _of_hub(corpus: Corpus, part: Hub, record: dict[str, Any]) -> Iterator[Wanted]:
    """The files of a repository that are wanted; its commit is that of the record, or goes into it."""
    key = f"{part.repository}@{part.revision}"
    revision = record["commits"].get(key, part.revision)
    files = list_files(part.repository, revision, part.files, _advice(corpus.definition))
    record["commits"][key] = files[0].commit
    for file in files:
        yield Wanted(file, corpus.folder / part.into)


def _advice(definition: CorpusDefinition) -> str:
    by_hand = f"\n{definition.by_hand}" if definition.by_hand else ""
    return f"Mend `hub` in the definition of {definition.name}.{by_hand}"


def _is_there(corpus: Corpus, file: Wanted, record: dict[str, Any]) -> bool:
    """Whether the file was fetched, and has the size that it had then (planning reads every byte)."""
    recorded = record["files"].get(file.name_in(corpus))
    return recorded is not None and file.target.is_file() and file.target.stat().st_size == recorded["size"]


def _fetch(definition: CorpusDefinition, file: Wanted) -> str:
    """Returns the file's sha256. Raises UserError when it does not arrive, or not as the hub says."""
    if isinstance(file.source, HubFile):
        return fetch(file.source, file.folder, _advice(definition))
    partial = file.target.with_name(f".{file.target.name}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    download(file.source, partial)
    os.replace(partial, file.target)
    fsync_folder(file.target.parent)
    return sha256_file(file.target)
