"""The writing side of the journal: group commit, deduplication, trimming. One thread owns it.

Invariant: `append` returns after the commit, and only then may the caller send an ack. Nothing that this object
remembers changes before that, so a failed commit leaves it as it was.
"""

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import JournalDamaged, JournalIncompatible, Unavailable
from ffstream.journal import clean_close, clock, database, events, identity, origin, schema
from ffstream.journal.clients import Clients, Receipt
from ffstream.journal.database import UNREADABLE, Transaction, damage_as_error, damaged
from ffstream.journal.origin import Origin
from ffstream.util import failpoints

_COMMIT_WAIT_MS = 2000  # for the write lock, which other threads hold for one short transaction
_UPKEEP_WAIT_MS = 0  # upkeep can be done later, so it never delays messages
_ENDED = 0.0  # in the column `seen`: the client will not use its name again
_WRONG_TYPE = (TypeError, ValueError, OverflowError, AttributeError)  # what a damaged value may raise


class Entry(NamedTuple):
    """One accepted message to store. `client` is what `identity.join` returns."""

    client: str
    n: int
    base: int
    samples: int
    dtype: str
    labels: bytes
    images: bytes


class Head:
    """The number of the last sample on disk. Other threads wait here for more."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self._grown = threading.Condition()

    @property
    def seq(self) -> int:
        """The number of the last sample on disk."""
        return self._seq

    def advance(self, seq: int) -> None:
        """Says that samples up to `seq` can be read."""
        with self._grown:
            self._seq = seq
            self._grown.notify_all()

    def wait(self, beyond: int, timeout_s: float) -> bool:
        """Waits for a sample after `beyond`. False after the timeout or a call of `wake`."""
        with self._grown:
            if self._seq <= beyond:
                self._grown.wait(timeout_s)
            return self._seq > beyond

    def wake(self) -> None:
        """Ends all waits, so that the waiting threads check what else has changed."""
        with self._grown:
            self._grown.notify_all()


class Journal:
    """Stores messages. Any thread may open and close it; in between, one thread uses it."""

    def __init__(self, path: Path, *, inputs: int, labels: int) -> None:
        """Opens or creates a journal. Raises JournalDamaged, JournalIncompatible or Unavailable."""
        self.path = path
        clean_close.check(path)
        has_log = clean_close.has_log(path)
        self._db = database.connect(path)
        try:
            schema.create(self._db, path, inputs, labels)
            self._recover()
        except (*UNREADABLE, *_WRONG_TYPE) as error:
            self._give_up(has_log)
            raise database.unusable(path, error) from error
        except (JournalDamaged, JournalIncompatible, Unavailable):
            self._give_up(has_log)
            raise
        clean_close.mark_open(self._db, path)

    def _give_up(self, has_log: bool) -> None:
        """Closes the connection, and leaves the files of a rejected journal as they were."""
        if has_log:
            clean_close.keep_log(self.path)
        self._db.close()

    def _recover(self) -> None:
        self._next_seq = self._recover_next_seq()
        self.head = Head(self._next_seq - 1)
        self.origin = origin.read(self._db, self.path)
        self._first_seq = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()[0] or self._next_seq
        self._trimmed_to = 0
        self.clients = Clients()
        self._recover_clients()

    def _recover_next_seq(self) -> int:
        (stored,) = self._db.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
        last = self._db.execute(schema.LAST).fetchone()
        end = int(last[0]) if last else int(stored)
        # Stored whenever rows are trimmed, from the front. The remaining rows must reach it.
        if not 0 < int(stored) <= end <= schema.SEQ_MAX:
            raise damaged(self.path, f"samples end before {end}, but next_seq is {stored}")
        return end

    def _recover_clients(self) -> None:
        rows = self._db.execute("SELECT client, base, seen FROM clients ORDER BY seen").fetchall()
        (saved_s,) = self._db.execute("SELECT value FROM meta WHERE key = 'clock_s'").fetchone()
        if type(saved_s) is not int or not clock.BEGIN_S <= saved_s <= schema.SEQ_MAX:
            raise damaged(self.path, f"clock_s is {saved_s!r}")
        self._clock = clock.RunningTime(saved_s, max((seen for *_, seen in rows), default=0.0))
        now = self._clock.now()
        clients = [
            (name, base, -math.inf if seen == _ENDED else min(seen, now), seen == _ENDED) for name, base, seen in rows
        ]
        messages = (
            row
            for table in ("receipts", "messages")
            for row in self._db.execute(f"SELECT client, n, first_seq, count FROM {table}")
        )
        self.clients.restore(clients, messages)

    @property
    def first_seq(self) -> int:
        """The number of the first sample that is still stored; the next number if there is none."""
        return self._first_seq

    def backlog(self, applied_seq: int) -> int:
        """How many samples are on disk but not learned yet."""
        return self._next_seq - 1 - applied_seq

    def holds(self, receipt: Receipt, entry: Entry) -> bool:
        """Whether the stored message has the same content as `entry`."""
        client, n, _, count, dtype, labels, images = entry
        row = self._db.execute(
            "SELECT crc FROM messages WHERE first_seq = ? UNION ALL"
            " SELECT crc FROM receipts WHERE client = ? AND n = ?",
            (receipt.first_seq, client, n),
        ).fetchone()
        return row is None or bool(row[0] == schema.checksum(receipt.first_seq, count, dtype, labels, images))

    def begin_from(self, weights: Origin) -> None:
        """Records the weights that the stream begins from. Call this before the first sample. Raises Unavailable."""
        with Transaction(self._db, self.path):
            origin.write(self._db, weights)
        self.origin = weights

    # --- storing -------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Stores new messages in one transaction and returns their receipts, in order.

        Raises DiskFull or Unavailable; then nothing was stored.
        """
        seq = self._next_seq
        receipts, rows = [], []
        bases: dict[str, int] = {}
        for client, n, base, count, dtype, labels, images in entries:
            receipts.append(Receipt(n, seq, count))
            crc = schema.checksum(seq, count, dtype, labels, images)
            rows.append((seq, count, client, n, dtype, crc, labels, images))
            bases[client] = max(base, bases.get(client, 0))
            seq += count
        now = self._clock.now()
        failpoints.reached("commit.before")
        with Transaction(self._db, self.path, wait_ms=_COMMIT_WAIT_MS):
            self._db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany(
                "INSERT INTO clients VALUES (?, ?, ?) ON CONFLICT (client) DO UPDATE"
                " SET base = max(base, excluded.base), seen = excluded.seen",
                [(client, base, now) for client, base in bases.items()],
            )
        failpoints.reached("commit.after")
        self._next_seq = seq
        self.clients.store(
            ((entry.client, receipt) for entry, receipt in zip(entries, receipts, strict=True)), bases, now, seq - 1
        )
        self.head.advance(seq - 1)
        return receipts

    # --- clients -------------------------------------------------------------------------------------------------

    def end(self, client: str) -> None:
        """Notes that nobody will use this name again, so that it is forgotten once its rows are deleted.

        Raises Unavailable.
        """
        if self.clients.has_ended(client):
            return
        base = self.clients.next_n(client)
        with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("UPDATE clients SET base = ?, seen = ? WHERE client = ?", (base, _ENDED, client))
            self._db.execute("DELETE FROM receipts WHERE client = ?", (client,))
        self.clients.end(client, base)

    def forget_clients(self, unseen_s: float, *, at_most: int = 512) -> int:
        """Forgets clients that were not seen for `unseen_s` seconds of running and whose rows are all deleted.

        While a client has rows it must not be forgotten, because its message numbers would begin at 1 again. A
        nameless client that has ended does not come back, so its rows do not matter. Returns how many were forgotten.
        Raises Unavailable.
        """
        return self._forget(
            lambda name, ended, last_seq: last_seq < self._first_seq or (ended and identity.is_nameless(name)),
            unseen_s,
            at_most,
        )

    def forget_nameless(self, unseen_s: float, *, names_at_least: int = 0, at_most: int = 512) -> int:
        """Forgets nameless clients that were not seen for `unseen_s` seconds of running, even if they have rows.

        `names_at_least` restricts this to keys with at least that many clients; 0: all clients. Returns how many were
        forgotten. Raises Unavailable.
        """
        crowded = self.clients.crowded_keys(names_at_least)
        return self._forget(
            lambda name, ended, last_seq: (
                identity.is_nameless(name) and (not names_at_least or identity.owner(name) in crowded)
            ),
            unseen_s,
            at_most,
        )

    def _forget(self, may_forget: Callable[[str, bool, int], bool], unseen_s: float, at_most: int) -> int:
        names = self.clients.unseen_since(self._clock.now() - unseen_s, may_forget, at_most)
        if names:
            with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                for table in ("receipts", "clients"):
                    self._db.executemany(f"DELETE FROM {table} WHERE client = ?", [(name,) for name in names])
            self.clients.forget(names)
        return len(names)

    def keep_time(self) -> None:
        """Saves the clock that tells when clients were last seen, if that is due. Raises Unavailable."""
        if self._clock.is_due():
            with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                self._save_clock()
            self._clock.saved()

    def _save_clock(self) -> None:
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'clock_s'", (int(self._clock.now()),))

    # --- space ---------------------------------------------------------------------------------------------------

    def bytes_used(self) -> int:
        """The pages in use times their size."""
        with damage_as_error(self.path):
            return database.bytes_used(self._db)

    def bytes_free(self) -> int:
        """How many bytes can be stored before the file grows. The file never shrinks."""
        with damage_as_error(self.path):
            return database.bytes_free(self._db)

    def log_bytes(self) -> int:
        """The size of the -wal file, which `bytes_used` does not include."""
        return database.log_bytes(self.path)

    def fold_log(self) -> bool:
        """Moves the content of the -wal file into the main file, without waiting. Whether the -wal file is empty."""
        return database.fold_log(self._db, self.path)

    def probe(self, size: int) -> None:
        """Commits that many bytes and deletes them. Raises Unavailable while messages cannot be stored."""
        with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("DELETE FROM probes")
            self._db.execute("INSERT INTO probes VALUES (zeroblob(?))", (size,))
        with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("DELETE FROM probes")

    def trim(self, seq: int, *, rows: int = 512, size: int = 16 << 20) -> bool:
        """Deletes up to `rows` rows, or about `size` bytes, whose samples are all at or before `seq`.

        Unresolved messages leave a receipt. The freed pages are reused. Returns True if more rows can be deleted.
        Raises Unavailable.
        """
        if seq < self._first_seq or seq <= self._trimmed_to:
            return False
        with damage_as_error(self.path):
            # The length of a blob is stored at the beginning of its row, so the image's pages are not read.
            found = self._db.execute(
                "SELECT first_seq, client, n, count, crc, coalesce(length(images), 0) FROM messages"
                " WHERE first_seq + count - 1 <= ? AND first_seq <= ? ORDER BY first_seq LIMIT ?",
                (seq, seq, rows),
            ).fetchall()
        sizes = accumulate((row[5] for row in found), initial=0)
        old = [row[:5] for row, before in zip(found, sizes, strict=False) if before < size]
        if not old:
            self._trimmed_to = seq  # the next message has samples after `seq`, so it stays
            return False
        failpoints.reached("trim.before")
        with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.executemany("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?)", self._unresolved(old))
            self._db.execute("DELETE FROM messages WHERE first_seq <= ?", (old[-1][0],))
            events.forget_sleeps(self._db, 0, seq - 1)  # learning never begins again before `seq`
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'next_seq'", (self._next_seq,))
            bases = {client: self.clients.base(client) for _, client, *_ in old}
            self._db.executemany(
                "DELETE FROM receipts WHERE client = ? AND n < ?",
                [(client, base) for client, base in bases.items() if base is not None],
            )
        failpoints.reached("trim.after")
        self._first_seq = old[-1][0] + old[-1][3]
        return len(old) == rows or len(old) < len(found)

    def _unresolved(self, rows: Sequence[tuple[int, str, int, int, int]]) -> list[tuple[str, int, int, int, int]]:
        """The rows (first_seq, client, n, count, crc) that a client may still send, as rows of `receipts`."""
        receipts = []
        for first_seq, client, n, count, crc in rows:
            base = self.clients.base(client)
            if base is not None and n >= base:
                receipts.append((client, n, first_seq, count, crc))
        return receipts

    def close(self) -> None:
        """Saves the clock and closes the connection, which folds the -wal file into the main file."""
        with suppress(Unavailable, *UNREADABLE):  # then clients are remembered a little longer
            if self._clock.unsaved_s() >= 1.0:
                with Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                    self._save_clock()
        clean_close.close(self._db, self.path)
