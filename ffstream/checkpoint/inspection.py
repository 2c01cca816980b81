"""Reads checkpoints without changing them, and without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ffstream.checkpoint import manifest
from ffstream.checkpoint.manifest import MANIFEST, folder_of
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible


class Found(NamedTuple):
    """A checkpoint: its manifest, or why it cannot be used."""

    seq: int
    bytes: int  # of all its files
    manifest: dict[str, Any]  # empty if there is a problem
    problem: CheckpointDamaged | CheckpointIncompatible | None


def inspect(folder: Path, *, thoroughly: bool, seq: int | None = None) -> Iterator[Found]:
    """The checkpoints, newest first, or only the one with that number. `thoroughly`: reads every byte of their
    files."""
    check = manifest.verify if thoroughly else manifest.read
    for each in reversed(manifest.seqs(folder)) if seq is None else [seq]:
        size = _size(folder_of(folder, each))
        try:
            yield Found(each, size, check(folder, each), None)
        except (CheckpointDamaged, CheckpointIncompatible) as problem:
            if (folder_of(folder, each) / MANIFEST).exists():  # otherwise the daemon has just removed it
                yield Found(each, size, {}, problem)


def half_written(folder: Path) -> list[str]:
    """Names of folders without a manifest: being written, or left by a crash."""
    return [each.name for each in manifest.half_written(folder)]


def _size(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue
    return size
