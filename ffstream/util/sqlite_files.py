"""Opens an SQLite file in WAL mode without creating, changing or locking anything in its folder.

-wal and -shm files        a daemon runs or was killed: opened with read-only shared memory
neither, or an empty -wal  closed cleanly: the main file is whole and does not change
-wal without -shm          a copy that was made while a daemon ran: a temporary copy is opened, beside which
                           SQLite can create the -shm file
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ffstream.errors import ConfigError


@contextmanager
def readable(path: Path) -> Iterator[str]:
    """The URI to open the file with. Raises ConfigError if a copy is needed and cannot be made."""
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if log.exists() and index.exists():
        yield f"{path.absolute().as_uri()}?mode=ro&readonly_shm=1"
    elif not log.exists() or not log.stat().st_size:
        yield f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="ffstream-") as folder:
            copy = Path(folder) / path.name
            try:
                shutil.copyfile(path, copy)
                shutil.copyfile(log, copy.with_name(log.name))
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be copied to a temporary folder: {error}",
                    hint="set TMPDIR to a folder with enough room, or copy the file again with its -shm file",
                ) from error
            yield f"{copy.absolute().as_uri()}?mode=ro"
