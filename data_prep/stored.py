"""Look into what img2dataset stored: is a tar whole, and is every image one that training can decode?"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # MPO: JPEGs of phones that hold two
MEMBERS = {"jpg", "txt", "json"}


class Damaged(Exception):
    """A downloaded shard contradicts itself, its plan or its record: nothing in it can be trusted."""


class BadImage(Exception):
    """One image that cannot be used. cause: as in outcomes."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Stored(NamedTuple):
    """A sample in a tar of img2dataset. offset: of the image in the tar. metadata: img2dataset's."""

    tar: Path
    offset: int
    image: bytes
    caption: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class ImageFacts:
    """extension: jpg, png or webp, by the bytes. width, height: pixels. sha256: of the bytes, hex."""

    extension: str
    width: int
    height: int
    sha256: str


def stored_samples(tar: Path) -> Iterator[Stored]:
    """Walk a tar of img2dataset; raises Damaged unless it is a sequence of complete samples."""
    try:
        with tarfile.open(tar, "r:") as archive:
            parts: dict[str, tuple[int, bytes]] = {}
            current = ""
            for member in archive:
                key, _, kind = member.name.partition(".")
                if key != current and parts:
                    yield _complete(tar, current, parts)
                    parts = {}
                current = key
                content = archive.extractfile(member)
                if content is None or kind in parts:
                    raise Damaged(f"{tar.name}: unexpected member {member.name}")
                parts[kind] = (member.offset_data, content.read())
            if parts:
                yield _complete(tar, current, parts)
    except (tarfile.TarError, OSError) as error:
        raise Damaged(f"{tar.name} is not a whole tar: {error}") from error


def _complete(tar: Path, key: str, parts: dict[str, tuple[int, bytes]]) -> Stored:
    if parts.keys() != MEMBERS:
        raise Damaged(f"{tar.name}: sample {key} has {sorted(parts)}, not {sorted(MEMBERS)}")
    offset, image = parts["jpg"]
    try:
        return Stored(tar, offset, image, parts["txt"][1].decode(), json.loads(parts["json"][1]))
    except ValueError as error:
        raise Damaged(f"{tar.name}: sample {key} holds a damaged text: {error}") from error


def check_image(content: bytes) -> ImageFacts:
    """Decode every pixel; raises BadImage when that fails or the format is none of jpg, png, webp."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format not in EXTENSIONS:
                raise BadImage("unsupported_format", f"{image.format} image")
            digest = hashlib.sha256(content).hexdigest()
            return ImageFacts(EXTENSIONS[image.format], image.width, image.height, digest)
    except UnidentifiedImageError as error:
        raise BadImage("not_an_image", str(error)) from error
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow's decoders raise
        raise BadImage("truncated" if "truncated" in str(error).lower() else "undecodable", str(error)) from error
