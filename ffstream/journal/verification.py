"""Every byte of a journal, held against what makes a journal valid; `schema` says what that is.

Rows are read a few hundred at a time: memory stays small, and a daemon that runs can trim and fold its log meanwhile.
"""

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import JournalDamaged, ProtocolError
from ffstream.journal import events, schema, skips
from ffstream.journal.identity import describe, is_nameless
from ffstream.journal.inspection import (
    NAMED_MAX,
    Findings,
    check_end,
    check_meta,
    is_number,
    raise_if_not_its_fault,
    read_meta,
    reading,
    told,
)
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import Samples

_ROWS = 256  # of a transaction
_TICK = 100_000  # steps of SQLite's machine between two signs of life

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
        self._meta = read_meta(connection)
        self._checker = None
        inputs, labels = self._meta.get("inputs"), self._meta.get("labels")
        if is_number(inputs) and is_number(labels):
            self._checker = ImageChecker([inputs], labels, schema.SEQ_MAX)

    def held(self) -> int:
        """About how many samples there are to look at."""
        try:
            first, last = self._db.execute("SELECT min(first_seq), max(first_seq) FROM messages").fetchone()
        except schema.UNREADABLE:
            return 0
        return int(last - first + 1) if is_number(first) and is_number(last) else 0

    def run(self, on_samples: OnProgress = lambda samples: None, on_tick: Callable[[], None] = lambda: None) -> None:
        """`on_samples` is told how many have been looked at, `on_tick` that something is going on."""
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
        beyond, step = 0, 1  # the last row looked at; what is skipped when the next one cannot be read
        while True:
            try:
                with reading(self._db):
                    beyond, more = self._check_some(beyond)
            except schema.UNREADABLE as error:
                raise_if_not_its_fault(error)
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
            if is_number(last):
                return int(last)
        return self._at

    def _check_some(self, beyond: int) -> tuple[int, bool]:
        """Looks at the next rows, in one transaction. Returns the last one, and whether there may be more."""
        (lowest,) = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()
        rows = self._db.execute(_SELECT, (beyond,))
        seen = 0
        for values in islice(rows, _ROWS):
            row = _Row(*values)
            if not is_number(row.first_seq) or row.first_seq <= beyond:  # the tree of pages leads back
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
        count = row.samples if is_number(row.samples) and 0 < row.samples < schema.SEQ_MAX else 1
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
        with told(self.findings, "message numbers"), reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, max(first_seq) FROM messages GROUP BY client, n HAVING count(*) > 1"
            ):
                if not is_nameless(str(client)):  # which may be forgotten before its rows are deleted
                    self.findings.add(f"message {n} of {describe(str(client))} is stored twice", first_seq, first_seq)
        with told(self.findings, "receipts"), reading(self._db):
            for client, n, first_seq in self._db.execute(
                "SELECT client, n, messages.first_seq FROM messages JOIN receipts USING (client, n)"
            ):
                self.findings.add(
                    f"message {n} of {describe(str(client))} is stored and has a receipt", first_seq, first_seq
                )

    def _check_receipts(self) -> None:
        with told(self.findings, "receipts"), reading(self._db):
            lowest = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()[0]
            stored = self._meta.get("next_seq")
            end = lowest or (stored if is_number(stored) else schema.SEQ_MAX)
            for client, n, first_seq, count in self._db.execute("SELECT client, n, first_seq, count FROM receipts"):
                if not all(map(is_number, (n, first_seq, count))) or not 0 < first_seq <= end - count:
                    self.findings.add(
                        f"the receipt of message {n} of {describe(str(client))} names samples it cannot have"
                    )

    def _check_decisions(self) -> None:
        """Ranges that a rollback skipped; events, which older versions do not have."""
        readers: dict[str, Callable[..., object]] = {"skips": skips.read}
        if self._meta.get("version") == schema.VERSION:
            readers["events"] = events.read
        for table, read in readers.items():
            with told(self.findings, table), reading(self._db):
                try:
                    read(self._db, Path(table))
                except JournalDamaged as error:
                    self.findings.add(error.message)

    def _check_file(self) -> None:
        with told(self.findings, "the file"), reading(self._db):
            for (line,) in self._db.execute(f"PRAGMA integrity_check({NAMED_MAX})"):
                if line != "ok":
                    self.findings.add(f"SQLite: {line}")
