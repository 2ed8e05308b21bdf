"""Files whose fields have types: whatever somebody or something has done to one, a reader gets what it expects, or a
reason that names the file, the field, what stands there and what to do."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct, ValidationError, convert

from pipeline.errors import UserError
from pipeline.files import parse_yaml, read_lines

T = TypeVar("T")
Json = dict[str, Any]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e10)]
UnixSeconds = Annotated[float, Meta(ge=0, le=1e11)]  # up to the year 5138
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Meta(pattern=r"^[0-9a-f]{40}$")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.=,+-]+$", max_length=255)]  # of a file or folder
DEEPEST = 64  # levels of a document; Python and others recurse over it
_FOUND_CHARACTERS = 60


class Shape(Struct):
    """What the fields of a file are. A number in quotes is none; fields that are not named here may be anything.

    msgspec and not pydantic, whose import takes longer than `neuclip runs`.
    """


@dataclass(frozen=True)
class Kind:
    """One kind of file, JSON or YAML. shape: or a table of such. mend: what to do about one that is damaged."""

    shape: type[Shape] | type[dict[str, Any]]
    mend: str

    def read(self, path: Path) -> Json | None:
        """The object in it; None where there is no file. Raises UserError where it is not of the shape."""
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:  # no file's name: one with a character 0 in it
            raise self.damaged(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
        try:
            value = parse_yaml(content) if path.suffix in (".yaml", ".yml") else json.loads(content)
        except (ValueError, RecursionError) as error:
            kind = "YAML" if path.suffix in (".yaml", ".yml") else "JSON"
            raise self.damaged(path, f"is no {kind}: {_line(error)}") from error
        if problem := self.problem(value):
            raise self.damaged(path, problem)
        return dict(value)

    def needed(self, path: Path) -> Json:
        """The object in it. Raises UserError also where there is no file."""
        record = self.read(path)
        if record is None:
            raise self.damaged(path, "is missing")
        return record

    def whole(self, path: Path) -> Json | None:
        """The object in it; None also where it is damaged: for whoever makes it again."""
        try:
            return self.read(path)
        except UserError:
            return None

    def lines(self, path: Path) -> list[Json]:
        """Of a file of lines those that are of the shape, none where there is no file. Others are passed over."""
        return [line for line in read_lines(path) if not self.problem(line)]

    def problem(self, value: Any) -> str:
        """What is wrong with it; empty where nothing is."""
        if not isinstance(value, dict):
            return f"should be an object with fields, found {_found(value)}"
        if problem := _odd(value, DEEPEST):
            return problem
        try:
            convert(value, self.shape)
        except ValidationError as error:
            return _told(str(error), value)
        except UnicodeError:  # msgspec cannot say that half a character is no number
            return self.problem(_legible(value))
        return ""

    def damaged(self, path: Path, problem: str) -> UserError:
        """Says what is wrong with a file of this kind, and what to do about it."""
        return UserError(f"{path}: {problem}. {self.mend}")


def filled(cls: type[T], record: Json) -> T:
    """A dataclass with the fields of a file; what else the file says is of another version."""
    return cls(**{field.name: record[field.name] for field in fields(cls)})  # type: ignore[arg-type]


class Reader:
    """Reads for whom can go on without a damaged file, and notes what is wrong with those: in `problems`, once each."""

    def __init__(self) -> None:
        self._problems: dict[str, None] = {}

    def __call__(self, kind: Kind, path: Path) -> Json | None:
        try:
            return kind.read(path)
        except UserError as error:
            self._problems[str(error)] = None
            return None

    @property
    def problems(self) -> list[str]:
        return list(self._problems)


def _odd(value: Any, deepest: int, place: str = "") -> str:
    """What no program but Python's own reads, wherever in a document; empty where there is nothing of it."""
    if isinstance(value, dict | list):
        if deepest == 0:
            return f"{place[:_FOUND_CHARACTERS]}… is nested more than {DEEPEST} levels deep"
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in inner:
            if isinstance(value, dict) and not isinstance(key, str):
                return f"the key {_found(key)} {f'of {place} ' if place else ''}should be a text"
            if problem := _odd(below, deepest - 1, f"{place}.{key}" if place else str(key)):
                return problem
    elif isinstance(value, int) and abs(value) >= 2**63:
        return f"{place} should be a number of at most 64 bits, found {_found(value)}"
    elif not isinstance(value, str | int | float | None):
        return f"{place} should be a text or a number, found {_found(value)}"
    return ""


def _legible(value: Any) -> Any:
    r"""A document in which half a character is written out, as \udcff."""
    if isinstance(value, dict):
        return {_legible(key): _legible(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_legible(inner) for inner in value]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _told(error: str, document: Any) -> str:
    """``Expected `int`, got `str` - at `$.train.steps``` with the field first, and with what stands there."""
    words, _, place = error.partition(" - at `$")
    if missing := re.search(r"missing required field `(\w+)`", words):
        return f"{place.strip('.`')}{'.' if place else ''}{missing[1]} is missing"
    keys = re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", place)
    for name, number in keys:
        if number == "...":  # msgspec does not tell which
            return f"a value in {place.strip('.`').partition('[...]')[0] or 'it'}: {_lower(words)}"
        document = document[name or int(number)]
    return f"{place.strip('.`')}: {_lower(words)}, found {_found(document)}"


def _lower(words: str) -> str:
    return f"{words[:1].lower()}{words[1:]}"


def _found(value: Any) -> str:
    text = {type(None): "nothing (null)", dict: "an object", list: "a list"}.get(type(value)) or repr(value)
    return text if len(text) <= _FOUND_CHARACTERS else f"{text[:_FOUND_CHARACTERS]}…"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[: 2 * _FOUND_CHARACTERS]
