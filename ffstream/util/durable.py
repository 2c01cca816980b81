"""Files and folders that survive power loss, because they are flushed to the disk."""

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
    except PermissionError:  # this user may enter the folder but not read it, such as /home with mode 0711
        os.sync()


def make_folder(folder: Path, mode: int) -> None:
    """Creates a folder and its missing parents so that they survive power loss. Raises OSError."""
    missing = [each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=mode)
    for made in missing:
        fsync_entry(made)


def fsync_tree(folder: Path) -> None:
    """Flushes a folder and everything below it. Raises OSError.

    An earlier process may have died between a write and its flush. What it wrote can be read, but is only in the
    machine's memory, so it must be flushed before anything relies on it.
    """
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (there := os.path.realpath(root)) in seen:  # a symbolic link leads back
            folders.clear()
            continue
        seen.add(there)
        for path in (Path(root, name) for name in files):
            if path.is_file():
                fsync(path)
        fsync(Path(root))
