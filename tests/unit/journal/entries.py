"""Messages to store, and copies of a journal as a crash leaves it."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from ffstream.journal.journal import Entry

INPUTS, LABELS = 4, 10


def entry(client: str = "a", n: int = 1, *, base: int | None = None, samples: int = 1, size: int = INPUTS) -> Entry:
    """A message whose bytes depend on its number. `base` defaults to `n`, so all earlier messages are resolved."""
    labels = bytes(byte for index in range(samples) for byte in ((n + index) % LABELS, 0))
    images = bytes((n * 7 + index) % 251 for index in range(samples * size))
    return Entry(client, n, n if base is None else base, samples, "uint8", labels, images)


def stored(path: Path) -> list[tuple[Any, ...]]:
    """Everything in the file except times, to compare two journals."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)  # does not fold the log
    tables = ("messages", "receipts", "meta")
    rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
    rows += connection.execute("SELECT client, base FROM clients ORDER BY 1").fetchall()
    connection.close()
    return rows


def crash_image(journal: Path, folder: Path) -> Path:
    """A copy of the journal's files as they are now: what is left after a crash or power loss."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        source = journal.with_name(journal.name + suffix)
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder / journal.name
