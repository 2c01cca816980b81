"""Messages to store, and a picture of a journal as a crash leaves it."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from ffstream.journal.journal import Entry
from ffstream.journal.schema import checksum

INPUTS, LABELS = 4, 10

VERSION_1 = """
PRAGMA page_size = 8192;
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE messages (
    first_seq INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    client TEXT NOT NULL,
    n INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    crc INTEGER NOT NULL,
    labels BLOB NOT NULL,
    images BLOB NOT NULL
);
CREATE TABLE receipts (
    client TEXT NOT NULL, n INTEGER NOT NULL, first_seq INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (client, n)
) WITHOUT ROWID;
CREATE TABLE clients (
    client TEXT PRIMARY KEY, base INTEGER NOT NULL, seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE skips (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


def entry(client: str = "a", n: int = 1, *, base: int | None = None, samples: int = 1, size: int = INPUTS) -> Entry:
    """A message whose bytes tell which one it is. `base` is `n` unless given: all before it is answered."""
    labels = bytes(byte for index in range(samples) for byte in ((n + index) % LABELS, 0))
    images = bytes((n * 7 + index) % 251 for index in range(samples * size))
    return Entry(client, n, n if base is None else base, samples, "uint8", labels, images)


def write_version_1(path: Path) -> None:
    """A journal as version 1 left it: of client a's messages 1, 2 and 3 the first is trimmed."""
    connection = sqlite3.connect(path)
    meta = {"version": 1, "inputs": INPUTS, "labels": LABELS, "next_seq": 4}
    connection.executescript(VERSION_1)
    connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    connection.execute("INSERT INTO clients VALUES ('a', 1, 0.0)")
    connection.execute("INSERT INTO receipts VALUES ('a', 1, 1, 1)")
    for n in (2, 3):
        client, _, _, count, dtype, labels, images = entry("a", n)
        crc = checksum(n, count, dtype, labels, images)
        row = (n, count, client, n, dtype, crc, labels, images)
        connection.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    connection.close()


def write_version_2(path: Path, seen: dict[str, float]) -> None:
    """A journal as version 2 left it: client a's messages 2 and 3, and clients without rows, seen at times of day."""
    write_version_1(path)
    connection = sqlite3.connect(path)
    connection.executescript(
        "ALTER TABLE receipts ADD COLUMN crc INTEGER; UPDATE meta SET value = 2 WHERE key = 'version';"
        "DELETE FROM receipts; DELETE FROM clients"
    )
    connection.executemany("INSERT INTO clients VALUES (?, 1, ?)", seen.items())
    connection.commit()
    connection.close()


def stored(path: Path) -> list[tuple[Any, ...]]:
    """Everything in the file but the times, for comparison."""
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)  # does not fold the log
    tables = ("messages", "receipts", "meta")
    rows = [row for table in tables for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
    rows += connection.execute("SELECT client, base FROM clients ORDER BY 1").fetchall()
    connection.close()
    return rows


def crash_image(journal: Path, folder: Path) -> Path:
    """The journal's files as they are on disk now: what a machine that lost its power would find."""
    folder.mkdir()
    for suffix in ("", "-wal"):
        source = journal.with_name(journal.name + suffix)
        if source.exists():
            shutil.copy(source, folder / source.name)
    return folder / journal.name
