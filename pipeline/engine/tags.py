"""Checkpoints that prove themselves (contract 3).

A tag is written under a temporary name, fsynced and renamed; then `COMPLETE`, with every file's size and sha256, is
written into it; then `latest` is replaced. Only complete tags are ever resumed; one that does not match its
`COMPLETE` is set aside (`damaged-step-...`) for the one before it, loudly.

    checkpoints/step-00000300/   ZeRO files of DeepSpeed, objective.pt, rng-00000.pt ..., trainer.json, COMPLETE
        objective-shards/        the objective's tables per sample, one file per rank: log_u.0.npy, log_u.5000.npy ...
        weight-average/          the parts of train.ema_decay's average, one file per rank
    checkpoints/latest           the newest complete tag's name
    checkpoints/.step-00000300.tmp/   being written; part-00000.json: the files of rank 0 are whole, and their digests
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import run_files
from pipeline.errors import UserError
from pipeline.files import atomic_open, fsync_folder, read_json, sha256_file, write_json

log = logging.getLogger(__name__)
COMPLETE = "COMPLETE"


def tag_of(step: int) -> str:
    """The name of the tag that is saved after `step` updates."""
    return f"step-{step:08d}"


def step_of(tag: str) -> int:
    """The inverse of `tag_of`."""
    return int(tag.removeprefix("step-"))


def temporary_folder(folder: Path, tag: str) -> Path:
    """Where `tag` is written until it is whole."""
    return folder / f".{tag}.tmp"


def seal_part(temporary: Path, rank: int, names: list[str]) -> None:
    """Make one rank's files durable, then say so with their digests. names: paths within the tag."""
    files = {name: _made_durable(temporary / name) for name in names}
    for folder in {(temporary / name).parent for name in names}:
        fsync_folder(folder)
    write_json(_part(temporary, rank), files)


def is_sealed(temporary: Path, ranks: int) -> bool:
    """Whether every rank has sealed its part."""
    return all(_part(temporary, rank).is_file() for rank in range(ranks))


def publish(folder: Path, tag: str, ranks: int) -> None:
    """Turn the sealed parts into the complete tag, and point `latest` to it."""
    temporary, final = temporary_folder(folder, tag), folder / tag
    files: dict[str, Any] = {}
    for rank in range(ranks):
        part = _part(temporary, rank)
        files.update(read_json(part))
        part.unlink()
    for path in temporary.rglob("*"):  # what DeepSpeed has put there by itself, as from NVMe
        if path.is_file() and str(path.relative_to(temporary)) not in files:
            files[str(path.relative_to(temporary))] = _made_durable(path)
    fsync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)  # an incomplete tag of the same name
    temporary.rename(final)
    fsync_folder(folder)
    write_json(final / COMPLETE, {"files": dict(sorted(files.items()))})
    with atomic_open(folder / "latest", "w") as stream:
        stream.write(tag)


def discard(folder: Path, tag: str) -> None:
    """Remove what is there of a tag that did not become complete."""
    shutil.rmtree(temporary_folder(folder, tag), ignore_errors=True)
    with suppress(OSError):  # the disk is not well
        if not (folder / tag / COMPLETE).exists():
            shutil.rmtree(folder / tag)


def remove(folder: Path, tag: str) -> None:
    """Remove a complete tag: no longer complete before it is no longer whole."""
    (folder / tag / COMPLETE).unlink()
    shutil.rmtree(folder / tag)


def complete_tags(folder: Path) -> list[str]:
    """Tags that carry COMPLETE, oldest first."""
    return sorted(path.parent.name for path in folder.glob(f"step-*/{COMPLETE}"))


def is_complete(tag_folder: Path) -> bool:
    """Whether the tag carries COMPLETE."""
    return (tag_folder / COMPLETE).is_file()


def find_damage(tag_folder: Path) -> str | None:
    """What contradicts the tag's COMPLETE, in words; None when it is whole."""
    try:
        complete = run_files.COMPLETE.read(tag_folder / COMPLETE)
    except UserError as error:
        return str(error)
    if complete is None:
        return f"{COMPLETE} is gone"
    for name, expected in complete["files"].items():
        path = tag_folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if sha256_file(path) != expected["sha256"]:
            return f"{name} does not match its sha256"
    return None


def newest_whole(folder: Path) -> str | None:
    """The newest tag that is whole. Saves that were killed are removed, damaged tags set aside.

    Raises UserError when every tag is damaged.
    """
    tags = complete_tags(folder)
    for leftover in [*folder.glob(".step-*.tmp"), *folder.glob(".converted-*"), *folder.glob("step-*")]:
        if leftover.name not in tags:
            shutil.rmtree(leftover)
    for tag in reversed(tags):
        problem = find_damage(folder / tag)
        if problem is None:
            return tag
        log.warning("CHECKPOINT DAMAGED: %s: %s. Falling back to the one before it.", folder / tag, problem)
        aside = folder / f"damaged-{tag}"
        shutil.rmtree(aside, ignore_errors=True)
        (folder / tag).rename(aside)
    if list(folder.glob("damaged-step-*")):
        raise UserError(
            f"every checkpoint in {folder} is damaged (see damaged-step-*): restore one from a copy, or "
            "remove the folder to start over"
        )
    return None


def _made_durable(path: Path) -> dict[str, Any]:
    """What COMPLETE says of a file, once that is on the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _part(temporary: Path, rank: int) -> Path:
    return temporary / f"part-{rank:05d}.json"
