"""A new corpus out of the shards of others: `data-prep subset`, `merge` and `reshard`, without downloading.

Two passes over the sources, parallel, each going on where it was killed: the first checks every shard against its
manifest and notes which rows stay (`selection.py`), the second writes the new shards. Samples keep their order (source,
shard, row) from shard to shard; each new shard but the last has exactly `samples_per_shard` of them, within it in the
order of uids as in every canonical shard. So the result is a function of the request, whatever the number of
processes and kills.

What was asked for is frozen in the new folder's `derived.json`; another request into it is refused.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_prep.corpus import Corpus, CorpusDefinition
from data_prep.corpus_files import ACCOUNTED, DERIVED, WRITTEN
from data_prep.manifest import Manifest, ShardFile, read_manifest, shard_row, summarise, write_manifest
from data_prep.progress import Report, silent
from data_prep.selection import Selections, dropped_in_all
from data_prep.shard import Sample, index_path, read_samples, write_shard
from data_prep.workers import worker_pool
from pipeline.config.loader import parse
from pipeline.config.tree import differences
from pipeline.errors import UserError
from pipeline.files import fingerprint, remove_torn, sha256_file, write_json
from pipeline.locks import exclusive

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What decides the new corpus. sources: {corpus, fingerprint} in order. uids: sha256 of the list, if any."""

    sources: list[dict[str, str]]
    where: str | None
    uids: str | None
    samples_per_shard: int


class Piece(NamedTuple):
    """Rows `first` to `last` (excluded) of what stays of source shard `number`: they go into one new shard."""

    number: int
    file: ShardFile
    first: int
    last: int


class _Sources:
    """The shards of several manifests, numbered on from one to the next, and what their `manifest.json` say."""

    def __init__(self, folders: Sequence[str]) -> None:
        self.manifests = [read_manifest(folder) for folder in folders]
        self.summaries = [_summary(manifest) for manifest in self.manifests]
        self.files: list[ShardFile] = [
            manifest.shard(shard) for manifest in self.manifests for shard in range(len(manifest.samples))
        ]
        self.samples = sum(manifest.total_samples for manifest in self.manifests)

    @property
    def names(self) -> list[str]:
        return [summary["corpus"] for summary in self.summaries]


def derive(
    sources: Sequence[str],
    target: Path,
    *,
    where: str | None = None,
    uids: Path | None = None,
    samples_per_shard: int | None = None,
    processes: int = 1,
    dry_run: bool = False,
    report: Report = silent,
) -> tuple[dict[str, Any], bool]:
    """Make the corpus `target` out of published ones; returns its `manifest.json` and whether it is new.

    sources: folders or URLs with manifests. where: expression over the samples' JSON, `caption` and
    `caption_length`. uids: .npy of those to keep. samples_per_shard: by default that of the first source.
    dry_run: only count what stays. report: called with (shards done, shards to do), of one pass and then the other.
    Raises UserError for another request into the same folder, a source that is not what its manifest says, and
    when no sample is left.
    """
    given = _Sources(sources)
    request = Request(
        sources=[
            {"corpus": name, "fingerprint": manifest.fingerprint}
            for name, manifest in zip(given.names, given.manifests, strict=True)
        ],
        where=where,
        uids=None if uids is None else sha256_file(uids),
        samples_per_shard=samples_per_shard or given.summaries[0].get("samples_per_shard", 10_000),
    )
    corpus = Corpus(target, _definition(target.name, given, request))
    with ExitStack() as stack:
        if dry_run:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="data-prep-")))
        else:
            stack.enter_context(exclusive(corpus.lock("derive"), f"the corpus {target}"))
            for folder in (target, target / "shards"):
                remove_torn(folder)
            _freeze(corpus, request)
            scratch = target / "derive"
            if published := _published(corpus, request):
                shutil.rmtree(scratch, ignore_errors=True)
                return published, False
        selections = Selections(scratch / "selected")
        select = partial(selections.select, where=where, uids=uids)
        selected = _each(select, list(enumerate(given.files)), processes, report)
        repeated = selections.drop_repeated(selected)
        kept = [selection.kept - repeated.get(selection.number, 0) for selection in selected]
        totals = _totals(corpus, given, request, sum(kept), dropped_in_all(selected, repeated))
        if not totals["rows"]:
            raise UserError(f"not one of {given.samples:,} samples of {', '.join(given.names)} is left")
        if not dry_run:
            pieces = list(enumerate(_pieces(given.files, kept, request.samples_per_shard)))
            rows = _each(partial(_write_shard, corpus, selections), pieces, processes, report)
            corpus.save_definition()
            write_manifest(target, rows, totals)
            totals = summarise(rows, totals)
            shutil.rmtree(scratch, ignore_errors=True)
        return totals, True


def _summary(manifest: Manifest) -> dict[str, Any]:
    """The source's `manifest.json`, with the name of its corpus."""
    return {"corpus": manifest.folder.rstrip("/").rpartition("/")[2], **manifest.summary}


def _definition(name: str, given: _Sources, request: Request) -> CorpusDefinition:
    how = [f"where {request.where}"] if request.where else []
    how += [f"uids of a list with sha256 {request.uids}"] if request.uids else []
    tree = {
        "name": name,
        "title": " and ".join(dict.fromkeys(str(summary.get("title", "untitled")) for summary in given.summaries)),
        "licence": "; ".join(dict.fromkeys(str(summary.get("licence", "not stated")) for summary in given.summaries)),
        "source": "; ".join([f"made from {' and '.join(given.names)}", *how]),
    }
    return parse(CorpusDefinition, tree, where=f"the name of the new corpus, {name!r}")


def _freeze(corpus: Corpus, request: Request) -> None:
    """Store what is asked for, or refuse it where something else was. Raises UserError."""
    stored, wanted = corpus.derived_file, asdict(request)
    if corpus.plan_file.exists():
        raise UserError(f"{corpus.folder} is a corpus that was downloaded: give the new one another name (--out)")
    before = DERIVED.read(stored)
    if before is None:
        write_json(stored, wanted)
    elif before != wanted:
        raise UserError(
            f"{corpus.folder} was made differently (then -> now):\n  "
            + "\n  ".join(differences(before, wanted))
            + "\nGive the new corpus another name (--out), or remove that folder first."
        )


def _published(corpus: Corpus, request: Request) -> dict[str, Any] | None:
    """The manifest's summary, where it is that of this request and its shards are there."""
    try:
        manifest = read_manifest(corpus.folder)
    except UserError:
        return None
    files = (manifest.shard(number) for number in range(len(manifest.samples)))
    sound = all(
        Path(file.path).is_file() and index_path(file.path).is_file() and Path(file.path).stat().st_size == file.bytes
        for file in files
    )
    whole = not ACCOUNTED.problem(manifest.summary) and manifest.summary.get("plan") == fingerprint(asdict(request))
    return manifest.summary if sound and whole else None


def _each(work: Callable[..., T], tasks: Sequence[tuple[int, Any]], processes: int, report: Report) -> list[T]:
    """work(number, what) for each task, in parallel; the results in the order of the tasks."""
    results: dict[int, T] = {}
    if min(processes, len(tasks)) <= 1:
        for number, what in tasks:
            results[number] = work(number, what)
            report(len(results), len(tasks))
    else:
        with worker_pool(min(processes, len(tasks))) as pool:
            futures = {pool.submit(work, number, what): number for number, what in tasks}
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                report(len(results), len(tasks))
    return [results[number] for number, _ in tasks]


def _pieces(files: Sequence[ShardFile], kept: Sequence[int], samples_per_shard: int) -> Iterator[list[Piece]]:
    """For each new shard, the rows that it takes. kept: rows that stay of each source shard."""
    pieces: list[Piece] = []
    room = samples_per_shard
    for number, (file, rows) in enumerate(zip(files, kept, strict=True)):
        first = 0
        while first < rows:
            last = min(rows, first + room)
            pieces.append(Piece(number, file, first, last))
            room -= last - first
            first = last
            if not room:
                yield pieces
                pieces, room = [], samples_per_shard
    if pieces:
        yield pieces


def _write_shard(corpus: Corpus, selections: Selections, number: int, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Write one new shard, held in memory meanwhile; returns its row of the manifest. One that is there stays."""
    record, path = corpus.folder / "derive" / "written" / f"{number:08d}.json", corpus.shard(number, 0)
    if (written := WRITTEN.whole(record)) and path.is_file():
        return written
    samples: list[Sample] = []
    for piece in pieces:
        rows = selections.rows(piece.number)["row"][piece.first : piece.last]
        samples += read_samples(piece.file.path, piece.file.bytes, rows.tolist())
    write_shard(path, sorted(samples, key=lambda sample: sample.uid))
    row = shard_row(corpus.folder, path, len(samples), number)
    write_json(record, row)
    return row


def _totals(corpus: Corpus, given: _Sources, request: Request, kept: int, dropped: dict[str, int]) -> dict[str, Any]:
    return {
        **corpus.definition.imprint,
        "plan": fingerprint(asdict(request)),
        "samples_per_shard": request.samples_per_shard,
        "derived_from": request.sources,
        "rows_read": given.samples,
        "dropped": dropped,
        "rows": kept,
        "ok": kept,
        "outcomes": {"ok": kept},
    }
