"""`data-prep metadata`: fetch a corpus's metadata from the Hugging Face hub or from URLs.

What was fetched is recorded in `metadata.json` of the corpus's folder: the commit of each repository, and of every
file its size and sha256. The commit that was found first stays the corpus's, even if its branch moves on; a file that
is there as recorded is not fetched again; one that was cut off is continued.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_prep.corpus import Corpus, CorpusDefinition, Hub
from data_prep.progress import Report, silent
from pipeline.errors import UserError
from pipeline.files import fsync_folder, read_json, sha256_file, write_json
from pipeline.locks import exclusive
from pipeline.storage import download, is_url, matching


@dataclass(frozen=True)
class Wanted:
    """One file to fetch into `folder`. size, checksums: as the hub has them; None where a URL does not say.

    sha256: of the large-file store. git_sha1: of small files, of `blob SIZE NUL content`.
    """

    source: str  # a repository, or a URL
    path: str  # in the repository, and in the folder
    folder: Path
    commit: str | None = None
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

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
                _fetch(definition, file)
                record["files"][file.name_in(corpus)] = {"sha256": _proven(file), "size": file.target.stat().st_size}
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
    try:
        return read_json(corpus.folder / "metadata.json")
    except FileNotFoundError:
        return {"commits": {}, "files": {}}


def _result(
    definition: CorpusDefinition, wanted: list[Wanted], fetched: int, there: int, record: dict[str, Any]
) -> dict[str, Any]:
    return {
        "fetched": fetched,
        "already_there": there - fetched,
        "missing": len(wanted) - there,
        "bytes": sum(file.size or 0 for file in wanted),
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
        files += [Wanted(url, url.rpartition("/")[2], corpus.folder / "metadata") for url in found]
    target, times = Counter(file.target for file in files).most_common(1)[0]
    if times > 1:
        raise UserError(f"{times} files would become {target}: give them other folders (`hub.into`) or names")
    return files


def _of_hub(corpus: Corpus, part: Hub, record: dict[str, Any]) -> Iterator[Wanted]:
    """The files of a repository that are wanted; its commit is that of the record, or goes into it."""
    from huggingface_hub import HfApi

    key = f"{part.repository}@{part.revision}"
    revision = record["commits"].get(key, part.revision)
    with _explained(corpus.definition, part.repository):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = api.dataset_info(part.repository, revision=revision, files_metadata=True)
    record["commits"][key] = info.sha
    files = {file.rfilename: file for file in info.siblings or ()}
    chosen = sorted(path for path in files if any(fnmatchcase(path, pattern) for pattern in part.files))
    if not chosen:
        raise UserError(
            f"{part.repository} at {info.sha} has no file like {', '.join(part.files)}: mend `hub.files` in the "
            f"definition of {corpus.definition.name}"
        )
    for path in chosen:
        file, folder = files[path], corpus.folder / part.into
        checksums = (file.lfs.sha256, None) if file.lfs else (None, file.blob_id)
        yield Wanted(part.repository, path, folder, info.sha, file.size, *checksums)


def _is_there(corpus: Corpus, file: Wanted, record: dict[str, Any]) -> bool:
    """Whether the file was fetched, and has the size that it had then (planning reads every byte)."""
    recorded = record["files"].get(file.name_in(corpus))
    return recorded is not None and file.target.is_file() and file.target.stat().st_size == recorded["size"]


def _fetch(definition: CorpusDefinition, file: Wanted) -> None:
    from huggingface_hub import hf_hub_download

    if file.commit is None:
        partial = file.target.with_name(f".{file.target.name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        download(file.source, partial)
        os.replace(partial, file.target)
        fsync_folder(file.target.parent)
        return
    with _explained(definition, file.source):
        hf_hub_download(
            file.source,
            file.path,
            repo_type="dataset",
            revision=file.commit,
            local_dir=file.folder,
            endpoint=os.environ.get("HF_ENDPOINT"),
        )


def _proven(file: Wanted) -> str:
    """The file's sha256. Raises UserError, and removes the file, when it is not what the hub says."""
    digest = sha256_file(file.target)
    sound = file.sha256 in (None, digest)
    if file.git_sha1 is not None:
        content = file.target.read_bytes()
        sound = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest() == file.git_sha1
    if not sound:
        file.target.unlink()
        raise UserError(
            f"{file.path} of {file.source} did not arrive as the hub has it (checksum), and was removed: run the same "
            "command again. If it stays so, something between here and the hub changes files."
        )
    return digest


@contextmanager
def _explained(definition: CorpusDefinition, repository: str) -> Iterator[None]:
    """What the hub and its library complain of, as a message that says what to do."""
    from huggingface_hub import errors

    by_hand = f"\n{definition.by_hand}" if definition.by_hand else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} wants its terms to be accepted. Open https://huggingface.co/datasets/{repository}, accept "
            f"them with your account, then `hf auth login` (or set HF_TOKEN), and run the same again.{by_hand}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no data set {repository}, or does not show it to you: `hf auth login` if it is private, or "
            f"mend `hub` in the definition of {definition.name}.{by_hand}"
        ) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise UserError(f"{repository} has no such revision or file: {error}. Mend `hub` in the definition.") from error
    except Exception as error:  # the libraries below have their own, and change them
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"the hub does not answer for {repository}: {error}. Check the network (HF_ENDPOINT, proxies), then run "
            "the same command again: it goes on where it stopped."
        ) from error
