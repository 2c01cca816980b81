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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ffstream.errors import ConfigError, JournalDamaged, ProtocolError
from ffstream.journal import schema
from ffstream.wire.codec import ImageChecker
from ffstream.wire.messages import Samples

_NAMED_MAX = 20  # problems that are told one by one; the rest is counted
_ROWS = 256  # of a transaction
_TICK = 100_000  # steps of SQLite's machine between two signs of life

OnProgress = Callable[[int], None]


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
        if len(self.named) < _NAMED_MAX:
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


class _Row(NamedTuple):
    first_seq: int
    samples: int
    client: str
    n: int
    dtype: str
    crc: int
    labels: bytes
    images: bytes


_SELECT = (
    "SELECT first_seq, count, client, n, dtype, crc, labels, images FROM messages"
    " WHERE first_seq > ? ORDER BY first_seq"
)


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


def _raise_if_not_its_fault(error: Exception) -> None:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_ITS_FAULT:
        raise error


def _unreadable(path: Path, error: Exception) -> JournalDamaged | ConfigError:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_ITS_FAULT:
        return ConfigError(f"{path} cannot be read: {error}", hint="may this user read it, and the files beside it?")
    return schema.damaged(path, str(error))


_NOT_ITS_FAULT = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,  # of the folder for temporary files
    sqlite3.SQLITE_NOMEM,
}


def summarize(connection: sqlite3.Connection) -> Summary:
    """What `ffstream journal stat` tells."""
    summary = Summary(_meta(connection))
    findings = summary.findings
    _check_meta(summary.meta, findings)
    with _told(findings, "its size"):
        summary.used_bytes = schema.bytes_used(connection)
    with _told(findings, "receipts"):
        (summary.receipts,) = connection.execute("SELECT count(*) FROM receipts").fetchone()
    with _told(findings, "clients"):
        (summary.clients,) = connection.execute("SELECT count(*) FROM clients").fetchone()
    with _told(findings, "messages"):
        _count(connection, summary)
    stored = summary.meta.get("next_seq")
    summary.next_seq = max(stored if _is_number(stored) else 1, summary.last_seq + 1)
    _check_end(connection, stored, findings)
    return summary


def _count(connection: sqlite3.Connection, summary: Summary) -> None:
    # The columns before the images: their overflow pages are not read.
    with _reading(connection):
        for first_seq, count, client in connection.execute(
            "SELECT first_seq, count, client FROM messages ORDER BY first_seq"
        ):
            if not _is_number(count) or not 0 < count < schema.SEQ_MAX:
                summary.findings.add("are in a message without a count", first_seq, first_seq)
                continue
            if summary.messages and first_seq > summary.last_seq + 1:
                gap = Gap(summary.last_seq + 1, first_seq - 1)
                summary.findings.add("are missing", *gap)
                if len(summary.gaps) < _NAMED_MAX:
                    summary.gaps.append(gap)
            elif summary.messages and first_seq <= summary.last_seq:
                summary.findings.add("are there twice", first_seq, summary.last_seq)
            summary.first_seq = summary.first_seq or first_seq
            summary.last_seq = first_seq + count - 1
            summary.messages += 1
            summary.samples += count
            summary.by_client[client] += count


class Verification:
    """One look at every byte. `run` once; `findings` says what is wrong, `messages` and `samples` what was read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.findings = Findings()
        self.messages = 0
        self.samples = 0
        self.first_seq = 0
        self.last_seq = 0
        self._at = 0  # the last row looked at
        self._expected: int | None = None  # where the next row begins, if that can be said
        self._db = connection
        self._meta = _meta(connection)
        self._checker = None
        inputs, labels = self._meta.get("inputs"), self._meta.get("labels")
        if _is_number(inputs) and _is_number(labels):
            self._checker = ImageChecker(inputs, labels, schema.SEQ_MAX)

    def held(self) -> int:
        """About how many samples there are to look at."""
        try:
            first, last = self._db.execute("SELECT min(first_seq), max(first_seq) FROM messages").fetchone()
        except schema.UNREADABLE:
            return 0
        return int(last - first + 1) if _is_number(first) and _is_number(last) else 0

    def run(self, on_samples: OnProgress = lambda samples: None, on_tick: Callable[[], None] = lambda: None) -> None:
        """`on_samples` is told how many have been looked at, `on_tick` that something is going on."""
        self._db.set_progress_handler(on_tick, _TICK)
        try:
            _check_meta(self._meta, self.findings)
            self._check_rows(on_samples)
            self._check_numbers()
            self._check_receipts()
            _check_end(self._db, self._meta.get("next_seq"), self.findings)
            self._check_file()
        finally:
            self._db.set_progress_handler(None, 0)

    def _check_rows(self, on_samples: OnProgress) -> None:
        beyond, step = 0, 1  # the last row looked at; what is skipped when the next one cannot be read
        while True:
            try:
                with _reading(self._db):
                    beyond, more = self._check_some(beyond)
            except schema.UNREADABLE as error:
                _raise_if_not_its_fault(error)
                # What lies beyond a bad page can still be looked at: it is searched for in growing steps.
                beyond = max(beyond, self._at)
                if step == 1:
                    self.findings.add(f"cannot be read: {error}", beyond + 1, beyond + 1)
                self._expected = None
                if beyond >= self._end():
                    return
                beyond, step = beyond + step, 2 * step
                continue
            step = 1
            on_samples(self.samples)
            if not more:
                return

    def _end(self) -> int:
        with suppress(*schema.UNREADABLE):
            (last,) = self._db.execute("SELECT max(first_seq) FROM messages").fetchone()
            if _is_number(last):
                return int(last)
        return self._at

    def _check_some(self, beyond: int) -> tuple[int, bool]:
        """Looks at the next rows, in one transaction. Returns the last one, and whether there may be more."""
        (lowest,) = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()
        rows = self._db.execute(_SELECT, (beyond,))
        seen = 0
        for values in islice(rows, _ROWS):
            row = _Row(*values)
            if not _is_number(row.first_seq) or row.first_seq <= beyond:  # the tree of pages leads back
                raise sqlite3.DatabaseError("rows are out of order")
            self._check_place(row, trimmed=row.first_seq == lowest)
            self._check_row(row)
            beyond = self._at = row.first_seq
            seen += 1
        return beyond, seen == _ROWS

    def _check_place(self, row: _Row, *, trimmed: bool) -> None:
        self.first_seq = self.first_seq or row.first_seq
        # What was trimmed since the last transaction is not missing.
        if self._expected is None or trimmed:
            return
        if row.first_seq > self._expected:
            self.findings.add("are missing", self._expected, row.first_seq - 1)
        elif row.first_seq < self._expected:
            self.findings.add("are there twice", row.first_seq, self._expected - 1)

    def _check_row(self, row: _Row) -> None:
        what = self._wrong_with(row)
        count = row.samples if _is_number(row.samples) and 0 < row.samples < schema.SEQ_MAX else 1
        self.messages += 1
        self.samples += count
        self.last_seq = row.first_seq + count - 1
        self._expected = None if what else self.last_seq + 1  # a row that is damaged may have any count
        if what:
            self.findings.add(what, row.first_seq, self.last_seq)

    def _wrong_with(self, row: _Row) -> str:
        try:
            if schema.checksum(row.first_seq, row.samples, row.dtype, row.labels, row.images) != row.crc:
                return "have a wrong checksum"
            if row.samples < 1 or row.n < 1:
                return "are in a message without a count or a number"
            if self._checker is not None:
                header = Samples.model_construct(
                    client=row.client,
                    n=row.n,
                    base=row.n,
                    count=row.samples,
                    dtype=row.dtype,
                    shape=[self._checker.inputs],
                    labels=row.labels,
                )
                self._checker.check_samples(header, row.images)
        except ProtocolError as error:
            return f"are not what was accepted: {error.message}"
        except (TypeError, ValueError) as error:
            return f"are of a wrong type: {error}"
        return ""

    def _check_numbers(self) -> None:
        """A message is stored once."""
        with _told(self.findings, "message numbers"), _reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, max(first_seq) FROM messages GROUP BY client, n HAVING count(*) > 1"
            ):
                self.findings.add(f"message {n} of {client!r} is stored twice", first_seq, first_seq)
        with _told(self.findings, "receipts"), _reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, messages.first_seq FROM messages JOIN receipts USING (client, n)"
            ):
                self.findings.add(f"message {n} of {client!r} is stored and has a receipt", first_seq, first_seq)

    def _check_receipts(self) -> None:
        with _told(self.findings, "receipts"), _reading(self._db):
            lowest = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()[0]
            stored = self._meta.get("next_seq")
            end = lowest or (stored if _is_number(stored) else schema.SEQ_MAX)
            for client, n, first_seq, count in self._db.execute("SELECT client, n, first_seq, count FROM receipts"):
                if not all(map(_is_number, (n, first_seq, count))) or not 0 < first_seq <= end - count:
                    self.findings.add(f"the receipt of message {n} of {client!r} names samples it cannot have")

    def _check_file(self) -> None:
        with _told(self.findings, "the file"), _reading(self._db):
            for (line,) in self._db.execute(f"PRAGMA integrity_check({_NAMED_MAX})"):
                if line != "ok":
                    self.findings.add(f"SQLite: {line}")


def _meta(connection: sqlite3.Connection) -> dict[str, Any]:
    try:
        return dict(connection.execute("SELECT key, value FROM meta"))
    except schema.UNREADABLE as error:
        _raise_if_not_its_fault(error)
        return {}


def _check_meta(meta: dict[str, Any], findings: Findings) -> None:
    for key in ("version", "inputs", "labels", "next_seq"):
        if not _is_number(meta.get(key)):
            findings.add(f"the table meta has no {key}")
    if _is_number(meta.get("version")) and meta["version"] != schema.VERSION:
        findings.add(f"version is {meta['version']}, this program reads {schema.VERSION}")


def _check_end(connection: sqlite3.Connection, stored: Any, findings: Findings) -> None:
    """Trimming stores the next number and takes rows from the front: rows that are left reach up to it at least."""
    if not _is_number(stored):
        return
    if not 0 < stored <= schema.SEQ_MAX:
        findings.add(f"next_seq is {stored}")
        return
    with _told(findings, "messages"):
        last = connection.execute(schema.LAST).fetchone()
        if last and _is_number(last[0]) and last[0] < stored:
            findings.add("are missing at the end", last[0], stored - 1)


@contextmanager
def _reading(connection: sqlite3.Connection) -> Iterator[None]:
    """One consistent state of the file."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(*schema.UNREADABLE):
            connection.execute("ROLLBACK")


@contextmanager
def _told(findings: Findings, what: str) -> Iterator[None]:
    """What SQLite cannot read is a problem among others."""
    try:
        yield
    except schema.UNREADABLE as error:
        _raise_if_not_its_fault(error)
        findings.add(f"{what} cannot be read: {error}")


def _is_number(value: Any) -> TypeGuard[int]:
    return type(value) is int
