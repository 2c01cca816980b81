"""Reads a journal without changing it: what it holds, and whether it is whole.

This works while a daemon runs, after one was killed, on a copy and on a damaged file. It creates, changes and locks
nothing in the journal's folder: see `util.sqlite_files`.

Reads are short transactions, so that a running daemon can fold its log in between. Only SQLite's integrity check is
one long transaction. Rows that are trimmed during a read do not count as missing.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ffstream.errors import ConfigError, FFStreamError, JournalDamaged
from ffstream.journal import database, schema
from ffstream.journal.origin import Origin
from ffstream.util.sqlite_files import readable

NAMED_MAX = 20  # problems that are listed; the others are only counted


class Problem(NamedTuple):
    """What is wrong, and with which samples (0, 0 if not with particular samples)."""

    what: str
    first_seq: int = 0
    last_seq: int = 0


@dataclass
class Findings:
    """Problems that were found: the first ones in a list, and how many there are."""

    named: list[Problem] = field(default_factory=list)
    count: int = 0
    samples: int = 0

    def add(self, what: str, first_seq: int = 0, last_seq: int = 0) -> None:
        """Adds a problem."""
        self.count += 1
        if last_seq:
            self.samples += last_seq - first_seq + 1
        if len(self.named) < NAMED_MAX:
            self.named.append(Problem(what, first_seq, last_seq))


class Gap(NamedTuple):
    """Samples that are missing between others: the first and the last."""

    first_seq: int
    last_seq: int


@dataclass
class Summary:
    """What a journal holds. The images are not read."""

    meta: dict[str, Any]
    messages: int = 0
    samples: int = 0
    first_seq: int = 0  # 0 if there are no samples
    last_seq: int = 0
    next_seq: int = 1
    used_bytes: int = 0
    receipts: int = 0
    clients: int = 0
    origin: Origin | None = None
    by_client: Counter[str] = field(default_factory=Counter)
    gaps: list[Gap] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing. Raises ConfigError (no file, no access) or JournalDamaged."""
    if not path.is_file():
        raise ConfigError(f"no journal at {path}", hint="--state must name the state folder of a daemon")
    with readable(path) as uri:
        try:
            connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
        except database.UNREADABLE as error:
            raise _unreadable(path, error) from error
        try:
            connection.text_factory = _text
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield connection
        except database.UNREADABLE as error:
            raise _unreadable(path, error) from error
        finally:
            connection.close()


def peek(path: Path) -> dict[str, Any]:
    """The table meta; empty if there is no journal, or none that can be read without a temporary copy."""
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    try:
        if log.exists() and log.stat().st_size and not index.exists():
            return {}  # needs a temporary copy, which may be large
        with opened(path) as connection:
            return dict(connection.execute("SELECT key, value FROM meta"))
    except (OSError, FFStreamError):
        return {}


def _text(raw: bytes) -> str:
    """Decodes text; bytes that are not UTF-8 are escaped, so that damaged names can be shown."""
    return raw.decode(errors="backslashreplace")


def raise_if_environment_error(error: Exception) -> None:
    """Raises an error again that says nothing about the journal's content."""
    if database.is_environment_error(error):
        raise error


def _unreadable(path: Path, error: Exception) -> JournalDamaged | ConfigError:
    if database.is_environment_error(error):
        return ConfigError(
            f"{path} cannot be read: {error}", hint="check that this user may read it and the files beside it"
        )
    return database.damaged(path, str(error))


def summarize(connection: sqlite3.Connection) -> Summary:
    """What `ffstream journal stat` shows."""
    summary = Summary(read_meta(connection))
    findings = summary.findings
    check_meta(summary.meta, findings)
    with recorded(findings, "its size"):
        summary.used_bytes = database.bytes_used(connection)
    with recorded(findings, "receipts"):
        (summary.receipts,) = connection.execute("SELECT count(*) FROM receipts").fetchone()
    with recorded(findings, "clients"):
        (summary.clients,) = connection.execute("SELECT count(*) FROM clients").fetchone()
    with recorded(findings, "origin"):
        summary.origin = _origin(connection)
    with recorded(findings, "messages"):
        _count(connection, summary)
    stored = summary.meta.get("next_seq")
    summary.next_seq = max(stored if is_number(stored) else 1, summary.last_seq + 1)
    check_end(connection, stored, findings)
    return summary


def _origin(connection: sqlite3.Connection) -> Origin | None:
    row = connection.execute("SELECT source, checksum FROM origin").fetchone()
    return Origin(*map(str, row)) if row else None


def _count(connection: sqlite3.Connection, summary: Summary) -> None:
    # Only columns before the images are read, so that their overflow pages are not.
    with reading(connection):
        for first_seq, count, client in connection.execute(
            "SELECT first_seq, count, client FROM messages ORDER BY first_seq"
        ):
            if not is_number(count) or not 0 < count < schema.SEQ_MAX:
                summary.findings.add("are in a message without a count", first_seq, first_seq)
                continue
            if summary.messages and first_seq > summary.last_seq + 1:
                gap = Gap(summary.last_seq + 1, first_seq - 1)
                summary.findings.add("are missing", *gap)
                if len(summary.gaps) < NAMED_MAX:
                    summary.gaps.append(gap)
            elif summary.messages and first_seq <= summary.last_seq:
                summary.findings.add("are stored twice", first_seq, summary.last_seq)
            summary.first_seq = summary.first_seq or first_seq
            summary.last_seq = first_seq + count - 1
            summary.messages += 1
            summary.samples += count
            summary.by_client[str(client)] += count  # in a damaged row, it may have any type


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """The table meta, as far as it can be read. Raises JournalIncompatible for a journal of another version."""
    try:
        meta = dict(connection.execute("SELECT key, value FROM meta"))
    except database.UNREADABLE as error:
        raise_if_environment_error(error)
        return {}
    schema.expect_version(meta.get("version"), "the journal")
    return meta


def check_meta(meta: dict[str, Any], findings: Findings) -> None:
    """Adds what is missing in the table meta to the findings."""
    for key in schema.META:
        if not is_number(meta.get(key)):
            findings.add(f"the table meta has no {key}")


def check_end(connection: sqlite3.Connection, stored: Any, findings: Findings) -> None:
    """Adds samples that are missing at the end. Trimming stores the next number, and the remaining rows must reach
    it."""
    if not is_number(stored):
        return
    if not 0 < stored <= schema.SEQ_MAX:
        findings.add(f"next_seq is {stored}")
        return
    with recorded(findings, "messages"):
        last = connection.execute(schema.LAST).fetchone()
        if last and is_number(last[0]) and last[0] < stored:
            findings.add("are missing at the end", last[0], stored - 1)


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """A read transaction: the block sees one consistent state of the file."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(*database.UNREADABLE):
            connection.execute("ROLLBACK")


@contextmanager
def recorded(findings: Findings, what: str) -> Iterator[None]:
    """Adds it to the findings if SQLite cannot read something in the block."""
    try:
        yield
    except database.UNREADABLE as error:
        raise_if_environment_error(error)
        findings.add(f"{what} cannot be read: {error}")


def is_number(value: Any) -> TypeGuard[int]:
    """Whether a value that SQLite returned is a whole number."""
    return type(value) is int
