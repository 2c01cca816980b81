"""The writing side: group commit, deduplication, trimming. Owned by one thread.

Invariant: `append` returns after the commit, and only then may the caller ack. Until then nothing that
this object remembers has changed, so a failed commit leaves it as it was.
"""

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from ffstream.errors import BelowBase, JournalDamaged, JournalIncompatible, Unavailable
from ffstream.journal import clean_close, clock, identity, schema
from ffstream.util import failpoints

_COMMIT_WAIT_MS = 2000  # for the write lock; other threads hold it for one short transaction
_UPKEEP_WAIT_MS = 0  # what can be done a moment later does not keep messages waiting
_ENDED = 0.0  # stands for the time when a client was seen that has given its name up
_OF_ANOTHER_TYPE = (TypeError, ValueError, OverflowError, AttributeError)  # what a damaged value raises


class Entry(NamedTuple):
    """One accepted message on its way to disk. `client` is what `identity` makes."""

    client: str
    n: int
    base: int
    samples: int
    dtype: str
    labels: bytes
    images: bytes


class Receipt(NamedTuple):
    """Where a message's samples went."""

    n: int
    first_seq: int
    samples: int


@dataclass
class _Client:
    base: int = 1
    seen: float = -math.inf  # by the journal's clock
    ended: bool = False  # its name is given up; its rows are still there
    last_seq: int = 0  # of its newest sample, or of one that came with it
    receipts: dict[int, Receipt] = field(default_factory=dict)


class Head:
    """The last sequence number on disk, for whoever waits for more. Shared between threads."""

    def __init__(self, seq: int) -> None:
        self._seq = seq
        self._grown = threading.Condition()

    @property
    def seq(self) -> int:
        return self._seq

    def advance(self, seq: int) -> None:
        """Tells the waiting that samples up to `seq` can be read."""
        with self._grown:
            self._seq = seq
            self._grown.notify_all()

    def wait(self, beyond: int, timeout_s: float) -> bool:
        """True once there is something beyond that number; False after the timeout or a wake-up."""
        with self._grown:
            if self._seq <= beyond:
                self._grown.wait(timeout_s)
            return self._seq > beyond

    def wake(self) -> None:
        """Ends all waits, so that the waiting look at what else has changed."""
        with self._grown:
            self._grown.notify_all()


class Journal:
    """Appends messages. Opened and closed by whoever; used by one thread in between."""

    def __init__(self, path: Path, *, inputs: int, labels: int) -> None:
        self.path = path
        clean_close.check(path)
        has_log = clean_close.has_log(path)
        self._db = schema.connect(path)
        try:
            schema.create(self._db, path, inputs, labels)
            self._recover()
        except (*schema.UNREADABLE, *_OF_ANOTHER_TYPE) as error:
            self._give_up(has_log)
            raise schema.unusable(path, error) from error
        except (JournalDamaged, JournalIncompatible, Unavailable):
            self._give_up(has_log)
            raise
        clean_close.mark_open(self._db, path)

    def _give_up(self, has_log: bool) -> None:
        if has_log:
            clean_close.keep_log(self.path)
        self._db.close()

    def _recover(self) -> None:
        self._next_seq = self._recover_next_seq()
        self.head = Head(self._next_seq - 1)
        self._first_seq = self._db.execute("SELECT min(first_seq) FROM messages").fetchone()[0] or self._next_seq
        self._trimmed_to = 0
        self._clients = self._recover_clients()
        self._names: Counter[str] = Counter()  # by owner: clients that have not ended, and their receipts
        self._unresolved: Counter[str] = Counter()
        for name, client in self._clients.items():
            self._count(name, not client.ended, len(client.receipts))

    def _recover_next_seq(self) -> int:
        (stored,) = self._db.execute("SELECT value FROM meta WHERE key = 'next_seq'").fetchone()
        last = self._db.execute(schema.LAST).fetchone()
        end = int(last[0]) if last else int(stored)
        # Stored when rows are trimmed, from the front: those that are left reach up to it at least.
        if not 0 < int(stored) <= end <= schema.SEQ_MAX:
            raise schema.damaged(self.path, f"samples end before {end}, and {stored} was to be the next")
        return end

    def _recover_clients(self) -> OrderedDict[str, _Client]:
        rows = self._db.execute("SELECT client, base, seen FROM clients ORDER BY seen").fetchall()
        (saved_s,) = self._db.execute("SELECT value FROM meta WHERE key = 'clock_s'").fetchone()
        if type(saved_s) is not int or not clock.BEGIN_S <= saved_s <= schema.SEQ_MAX:
            raise schema.damaged(self.path, f"clock_s is {saved_s!r}")
        self._clock = clock.RunningTime(saved_s, max((seen for *_, seen in rows), default=0.0))
        now = self._clock.now()
        clients = OrderedDict(
            (name, _Client(base, -math.inf if seen == _ENDED else min(seen, now), ended=seen == _ENDED))
            for name, base, seen in rows
        )
        for table in ("receipts", "messages"):
            for name, n, first_seq, count in self._db.execute(f"SELECT client, n, first_seq, count FROM {table}"):
                if name not in clients and identity.is_nameless(name):
                    continue  # it was forgotten before its rows
                client = clients.setdefault(name, _Client())
                client.last_seq = max(client.last_seq, first_seq + count - 1)
                if n >= client.base:
                    client.receipts[n] = Receipt(n, first_seq, count)
        return clients

    @property
    def first_seq(self) -> int:
        """The first sample that is held; the next one if none is."""
        return self._first_seq

    @property
    def clients(self) -> int:
        """How many clients are remembered."""
        return len(self._clients)

    def knows(self, client: str) -> bool:
        """Whether this client is remembered."""
        return client in self._clients

    def names(self, owner: str) -> int:
        """How many clients of this owner are remembered and have not ended."""
        return self._names[owner]

    def unresolved(self, owner: str) -> int:
        """How many stored messages this owner's clients may still ask about."""
        return self._unresolved[owner]

    def unresolved_of(self, client: str) -> int:
        """The same of one client."""
        known = self._clients.get(client)
        return len(known.receipts) if known else 0

    def _count(self, client: str, names: int, unresolved: int) -> None:
        owner = identity.owner(client)
        self._names[owner] += names
        self._unresolved[owner] += unresolved
        if not self._names[owner]:
            del self._names[owner], self._unresolved[owner]

    def next_n(self, client: str) -> int:
        """The lowest message number that this client has never used."""
        known = self._clients.get(client)
        return max((known.base, *(n + 1 for n in known.receipts))) if known else 1

    def receipt(self, client: str, n: int) -> Receipt | None:
        """Where message n went, None when it is new. Raises BelowBase below the client's base."""
        known = self._clients.get(client)
        if known is None:
            return None
        if n < known.base:
            raise BelowBase(
                f"message {n} of client {identity.describe(client)} is below its base {known.base}",
                hint="number new messages from `next` in the welcome",
            )
        return known.receipts.get(n)

    def holds(self, receipt: Receipt, entry: Entry) -> bool:
        """Whether that message was stored with this content; True when nobody can tell any more."""
        client, n, _, count, dtype, labels, images = entry
        row = self._db.execute(
            "SELECT crc FROM messages WHERE first_seq = ? UNION ALL"
            " SELECT crc FROM receipts WHERE client = ? AND n = ?",
            (receipt.first_seq, client, n),
        ).fetchone()
        (crc,) = row or (None,)
        return crc is None or crc == schema.checksum(receipt.first_seq, count, dtype, labels, images)

    def append(self, entries: Sequence[Entry]) -> list[Receipt]:
        """Stores new messages in one transaction and returns their receipts, in order.

        Raises DiskFull; then nothing was stored.
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
        with schema.Transaction(self._db, self.path, wait_ms=_COMMIT_WAIT_MS):
            self._db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany(
                "INSERT INTO clients VALUES (?, ?, ?) ON CONFLICT (client) DO UPDATE"
                " SET base = max(base, excluded.base), seen = excluded.seen",
                [(client, base, now) for client, base in bases.items()],
            )
        failpoints.reached("commit.after")
        self._next_seq = seq
        for name in bases:
            known = self._clients.pop(name, None)
            sender = known or _Client()
            self._count(name, known is None or known.ended, -len(sender.receipts))  # the others are counted below
            sender.ended = False
            sender.seen = now
            self._clients[name] = sender  # the one seen last comes last
        for entry, receipt in zip(entries, receipts, strict=True):
            self._clients[entry.client].receipts[entry.n] = receipt
        for name, base in bases.items():
            self._clients[name].last_seq = seq - 1
            self._forget_below(name, base)
            self._count(name, 0, len(self._clients[name].receipts))
        self.head.advance(seq - 1)
        return receipts

    def _forget_below(self, name: str, base: int) -> None:
        """What is below base will not come again. As a rule that is a few numbers; it may be a leap."""
        client = self._clients[name]
        leaps = base - client.base > len(client.receipts)
        resolved = [n for n in client.receipts if n < base] if leaps else range(client.base, base)
        for n in resolved:
            client.receipts.pop(n, None)
        client.base = max(base, client.base)

    def end(self, client: str) -> None:
        """Nobody will use this name again: it is forgotten as soon as its rows are deleted. Raises DiskFull."""
        known = self._clients.get(client)
        if known is None or known.ended:
            return
        base = self.next_n(client)
        with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("UPDATE clients SET base = ?, seen = ? WHERE client = ?", (base, _ENDED, client))
            self._db.execute("DELETE FROM receipts WHERE client = ?", (client,))
        self._count(client, -1, -len(known.receipts))
        known.receipts.clear()
        known.base, known.seen, known.ended = base, -math.inf, True
        self._clients.move_to_end(client, last=False)  # where those are that may be forgotten

    def forget_clients(self, unseen_s: float, *, at_most: int = 512) -> int:
        """Forgets clients not seen for `unseen_s` seconds of running whose rows are all deleted; returns how many.

        Not with rows left: their name would begin at 1 again beside them. A nameless client that has ended does not
        come again, so its rows do not matter. Raises Unavailable.
        """
        before = self._clock.now() - unseen_s
        return self._forget(
            lambda name, client: client.last_seq < self._first_seq or (client.ended and identity.is_nameless(name)),
            before,
            at_most,
        )

    def forget_nameless(self, unseen_s: float, *, names_at_least: int = 0, at_most: int = 512) -> int:
        """Forgets nameless clients not seen for `unseen_s` seconds of running, whether or not their rows are deleted;
        returns how many. Raises Unavailable.

        Only those of keys that have at least `names_at_least` clients; 0: all.
        """
        crowded = {key for key, names in self._names.items() if names >= names_at_least and identity.has_key(key)}
        return self._forget(
            lambda name, client: (
                identity.is_nameless(name) and (not names_at_least or identity.owner(name) in crowded)
            ),
            self._clock.now() - unseen_s,
            at_most,
        )

    def most_names(self) -> int:
        """How many clients the key with the most of them has; 0 without keys."""
        return max((names for owner, names in self._names.items() if identity.has_key(owner)), default=0)

    def _forget(self, may_go: Callable[[str, _Client], bool], before: float, at_most: int) -> int:
        old: list[str] = []
        for name, client in self._clients.items():  # the one not seen for longest comes first
            if client.seen > before or len(old) == at_most:
                break
            if may_go(name, client):
                old.append(name)
        if old:
            with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                for table in ("receipts", "clients"):
                    self._db.executemany(f"DELETE FROM {table} WHERE client = ?", [(name,) for name in old])
            for name in old:
                client = self._clients.pop(name)
                self._count(name, -(not client.ended), -len(client.receipts))
        return len(old)

    def keep_time(self) -> None:
        """Saves the clock by which clients are forgotten, now and then. Raises Unavailable."""
        if self._clock.is_due():
            with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                self._save_clock()
            self._clock.saved()

    def _save_clock(self) -> None:
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'clock_s'", (int(self._clock.now()),))

    def backlog(self, applied_seq: int) -> int:
        """Samples on disk that are not learned yet."""
        return self._next_seq - 1 - applied_seq

    def bytes_used(self) -> int:
        """Pages in use times their size."""
        with schema.only_damage(self.path):
            return schema.bytes_used(self._db)

    def bytes_free(self) -> int:
        """What can be stored before the file grows: it never shrinks."""
        with schema.only_damage(self.path):
            return schema.bytes_free(self._db)

    def log_bytes(self) -> int:
        """Size of the write-ahead log, which `bytes_used` leaves out."""
        return schema.log_bytes(self.path)

    def fold_log(self) -> bool:
        """Empties the log into the file, unless somebody is in the way. Never waits. Whether it is empty."""
        return schema.fold_log(self._db, self.path)

    def probe(self, size: int) -> None:
        """Commits that many bytes and takes them away again. Raises Unavailable while messages cannot be stored."""
        with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("DELETE FROM probes")
            self._db.execute("INSERT INTO probes VALUES (zeroblob(?))", (size,))
        with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.execute("DELETE FROM probes")

    def trim(self, seq: int, *, rows: int = 512, size: int = 16 << 20) -> bool:
        """Deletes up to `rows` rows, or about `size` bytes, that lie wholly at or below `seq`. True when more remain.

        What a sender may still ask about stays behind as a receipt. The freed pages are reused.
        """
        if seq < self._first_seq or seq <= self._trimmed_to:
            return False
        with schema.only_damage(self.path):
            # A length stands at the beginning of its row: the image's own pages are not read.
            found = self._db.execute(
                "SELECT first_seq, client, n, count, crc, coalesce(length(images), 0) FROM messages"
                " WHERE first_seq + count - 1 <= ? AND first_seq <= ? ORDER BY first_seq LIMIT ?",
                (seq, seq, rows),
            ).fetchall()
        sizes = accumulate((row[5] for row in found), initial=0)
        old = [row[:5] for row, before in zip(found, sizes, strict=False) if before < size]
        if not old:
            self._trimmed_to = seq  # a message that reaches beyond it stays whole
            return False
        still_asked = [
            (client, n, first_seq, count, crc)
            for first_seq, client, n, count, crc in old
            if client in self._clients and n >= self._clients[client].base
        ]
        failpoints.reached("trim.before")
        with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
            self._db.executemany("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?)", still_asked)
            self._db.execute("DELETE FROM messages WHERE first_seq <= ?", (old[-1][0],))
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'next_seq'", (self._next_seq,))
            self._db.executemany(
                "DELETE FROM receipts WHERE client = ? AND n < ?",
                [(client, self._clients[client].base) for client in {row[1] for row in old} & self._clients.keys()],
            )
        failpoints.reached("trim.after")
        self._first_seq = old[-1][0] + old[-1][3]
        return len(old) == rows or len(old) < len(found)

    def close(self) -> None:
        """Closes the connection; the log is folded into the file."""
        with suppress(Unavailable, *schema.UNREADABLE):  # then clients seem a little younger
            if self._clock.unsaved_s() >= 1.0:
                with schema.Transaction(self._db, self.path, wait_ms=_UPKEEP_WAIT_MS):
                    self._save_clock()
        clean_close.close(self._db, self.path)
