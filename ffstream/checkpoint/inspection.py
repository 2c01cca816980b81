"""Looking at checkpoints without touching them, and without torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ffstream.checkpoint import manifest
from ffstream.checkpoint.manifest import MANIFEST, folder_of
from ffstream.errors import CheckpointDamaged


class Found(NamedTuple):
    """One checkpoint: its manifest, or what is wrong with it."""

    seq: int
    bytes: int  # of its files, whatever they hold
    manifest: dict[str, Any]  # empty when it is damaged
    damage: CheckpointDamaged | None


def look(folder: Path, *, thoroughly: bool, seq: int | None = None) -> Iterator[Found]:
    """Checkpoints, newest first; with a number, that one if it is there. `thoroughly`: every byte of their files."""
    check = manifest.verify if thoroughly else manifest.read
    for each in reversed(manifest.seqs(folder)) if seq is None else [seq]:
        size = _size(folder_of(folder, each))
        try:
            yield Found(each, size, check(folder, each), None)
        except CheckpointDamaged as damage:
            if (folder_of(folder, each) / MANIFEST).exists():  # or it was never there, or the daemon has removed it
                yield Found(each, size, {}, damage)


def half_written(folder: Path) -> list[str]:
    """Names of folders that a write in progress, or one that death cut short, has left without a manifest."""
    return [each.name for each in manifest.half_written(folder)]


def _size(folder: Path) -> int:
    size = 0
    for path in folder.glob("*"):
        try:
            size += path.stat().st_size
        except OSError:
            continue
    return size
