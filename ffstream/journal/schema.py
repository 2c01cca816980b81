"""The format of a journal: its tables, and when their content is valid.

messages  One row for each accepted message, in sequence order. A row holds the samples first_seq … first_seq+count−1.
          Valid if and only if rows follow one another without a gap, the blobs have the lengths that count and dtype
          determine, and crc is `checksum` of the rest.
receipts  Messages whose row was deleted but whose client may still send them again. crc is that of the deleted row.
clients   For each client (see identity.py), `base`, the lowest message number that it may still send, and `seen`,
          when it last sent something (by the clock of clock.py; 0 if it will not use its name again).
skips     Ranges of samples that are never learned (see skips.py).
          Valid if and only if 0 < first ≤ last < next number.
events    Decisions about learning (see events.py).
origin    The weights that the stream began from, if it began from given weights (see origin.py). At most one row.
probes    Empty, except while a daemon tests whether it can commit again.
meta      `version` of this format; `next_seq`, so that no number is assigned twice when all rows are deleted;
          `inputs` and `labels` of the network; `clock_s` (see clock.py); `closed` (see clean_close.py); during a
          rollback `rollback_to` (see skips.py).

A message is a duplicate if and only if (client, n) is in messages or in receipts.

A change of the tables or of the meaning of their content needs a new VERSION. Journals of other versions are rejected
with an error that names the version, and are not changed.
"""

import sqlite3
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ffstream.errors import JournalDamaged, JournalIncompatible
from ffstream.journal import clock
from ffstream.journal.database import UNREADABLE, damaged, unusable

JOURNAL = "journal.sqlite"  # the file of the journal, in a state folder
VERSION = 4

TABLES = {
    "messages": """(
    first_seq INTEGER PRIMARY KEY,
    count INTEGER NOT NULL,
    client TEXT NOT NULL,
    n INTEGER NOT NULL,
    dtype TEXT NOT NULL,
    crc INTEGER NOT NULL,
    labels BLOB NOT NULL,
    images BLOB NOT NULL
)""",
    "receipts": """(
    client TEXT NOT NULL,
    n INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (client, n)
) WITHOUT ROWID""",
    "clients": "(client TEXT PRIMARY KEY, base INTEGER NOT NULL, seen REAL NOT NULL) WITHOUT ROWID",
    "skips": "(first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL)",
    "events": "(number INTEGER PRIMARY KEY, kind TEXT NOT NULL, after_seq INTEGER NOT NULL)",
    "origin": "(source TEXT NOT NULL, checksum TEXT NOT NULL)",
    "probes": "(content BLOB NOT NULL)",
    "meta": "(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
}
META = ("version", "inputs", "labels", "next_seq", "clock_s", "closed")  # always there

SEQ_MAX = 2**62  # no larger number is ever assigned

# The number after the last sample; no row if there are no messages.
LAST = "SELECT first_seq + count FROM messages ORDER BY first_seq DESC LIMIT 1"


def create(connection: sqlite3.Connection, path: Path, inputs: int, labels: int) -> None:
    """Creates the tables in a new file, or checks that a file has them and is of this network.

    Raises JournalIncompatible for another version or network, JournalDamaged if something is missing.
    """
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            _create(connection, {"version": VERSION, "inputs": inputs, "labels": labels})
            return
        _check(connection, path, tables, {"inputs": inputs, "labels": labels})
        connection.execute("DELETE FROM probes")
    except UNREADABLE as error:
        raise unusable(path, error) from error


def _create(connection: sqlite3.Connection, meta: Mapping[str, int]) -> None:
    first = {**meta, "next_seq": 1, "clock_s": clock.BEGIN_S, "closed": 0}
    tables = " ".join(f"CREATE TABLE {name} {columns};" for name, columns in TABLES.items())
    values = ", ".join(f"('{key}', {value:d})" for key, value in first.items())
    # One transaction, so a table that is missing later has been lost.
    connection.executescript(f"BEGIN IMMEDIATE; {tables} INSERT INTO meta VALUES {values}; COMMIT")


def _check(connection: sqlite3.Connection, path: Path, tables: set[str], network: Mapping[str, int]) -> None:
    if "meta" not in tables:
        raise damaged(path, "the table meta is missing")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    expect_version(meta.get("version"), str(path))
    for key, wanted in {"version": VERSION, **network}.items():
        if key not in meta:
            raise damaged(path, f"{key} is missing in the table meta")
        if meta[key] != wanted:
            raise _incompatible(path, key, meta[key], wanted)
    if lost := TABLES.keys() - tables:
        raise damaged(path, f"the table {min(lost)} is missing")
    if lost := set(META) - meta.keys():
        raise damaged(path, f"{min(lost)} is missing in the table meta")


def expect_network(path: Path, meta: Mapping[str, Any], inputs: int, labels: int) -> None:
    """Raises JournalIncompatible if `meta` says that the journal is of another version or network."""
    expect_version(meta.get("version"), str(path))
    for key, wanted in {"inputs": inputs, "labels": labels}.items():
        if meta.get(key, wanted) != wanted:
            raise _incompatible(path, key, meta[key], wanted)


def expect_version(found: Any, what: str) -> None:
    """Raises JournalIncompatible if `found` is another version."""
    if isinstance(found, int) and found >= 1 and found != VERSION:
        other = "newer ffstream" if found > VERSION else "development version"
        raise JournalIncompatible(
            f"{what} has format version {found}, and this ffstream reads version {VERSION}",
            hint=f"use the {other} that wrote it, or another --state folder",
        )


def _incompatible(path: Path, key: str, found: Any, wanted: int) -> JournalDamaged | JournalIncompatible:
    if not isinstance(found, int) or found < 1:
        return damaged(path, f"{key} is {found!r} in the table meta")
    if key == "inputs":
        return JournalIncompatible(
            f"network.image_shape: its images have {wanted} numbers, those in the journal {path} have {found}",
            hint=f"set a shape of {found} numbers, or use another --state folder for the new network",
        )
    return JournalIncompatible(
        f"network.{key} = {wanted}: the journal {path} was created with network.{key} = {found}",
        hint=f"set network.{key}={found}, or use another --state folder for the new network",
    )


def end_of_samples(connection: sqlite3.Connection) -> int:
    """The number that the next sample gets."""
    last = connection.execute(LAST).fetchone()
    (stored,) = connection.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
    end: int = max(last[0] if last else 1, stored)
    return end


def checksum(first_seq: int, count: int, dtype: str, labels: bytes, images: bytes) -> int:
    """CRC-32 of everything that a reader takes from a row."""
    return zlib.crc32(images, zlib.crc32(labels, zlib.crc32(f"{first_seq} {count} {dtype}".encode())))
