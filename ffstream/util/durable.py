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


def fsync_entry(path: Path) -> None:
    """Makes the name of a file or folder survive power loss. Raises OSError."""
    try:
        fsync(path.absolute().parent)
    except PermissionError:  # a folder that this user may enter, and not read, such as /home with mode 0711
        os.sync()


def make_folder(folder: Path, mode: int) -> None:
    """Makes a folder and those above it that are missing, so that power loss does not take them. Raises OSError."""
    missing = [each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in missing:
        fsync_entry(made)


def fsync_tree(folder: Path) -> None:
    """The same for a folder and everything below it. Raises OSError.

    For what an earlier process left: it may have died between a write and its flush. Whoever goes on from there sees
    what it wrote, and relies on it, although as yet it is in the machine's memory only.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (there := os.path.realpath(root)) in seen:  # a link leads back
            folders.clear()
            continue
        seen.add(there)
        for path in (Path(root, name) for name in files):
            if path.is_file():
                fsync(path)
        fsync(Path(root))
