"""Looking at a journal without touching it: for whoever wants to know what is in it, and whether it is whole.

Works beside a daemon, after one was killed, on a copy, and on a damaged file. Nothing is created, changed or locked
in the journal's folder:

    -wal and -shm are there   a daemon runs or was killed: read with the shared memory opened read-only
    neither, or an empty log  closed in good order: the file alone is everything, and it does not change
    a log without -shm        a copy taken while a daemon ran: read from a temporary copy, which may have an index

Reads are short transactions, so that the log of a daemon that runs can be folded into the file in between; only
SQLite's own check is one long one. Rows that are trimmed meanwhile are not missing.
"""

import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ffstream.errors import ConfigError, FFStreamError, JournalDamaged
from ffstream.journal import schema

NAMED_MAX = 20  # problems that are told one by one; the rest is counted


class Problem(NamedTuple):
    """What is wrong, and with which samples (0, 0 when with none in particular)."""

    what: str
    first_seq: int = 0
    last_seq: int = 0


@dataclass
class Findings:
    """Problems: the first ones by name, all by number."""

    named: list[Problem] = field(default_factory=list)
    count: int = 0
    samples: int = 0

    def add(self, what: str, first_seq: int = 0, last_seq: int = 0) -> None:
        """One more."""
        self.count += 1
        if last_seq:
            self.samples += last_seq - first_seq + 1
        if len(self.named) < NAMED_MAX:
            self.named.append(Problem(what, first_seq, last_seq))


class Gap(NamedTuple):
    """Samples that are missing between others, first and last."""

    first_seq: int
    last_seq: int


@dataclass
class Summary:
    """What is in a journal, without a look at the images."""

    meta: dict[str, Any]
    messages: int = 0
    samples: int = 0
    first_seq: int = 0  # 0 when nothing is held
    last_seq: int = 0
    next_seq: int = 1
    used_bytes: int = 0
    receipts: int = 0
    clients: int = 0
    by_client: Counter[str] = field(default_factory=Counter)
    gaps: list[Gap] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing. Raises ConfigError (no file, no access) or JournalDamaged (no journal)."""
    if not path.is_file():
        raise ConfigError(f"no journal at {path}", hint="--state names a daemon's state folder")
    with _readable(path) as (file, options):
        try:
            connection = sqlite3.connect(
                f"{file.absolute().as_uri()}?{options}", uri=True, isolation_level=None, timeout=10.0
            )
        except schema.UNREADABLE as error:
            raise _unreadable(path, error) from error
        try:
            connection.text_factory = _text
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            yield connection
        except schema.UNREADABLE as error:
            raise _unreadable(path, error) from error
        finally:
            connection.close()


def peek(path: Path) -> dict[str, Any]:
    """What the table meta says; nothing where no journal is, or none that can be read in place."""
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    try:
        if log.exists() and log.stat().st_size and not index.exists():
            return {}  # only a copy could be read, and it may be large
        with opened(path) as connection:
            return dict(connection.execute("SELECT key, value FROM meta"))
    except (OSError, FFStreamError):
        return {}


@contextmanager
def _readable(path: Path) -> Iterator[tuple[Path, str]]:
    """A file that SQLite can open without writing beside it, and how."""
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if log.exists() and index.exists():
        yield path, "mode=ro&readonly_shm=1"
    elif not log.exists() or not log.stat().st_size:
        yield path, "mode=ro&immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="ffstream-") as folder:
            copy = Path(folder) / path.name
            try:
                shutil.copyfile(path, copy)
                shutil.copyfile(log, copy.with_name(log.name))
            except OSError as error:
                raise ConfigError(
                    f"{path} cannot be copied to be looked at: {error}",
                    hint="TMPDIR names a folder with room for it; a copy with its -shm file needs none",
                ) from error
            yield copy, "mode=ro"


def _text(raw: bytes) -> str:
    """A name that is no UTF-8 is still to be shown."""
    return raw.decode(errors="backslashreplace")


def raise_if_not_its_fault(error: Exception) -> None:
    """Raises what says nothing about the journal."""
    if schema.is_not_its_fault(error):
        raise error


def _unreadable(path: Path, error: Exception) -> JournalDamaged | ConfigError:
    if schema.is_not_its_fault(error):
        return ConfigError(f"{path} cannot be read: {error}", hint="may this user read it, and the files beside it?")
    return schema.damaged(path, str(error))


def summarize(connection: sqlite3.Connection) -> Summary:
    """What `ffstream journal stat` tells."""
    summary = Summary(read_meta(connection))
    findings = summary.findings
    check_meta(summary.meta, findings)
    with told(findings, "its size"):
        summary.used_bytes = schema.bytes_used(connection)
    with told(findings, "receipts"):
        (summary.receipts,) = connection.execute("SELECT count(*) FROM receipts").fetchone()
    with told(findings, "clients"):
        (summary.clients,) = connection.execute("SELECT count(*) FROM clients").fetchone()
    with told(findings, "messages"):
        _count(connection, summary)
    stored = summary.meta.get("next_seq")
    summary.next_seq = max(stored if is_number(stored) else 1, summary.last_seq + 1)
    check_end(connection, stored, findings)
    return summary


def _count(connection: sqlite3.Connection, summary: Summary) -> None:
    # The columns before the images: their overflow pages are not read.
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
                summary.findings.add("are there twice", first_seq, summary.last_seq)
            summary.first_seq = summary.first_seq or first_seq
            summary.last_seq = first_seq + count - 1
            summary.messages += 1
            summary.samples += count
            summary.by_client[str(client)] += count  # damaged, it may be anything


def read_meta(connection: sqlite3.Connection) -> dict[str, Any]:
    """The table meta, as far as it can be read."""
    try:
        return dict(connection.execute("SELECT key, value FROM meta"))
    except schema.UNREADABLE as error:
        raise_if_not_its_fault(error)
        return {}


def check_meta(meta: dict[str, Any], findings: Findings) -> None:
    """Finds what is missing in it."""
    since_3 = ("clock_s",) if meta.get("version") == schema.VERSION else ()
    for key in ("version", "inputs", "labels", "next_seq", *since_3):
        if not is_number(meta.get(key)):
            findings.add(f"the table meta has no {key}")
    # What is read here stands in every version alike.
    if is_number(meta.get("version")) and not 1 <= meta["version"] <= schema.VERSION:
        findings.add(f"version is {meta['version']}, this program reads 1 to {schema.VERSION}")


def check_end(connection: sqlite3.Connection, stored: Any, findings: Findings) -> None:
    """Trimming stores the next number and takes rows from the front: rows that are left reach up to it at least."""
    if not is_number(stored):
        return
    if not 0 < stored <= schema.SEQ_MAX:
        findings.add(f"next_seq is {stored}")
        return
    with told(findings, "messages"):
        last = connection.execute(schema.LAST).fetchone()
        if last and is_number(last[0]) and last[0] < stored:
            findings.add("are missing at the end", last[0], stored - 1)


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """One consistent state of the file."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(*schema.UNREADABLE):
            connection.execute("ROLLBACK")


@contextmanager
def told(findings: Findings, what: str) -> Iterator[None]:
    """What SQLite cannot read is a problem among others."""
    try:
        yield
    except schema.UNREADABLE as error:
        raise_if_not_its_fault(error)
        findings.add(f"{what} cannot be read: {error}")


def is_number(value: Any) -> TypeGuard[int]:
    """Whether SQLite gave a whole number."""
    return type(value) is int
