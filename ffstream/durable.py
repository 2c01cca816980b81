"""What power loss cannot take: files and folders that were flushed to the disk."""

import os
from pathlib import Path


def fsync(path: Path) -> None:
    """Makes a file's contents, or a folder's entries, survive power loss. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """The same for a folder and everything below it. Raises OSError.

    For what an earlier process left: it may have died between a write and its flush. Whoever goes on from there sees
    what it wrote, and relies on it, although as yet it is in the machine's memory only.
    """
    for root, _, files in os.walk(folder):
        for path in (Path(root, name) for name in files):
            if path.is_file():
                fsync(path)
        fsync(Path(root))
