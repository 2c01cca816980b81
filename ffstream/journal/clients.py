"""What a journal remembers about its clients: which message numbers each may still send, and where its messages went.

This is the in-memory copy of the tables `clients`, `receipts` and the first columns of `messages`. The journal
changes it only after a commit.

A client's `base` is the lowest message number that it may still send: it has received the answers to all lower ones.
Messages that are stored and not below `base` are unresolved: the client may send them again.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ffstream.errors import BelowBase
from ffstream.journal import identity


class Receipt(NamedTuple):
    """Where the samples of a message are: first_seq … first_seq+samples−1."""

    n: int
    first_seq: int
    samples: int


@dataclass
class _Client:
    base: int = 1
    seen: float = -math.inf  # by the journal's clock
    ended: bool = False  # it will not use its name again; its rows may still be there
    last_seq: int = 0  # at least that of its newest sample
    receipts: dict[int, Receipt] = field(default_factory=dict)


class Clients:
    """The clients of a journal. The one that was not seen for longest comes first."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._names: Counter[str] = Counter()  # by owner: clients that have not ended
        self._unresolved: Counter[str] = Counter()  # by owner

    # --- questions -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._clients)

    def __contains__(self, client: str) -> bool:
        return client in self._clients

    def names(self, owner: str) -> int:
        """How many clients of this owner are remembered and have not ended."""
        return self._names[owner]

    def most_names(self) -> int:
        """The number of clients of the key that has the most of them; 0 without keys."""
        return max((names for owner, names in self._names.items() if identity.has_key(owner)), default=0)

    def crowded_keys(self, names_at_least: int) -> set[str]:
        """The keys that have at least that many clients."""
        return {key for key, names in self._names.items() if names >= names_at_least and identity.has_key(key)}

    def unresolved(self, owner: str) -> int:
        """How many unresolved messages the clients of this owner have."""
        return self._unresolved[owner]

    def unresolved_of(self, client: str) -> int:
        """How many unresolved messages this client has."""
        known = self._clients.get(client)
        return len(known.receipts) if known else 0

    def next_n(self, client: str) -> int:
        """The lowest message number that this client has never used."""
        known = self._clients.get(client)
        return max((known.base, *(n + 1 for n in known.receipts))) if known else 1

    def receipt(self, client: str, n: int) -> Receipt | None:
        """Where message n is; None if it is new. Raises BelowBase if n is below the client's base."""
        known = self._clients.get(client)
        if known is None:
            return None
        if n < known.base:
            raise BelowBase(
                f"message {n} of client {identity.describe(client)} is below its base {known.base}",
                hint="number new messages from `next` in the welcome",
            )
        return known.receipts.get(n)

    def base(self, client: str) -> int | None:
        """The base of a client; None if the client is not remembered."""
        known = self._clients.get(client)
        return known.base if known else None

    def has_ended(self, client: str) -> bool:
        """Whether the client will not use its name again, or is not remembered."""
        known = self._clients.get(client)
        return known is None or known.ended

    def unseen_since(self, before: float, may_forget: Callable[[str, bool, int], bool], at_most: int) -> list[str]:
        """The clients that were not seen after `before` and for whom `may_forget(client, ended, last_seq)` is
        true."""
        unseen: list[str] = []
        for name, client in self._clients.items():
            if client.seen > before or len(unseen) == at_most:
                break
            if may_forget(name, client.ended, client.last_seq):
                unseen.append(name)
        return unseen

    # --- changes -------------------------------------------------------------------------------------------------

    def restore(
        self,
        rows: Iterable[tuple[str, int, float, bool]],
        messages: Iterable[tuple[str, int, int, int]],
    ) -> None:
        """Takes the tables of a journal: (client, base, seen, ended) by `seen`, and (client, n, first_seq,
        samples)."""
        for name, base, seen, ended in rows:
            self._clients[name] = _Client(base, seen, ended)
        for name, n, first_seq, samples in messages:
            if name not in self._clients and identity.is_nameless(name):
                continue  # it was forgotten before its rows were deleted
            client = self._clients.setdefault(name, _Client())
            client.last_seq = max(client.last_seq, first_seq + samples - 1)
            if n >= client.base:
                client.receipts[n] = Receipt(n, first_seq, samples)
        for name, client in self._clients.items():
            self._count(name, not client.ended, len(client.receipts))

    def store(
        self, receipts: Iterable[tuple[str, Receipt]], bases: Mapping[str, int], now: float, last_seq: int
    ) -> None:
        """Adds the messages of one commit, and raises the bases of their clients."""
        for name in bases:
            known = self._clients.pop(name, None)
            client = known or _Client()
            self._count(name, known is None or known.ended, -len(client.receipts))  # counted again below
            client.ended, client.seen = False, now
            self._clients[name] = client  # last, because it was seen last
        for name, receipt in receipts:
            self._clients[name].receipts[receipt.n] = receipt
        for name, base in bases.items():
            client = self._clients[name]
            client.last_seq = last_seq
            _resolve_below(client, base)
            self._count(name, 0, len(client.receipts))

    def end(self, client: str, base: int) -> None:
        """The client will not use its name again."""
        known = self._clients[client]
        self._count(client, -1, -len(known.receipts))
        known.receipts.clear()
        known.base, known.seen, known.ended = base, -math.inf, True
        self._clients.move_to_end(client, last=False)  # among those that may be forgotten

    def forget(self, names: Iterable[str]) -> None:
        """Removes clients."""
        for name in names:
            client = self._clients.pop(name)
            self._count(name, -(not client.ended), -len(client.receipts))

    def _count(self, client: str, names: int, unresolved: int) -> None:
        owner = identity.owner(client)
        self._names[owner] += names
        self._unresolved[owner] += unresolved
        if not self._names[owner]:
            del self._names[owner], self._unresolved[owner]


def _resolve_below(client: _Client, base: int) -> None:
    """Drops the receipts below a new base. There are usually few such numbers, but the base may also leap."""
    leaps = base - client.base > len(client.receipts)
    resolved = [n for n in client.receipts if n < base] if leaps else range(client.base, base)
    for n in resolved:
        client.receipts.pop(n, None)
    client.base = max(base, client.base)
