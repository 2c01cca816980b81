"""Checks every byte of a journal. `schema.py` says what makes a journal valid.

Rows are read a few hundred at a time, so that memory use stays small and a running daemon can trim rows and fold its
log meanwhile.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import JournalDamaged, ProtocolError
from ffstream.journal import database, events, origin, schema, skips
from ffstream.journal.identity import describe, is_nameless
from ffstream.journal.inspection import (
    NAMED_MAX,
    Findings,
    check_end,
    check_meta,
    is_number,
    raise_if_environment_error,
    read_meta,
    reading,
    recorded,
)
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import Samples

_ROWS = 256  # read in one transaction
_TICK = 100_000  # virtual machine instructions of SQLite between two calls of `on_tick`

OnProgress = Callable[[int], None]


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


class Verification:
    """Reads every byte. Call `run` once; then `findings` says what is wrong, `messages` and `samples` what was
    read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.findings = Findings()
        self.messages = 0
        self.samples = 0
        self.first_seq = 0
        self.last_seq = 0
        self._at = 0  # first_seq of the last row that was read
        self._expected: int | None = None  # first_seq of the next row, if it is known
        self._db = connection
        self._meta = read_meta(connection)
        self._checker = None
        inputs, labels = self._meta.get("inputs"), self._meta.get("labels")
        if is_number(inputs) and is_number(labels):
            self._checker = ImageChecker([inputs], labels, schema.SEQ_MAX, unlabelled=True)

    def estimate(self) -> int:
        """About how many samples the journal holds."""
        try:
            first, last = self._db.execute("SELECT min(first_seq), max(first_seq) FROM messages").fetchone()
        except database.UNREADABLE:
            return 0
        return int(last - first + 1) if is_number(first) and is_number(last) else 0

    def run(self, on_samples: OnProgress = lambda samples: None, on_tick: Callable[[], None] = lambda: None) -> None:
        """Calls `on_samples` with the number of samples read so far, and `on_tick` regularly while SQLite works."""
        self._db.set_progress_handler(on_tick, _TICK)
        try:
            check_meta(self._meta, self.findings)
            self._check_rows(on_samples)
            self._check_numbers()
            self._check_receipts()
            check_end(self._db, self._meta.get("next_seq"), self.findings)
            self._check_decisions()
            self._check_file()
        finally:
            self._db.set_progress_handler(None, 0)

    def _check_rows(self, on_samples: OnProgress) -> None:
        beyond, step = 0, 1  # the last row read; how far to jump ahead if the next one cannot be read
        while True:
            try:
                with reading(self._db):
                    beyond, more = self._check_next(beyond)
            except database.UNREADABLE as error:
                raise_if_environment_error(error)
                # Rows after a damaged page can still be read. They are searched for in growing steps.
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
        with suppress(*database.UNREADABLE):
            (last,) = self._db.execute("SELECT max(first_seq) FROM messages").fetchone()
            if is_number(last):
                return int(last)
        return self._at

    def _check_next(self, beyond: int) -> tuple[int, bool]:
        """Checks the next rows in one transaction. Returns the last one, and whether there may be more."""
        (lowest,) = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()
        rows = self._db.execute(_SELECT, (beyond,))
        seen = 0
        for values in islice(rows, _ROWS):
            row = _Row(*values)
            if not is_number(row.first_seq) or row.first_seq <= beyond:  # the B-tree leads back
                raise sqlite3.DatabaseError("rows are out of order")
            self._check_place(row, trimmed=row.first_seq == lowest)
            self._check_row(row)
            beyond = self._at = row.first_seq
            seen += 1
        return beyond, seen == _ROWS

    def _check_place(self, row: _Row, *, trimmed: bool) -> None:
        self.first_seq = self.first_seq or row.first_seq
        # Rows that were trimmed since the last transaction are not missing.
        if self._expected is None or trimmed:
            return
        if row.first_seq > self._expected:
            self.findings.add("are missing", self._expected, row.first_seq - 1)
        elif row.first_seq < self._expected:
            self.findings.add("are stored twice", row.first_seq, self._expected - 1)

    def _check_row(self, row: _Row) -> None:
        what = self._wrong_with(row)
        count = row.samples if is_number(row.samples) and 0 < row.samples < schema.SEQ_MAX else 1
        self.messages += 1
        self.samples += count
        self.last_seq = row.first_seq + count - 1
        self._expected = None if what else self.last_seq + 1  # a damaged row may have any count
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
        """No message may be stored twice."""
        with recorded(self.findings, "message numbers"), reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, max(first_seq) FROM messages GROUP BY client, n HAVING count(*) > 1"
            ):
                if not is_nameless(str(client)):  # such a client may be forgotten before its rows are deleted
                    self.findings.add(f"message {n} of {describe(str(client))} is stored twice", first_seq, first_seq)
        with recorded(self.findings, "receipts"), reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, messages.first_seq FROM messages JOIN receipts USING (client, n)"
            ):
                self.findings.add(
                    f"message {n} of {describe(str(client))} is stored and has a receipt", first_seq, first_seq
                )

    def _check_receipts(self) -> None:
        with recorded(self.findings, "receipts"), reading(self._db):
            lowest = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()[0]
            stored = self._meta.get("next_seq")
            end = lowest or (stored if is_number(stored) else schema.SEQ_MAX)
            for client, n, first_seq, count in self._db.execute("SELECT client, n, first_seq, count FROM receipts"):
                if not all(map(is_number, (n, first_seq, count))) or not 0 < first_seq <= end - count:
                    self.findings.add(
                        f"the receipt of message {n} of {describe(str(client))} has impossible sample numbers"
                    )

    def _check_decisions(self) -> None:
        """Ranges that a rollback skipped, events, and the origin."""
        readers: dict[str, Callable[..., object]] = {
            "skips": skips.read,
            "events": events.read,
            "origin": origin.read,
        }
        for table, read in readers.items():
            with recorded(self.findings, table), reading(self._db):
                try:
                    read(self._db, Path(table))
                except JournalDamaged as error:
                    self.findings.add(error.message)

    def _check_file(self) -> None:
        with recorded(self.findings, "the file"), reading(self._db):
            for (line,) in self._db.execute(f"PRAGMA integrity_check({NAMED_MAX})"):
                if line != "ok":
                    self.findings.add(f"SQLite: {line}")
