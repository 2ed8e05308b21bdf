"""Data sets of the Hugging Face hub: what a repository holds at a commit, and its files, proven to be those.

HF_ENDPOINT names another hub than huggingface.co; HF_TOKEN or `hf auth login` say who asks.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from pipeline.errors import UserError
from pipeline.files import fsync_folder, full_disk_named, sha256_file


@dataclass(frozen=True)
class HubFile:
    """One file of a data set at a commit. path: in the repository.

    sha256: of files in the large-file store; git_sha1: of small ones, of `blob SIZE NUL content`.
    """

    repository: str
    commit: str
    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


def list_files(repository: str, revision: str, patterns: Sequence[str], advice: str) -> list[HubFile]:
    """The files of a data set that match one of the patterns (fnmatch; `*` also crosses folders), by path.

    revision: a commit, branch or tag; the files tell its commit. advice: ends the message when there is no such data
    set, revision or file. Raises UserError for these, for refusals, and where the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explained(repository, advice):
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        info = api.dataset_info(repository, revision=revision, files_metadata=True)
    commit = str(info.sha)
    files = [
        HubFile(
            repository,
            commit,
            file.rfilename,
            file.size or 0,
            file.lfs.sha256 if file.lfs else None,
            None if file.lfs else file.blob_id,
        )
        for file in sorted(info.siblings or (), key=lambda file: file.rfilename)
        if any(fnmatchcase(file.rfilename, pattern) for pattern in patterns)
    ]
    if not files:
        raise UserError(f"{repository} at {commit} has no file like {', '.join(patterns)}. {advice}")
    return files


def fetch(file: HubFile, folder: Path, advice: str, report: Callable[[int], None] = lambda count: None) -> str:
    """Put a file at its path in `folder`, whole or not at all; returns its sha256.

    What an earlier try left, killed or not, is continued (the hub's library does so only within one process).
    report: called with the number of bytes that came, again and again.
    Raises UserError when it does not arrive, or not as the hub has it; what is wrong is removed.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, disable_progress_bars

    disable_progress_bars()
    target = folder / file.path
    partial = target.with_name(f".{target.name}.{(file.sha256 or file.git_sha1 or file.commit)[:16]}.part")
    partial.parent.mkdir(parents=True, exist_ok=True)
    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(file.repository, file.path, repo_type="dataset", revision=file.commit, endpoint=endpoint)
    if partial.is_file() and partial.stat().st_size > file.size:
        partial.unlink()
    with _explained(file.repository, advice), full_disk_named(target), open(partial, "ab") as stream:
        report(stream.tell())
        http_get(
            url,
            cast(BinaryIO, _Counted(stream, report)),
            resume_size=stream.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
        )
        stream.flush()
        os.fsync(stream.fileno())
    digest = sha256_file(partial)
    sound = file.sha256 in (None, digest)
    if file.git_sha1 is not None:
        content = partial.read_bytes()
        sound = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest() == file.git_sha1
    if not sound:
        partial.unlink()
        raise UserError(
            f"{file.path} of {file.repository} did not arrive as the hub has it (checksum), and was removed: run the "
            "same command again. If it stays so, something between here and the hub changes files."
        )
    os.replace(partial, target)
    fsync_folder(target.parent)
    return digest


class _Counted:
    """A stream that reports what is written to it."""

    def __init__(self, stream: IO[bytes], report: Callable[[int], None]) -> None:
        self._stream, self._report = stream, report

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, content: bytes) -> int:
        self._report(len(content))
        return self._stream.write(content)


@contextmanager
def _explained(repository: str, advice: str) -> Iterator[None]:
    """What the hub and its library complain of, as a message that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{repository} wants its terms to be accepted. Open https://huggingface.co/datasets/{repository}, accept "
            f"them with your account, then `hf auth login` (or set HF_TOKEN), and run the same again. {advice}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no data set {repository}, or does not show it to you: `hf auth login` if it is private. "
            f"{advice}"
        ) from error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        raise UserError(f"{repository} has no such revision or file: {error}. {advice}") from error
    except Exception as error:  # the libraries below have their own, and change them
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(
            f"the hub does not answer for {repository}: {error}. Check the network (HF_ENDPOINT, proxies), then run "
            "the same command again: it goes on where it stopped."
        ) from error
