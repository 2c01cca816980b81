"""Where a named replay goes on: its message numbers say what was sent, so that the daemon remembers it for us.

    bits 48 to 61   which run under this name: `--restart` begins the next one
    bits 28 to 47   fingerprint of the data and of the options that decide what a message holds; never 0
    bits 0 to 27    position of the batch in the stream, from 1

The highest number that the daemon knows tells how far the replay came and whether it is the same one. Below that
number a message may be missing: refused for now, and not sent again before the replay was killed. A replay sends
nothing that is `SPAN` or more messages after the lowest unanswered one, so sending the last `SPAN` again makes it
whole; the daemon recognises those that it has.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import xxhash

from ffstream.client import CurveKeys, Producer
from ffstream.data import Split, UInt8Array
from ffstream.errors import ConfigError, RequestRefused, StoredDifferently

SPAN = 256

_POSITION_BITS = 28
_FINGERPRINT_BITS = 20
_RUN_BITS = 14
_PATIENCE_S = 60.0

Batches = Iterable[tuple[UInt8Array, UInt8Array]]


@dataclass(frozen=True)
class Place:
    """Where a replay begins: with batch `position` (from 0) under the message number `n`."""

    n: int
    position: int = 0


def fingerprint(split: Split, options: dict[str, Any]) -> int:
    """Return a number that other data or options have with a chance of one in a million only."""
    digest = xxhash.xxh3_64(json.dumps([options, split.images.shape], sort_keys=True).encode())
    for array in (split.images, split.labels):
        digest.update(np.ascontiguousarray(array).data)
    return 1 + digest.intdigest() % ((1 << _FINGERPRINT_BITS) - 1)


def place(client: str, daemon_next: int, mark: int, *, restart: bool) -> Place:
    """Return where a replay with the fingerprint `mark` goes on. Raises ConfigError if the name is another one's."""
    last = daemon_next - 1
    run, used_by = divmod(last >> _POSITION_BITS, 1 << _FINGERPRINT_BITS)
    if last and not restart:
        if used_by != mark:
            raise ConfigError(
                f"{client!r} has sent other data, or with another --seed, --batch, --order, --drift, --drift-at or "
                "--label-offset",
                hint="the same options resume it; --restart begins again under this name; or take another --client",
            )
        position = last & ((1 << _POSITION_BITS) - 1)
        return Place(daemon_next, position)
    if last:
        run += 1
    if run >= 1 << _RUN_BITS:
        raise ConfigError(f"{client!r} was restarted {run - 1:,} times", hint="take another --client")
    return Place((((run << _FINGERPRINT_BITS) | mark) << _POSITION_BITS) + 1)


def make_whole(endpoint: str, client: str, keys: CurveKeys | None, start: Place, stream: Batches) -> None:
    """Send the `SPAN` batches before `start` again. `stream` begins with the first of them.

    Raises ConfigError when the daemon stored others under their numbers, DeadlineExceeded.
    """
    again = min(SPAN, start.position)
    with Producer(endpoint, client=client, keys=keys, start_at=start.n - again) as producer:
        try:
            for images, labels in islice(stream, again):
                producer.send(images, labels, _PATIENCE_S)
            producer.flush(_PATIENCE_S)
        except RequestRefused as error:
            if error.remote_code != StoredDifferently.code:
                raise
            raise ConfigError(
                f"{client!r} ended in another batch than this replay has there: --limit or --passes was another one",
                hint="--restart begins again under this name; or take another --client",
            ) from error
