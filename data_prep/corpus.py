"""A corpus: its definition (a YAML file) and its folder, whose layout is in docs/architecture.md."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from glob import escape, glob
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from data_prep.corpus_files import METADATA
from pipeline.config.loader import parse, read_yaml
from pipeline.config.schema import Section
from pipeline.config.tree import differences
from pipeline.errors import UserError
from pipeline.files import atomic_open
from pipeline.storage import is_url

SHIPPED = Path(__file__).parent / "corpora"


class Columns(Section):
    """Which columns of the metadata hold what. Without `uid`, it is a hash of the URL and caption."""

    url: str = "url"
    caption: str = "caption"
    uid: str | None = None  # 32 hex digits per row, as DataComp publishes them
    image_hash: str | None = None  # any text that equal images share: of rows with the same one, one is kept


class Screening(Section):
    """Which rows are not asked for. Part of the plan."""

    max_url_bytes: int = Field(default=4_096, ge=10)
    min_caption_length: int = Field(default=1, ge=1)  # characters
    max_caption_length: int = Field(default=10_000, ge=1)  # characters
    min_caption_words: int = Field(default=1, ge=1)
    unwanted_captions: tuple[str, ...] = ()  # regular expressions (RE2); a caption that matches one is dropped
    distinct: tuple[Literal["url", "url_caption"], ...] = ("url_caption",)  # of rows with the same, one is kept


class Images(Section):
    """What is kept of an image. Part of the plan: images of one corpus are all treated alike."""

    image_size: int = Field(default=512, ge=1)  # longest side, pixels; larger images are scaled down
    min_image_size: int = Field(default=0, ge=0)  # shortest side, pixels; smaller images are refused
    max_pixels: int = Field(default=89_000_000, ge=1, le=178_000_000)  # larger images are refused unread
    jpeg_quality: int = Field(default=95, ge=1, le=100)  # of images that have to be encoded again
    opt_out_directives: tuple[str, ...] = ("noai", "noimageai", "noindex", "noimageindex")  # X-Robots-Tag
    user_agent_token: str | None = None  # the name under which servers may address us in X-Robots-Tag


class Fetch(Section):
    """How hard to try for each URL. May differ from one download to the next."""

    timeout_seconds: float = Field(default=10, gt=0)  # to connect, and for each read
    total_seconds: float = Field(default=60, gt=0)  # for one URL, all attempts together
    retries: int = Field(default=2, ge=0)
    threads: int = Field(default=64, ge=1)  # per process
    processes: int = Field(default=1, ge=1)
    max_body_mib: int = Field(default=32, ge=1)  # larger bodies are refused
    connections_per_host: int = Field(default=16, ge=1)  # per process
    patience_seconds: float = Field(default=60, ge=0)  # pauses one host may ask for in one shard, together
    allow_private: bool = False  # whether URLs may lead to loopback, private and link-local addresses
    contact: str | None = None  # URL or e-mail address in the user agent, for whoever runs a server


class Hub(Section):
    """Files of a data set of the Hugging Face hub, at a commit."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")  # owner/name
    revision: str = "main"  # a commit's 40 hex digits; of a branch, the commit found first is kept
    files: tuple[str, ...] = ("*.parquet",)  # patterns of its paths, of which * crosses folders
    into: str = Field(default="metadata", pattern=r"^[a-z0-9_-]+$")  # folder of the corpus that gets them


class CorpusDefinition(Section):
    """What a corpus is and where its rows come from. Keys that are left out change no plan that was made without."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str
    licence: str
    source: str = "not stated"  # where the metadata comes from
    metadata: str | tuple[str, ...] = "metadata/*.parquet"  # globs, absolute or relative to the corpus folder, or URLs
    header: tuple[str, ...] = ()  # names of the columns, where CSV or TSV files have no header line
    columns: Columns = Columns()
    captions: tuple[str, ...] = ()  # further columns, kept in each sample's JSON under their own names
    screen: Screening = Screening()
    where: str | None = None  # rows to keep: `similarity >= 0.28 and original_width >= 200`
    uids: str | None = None  # rows to keep: .npy file of uids in DataComp's form (dtype u8,u8), found as `metadata` is
    images: Images = Images()
    fetch: Fetch = Fetch()
    hub: tuple[Hub, ...] = ()  # what `data-prep metadata` fetches
    urls: tuple[str, ...] = ()  # what it copies into metadata/: files or patterns at URLs (https://, s3://)
    by_hand: str | None = None  # what a person has to do first, such as accepting a licence
    expected_rows: int | None = Field(default=None, ge=1)  # of the metadata, before any filter
    published_yield: float | None = Field(default=None, gt=0, le=1)  # share of rows that others got
    unverified: str | None = None  # what of all this was taken from elsewhere and not tried here

    @property
    def metadata_patterns(self) -> tuple[str, ...]:
        return (self.metadata,) if isinstance(self.metadata, str) else self.metadata

    @property
    def urls_to_copy(self) -> tuple[str, ...]:
        """Files or patterns at URLs, of which copies in `metadata/` are planned."""
        return (*self.urls, *filter(is_url, self.metadata_patterns))

    @property
    def imprint(self) -> dict[str, str]:
        """What every manifest says of its corpus."""
        return {"corpus": self.name, "title": self.title, "licence": self.licence, "source": self.source}


@dataclass(frozen=True)
class Corpus:
    """A definition in its folder; every path of the ingest stage is named here."""

    folder: Path
    definition: CorpusDefinition

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.json"

    @property
    def derived_file(self) -> Path:
        """There where the corpus was made of others (`derive.py`)."""
        return self.folder / "derived.json"

    def plan_item(self, item: int) -> Path:
        return self.folder / "plan" / f"{item:05d}.parquet"

    def download(self, item: int, attempt: int = 0) -> Path:
        """attempt: 0 for all rows of the item, 1 and on for those that were tried again."""
        return self.folder / "download" / (f"{item:05d}-{attempt}" if attempt else f"{item:05d}")

    def done_file(self, item: int) -> Path:
        return self.download(item) / "done.json"

    def verified_file(self, item: int) -> Path:
        return self.folder / "verify" / f"{item:05d}.json"

    def outcomes(self, item: int) -> Path:
        return self.folder / "outcomes" / f"{item:05d}.parquet"

    def shard(self, item: int, number: int, attempt: int = 0) -> Path:
        retried = f"-retry{attempt}" if attempt else ""
        return self.folder / "shards" / f"{item:05d}{retried}-{number:03d}.tar"

    def metadata_files(self) -> dict[str, Path]:
        """The files to plan, by the names under which the plan records them, in order.

        Inside the folder a name is relative to it, so that a corpus may be moved as a whole.
        Raises UserError when the pattern finds nothing, or not all that is to be fetched is there.
        """
        folder = Path(os.path.abspath(self.folder))
        self._refuse_half_fetched()
        here = [_copied(pattern) if is_url(pattern) else pattern for pattern in self.definition.metadata_patterns]
        patterns = [os.path.join(escape(str(folder)), pattern) for pattern in here]
        found = {Path(os.path.normpath(path)) for pattern in patterns for path in glob(pattern, recursive=True)}
        files = sorted(path for path in found if path.is_file())
        if not files:
            fetched = self.definition.hub or self.definition.urls_to_copy
            way = f"run `data-prep metadata {self.definition.name}`" if fetched else "put the files there"
            raise UserError(
                f"no metadata at {folder / self.definition.metadata_patterns[0]}: {way}, or say in the definition's "
                f"`metadata` where the files with URLs and captions are (source: {self.definition.source})"
            )
        return {str(path.relative_to(folder) if path.is_relative_to(folder) else path): path for path in files}

    def _refuse_half_fetched(self) -> None:
        """Raises UserError where `data-prep metadata` was cut off: rows would be missing without a word."""
        record = METADATA.read(self.folder / "metadata.json") or {"files": {}}
        wanted = set(record.get("wanted", ()))
        if missing := sorted(wanted - record["files"].keys()):
            raise UserError(
                f"{len(missing)} of {len(wanted)} files of metadata are not fetched yet, {missing[0]} for "
                f"one: run `data-prep metadata {self.definition.name}` again, it goes on where it stopped"
            )

    @property
    def uid_list(self) -> Path | None:
        """The .npy file of the uids to keep. Raises UserError when it is not there."""
        if self.definition.uids is None:
            return None
        path = Path(os.path.abspath(self.folder)) / self.definition.uids
        if not path.is_file():
            raise UserError(f"no uid list at {path}: run `data-prep metadata {self.definition.name}`, or put it there")
        return path

    def lock(self, what: str) -> Path:
        return self.folder / "locks" / what

    def with_image_size(self, image_size: int) -> Corpus:
        """The same corpus with another size of images (longest side, pixels)."""
        images = self.definition.images.model_copy(update={"image_size": image_size})
        return replace(self, definition=self.definition.model_copy(update={"images": images}))

    def with_private_hosts(self) -> Corpus:
        """The same corpus, whose URLs may lead to private addresses."""
        fetch = self.definition.fetch.model_copy(update={"allow_private": True})
        return replace(self, definition=self.definition.model_copy(update={"fetch": fetch}))

    def described_differently(self) -> list[str]:
        """`key: stored -> given` for what `corpus.yaml` says otherwise; empty where there is none yet."""
        stored = self.folder / "corpus.yaml"
        if not stored.is_file():
            return []
        return differences(read_definition(stored).model_dump(), self.definition.model_dump())

    def save_definition(self) -> None:
        """Write `corpus.yaml`, the definition in force."""
        content = yaml.safe_dump(self.definition.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        with atomic_open(self.folder / "corpus.yaml", "w") as stream:
            stream.write(content)


def shipped_names() -> list[str]:
    """The corpora that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def open_corpus(name: str, root: Path) -> Corpus:
    """Find a corpus by what the user typed.

    name: a shipped corpus, a YAML definition by its path or by its name in `root` (all live in `root/<their name>`),
    the name of a folder in `root`, or a path to one. A folder's own `corpus.yaml` goes before the other files.
    Raises UserError when there is no such corpus or its definition is not valid.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        definition = read_definition(path)
        return _beside(path.parent, Corpus(root / definition.name, definition))
    if (root / f"{name}.yaml").is_file() and not (root / name / "corpus.yaml").is_file():
        return open_corpus(str(root / f"{name}.yaml"), root)
    for folder in (root / name, path):
        if (folder / "corpus.yaml").is_file():
            return Corpus(folder, read_definition(folder / "corpus.yaml"))
    shipped = SHIPPED / f"{name}.yaml"
    if name in shipped_names():
        return Corpus(root / name, read_definition(shipped))
    raise UserError(
        f"no corpus {name!r}: shipped are {', '.join(shipped_names())}; otherwise give a YAML definition, or "
        f"a folder with a corpus.yaml (looked for {root / name / 'corpus.yaml'} too)"
    )


def _beside(home: Path, corpus: Corpus) -> Corpus:
    """The corpus of a YAML file in `home`: paths that the file gives are relative to it, not to the folder."""
    home, definition = Path(os.path.abspath(home)), corpus.definition
    if home == Path(os.path.abspath(corpus.folder)):
        return corpus
    update: dict[str, object] = {}
    if "metadata" in definition.model_fields_set:
        absolute = tuple(
            pattern if is_url(pattern) else os.path.join(escape(str(home)), pattern)
            for pattern in definition.metadata_patterns
        )
        update["metadata"] = absolute[0] if isinstance(definition.metadata, str) else absolute
    if definition.uids is not None:
        update["uids"] = str(home / definition.uids)
    return replace(corpus, definition=definition.model_copy(update=update))


def _copied(url: str) -> str:
    """Where `data-prep metadata` puts what lies at a URL, or pattern of URLs, in the corpus's folder."""
    return f"metadata/{url.rpartition('/')[2]}"


def read_definition(path: Path) -> CorpusDefinition:
    """A definition from a YAML file; raises UserError with the file, the key and the nearest valid key."""
    return parse(CorpusDefinition, read_yaml(path), where=str(path))
