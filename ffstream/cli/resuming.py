"""Resumes a named replay. Its position is encoded in the message numbers, so the daemon remembers it.

    bits 48 to 61   number of the run under this name; `--restart` begins the next one
    bits 28 to 47   fingerprint of the data and of the options that determine the content of messages; never 0
    bits 0 to 27    position of the batch in the stream, from 1

The highest number that the daemon knows shows how far the replay came, and whether it is the same replay. Messages
below that number may be missing, if they were rejected for now and the replay was killed before it sent them again.
A replay never sends a message that is `SPAN` or more after the lowest unanswered one, so sending the last `SPAN`
again fills the gaps. The daemon recognises those that it has stored.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import xxhash

from ffstream.client import CurveKeys, Producer
from ffstream.data import LabelArray, Split, UInt8Array
from ffstream.errors import ConfigError, RequestRefused, StoredDifferently

SPAN = 256

_POSITION_BITS = 28
_FINGERPRINT_BITS = 20
_RUN_BITS = 14
_PATIENCE_S = 60.0

Batches = Iterable[tuple[UInt8Array, LabelArray]]


@dataclass(frozen=True)
class Place:
    """Where a replay begins: batch `position` (from 0) has the message number `n`."""

    n: int
    position: int = 0


def fingerprint(split: Split, options: dict[str, Any]) -> int:
    """Return a number that identifies data and options; others have the same with a probability of 1 in a million."""
    digest = xxhash.xxh3_64(json.dumps([options, split.images.shape], sort_keys=True).encode())
    for array in (split.images, split.labels):
        digest.update(np.ascontiguousarray(array).data)
    return 1 + digest.intdigest() % ((1 << _FINGERPRINT_BITS) - 1)


def place(client: str, daemon_next: int, mark: int, *, restart: bool) -> Place:
    """Return where a replay with the fingerprint `mark` begins. Raises ConfigError if another one used the name."""
    last = daemon_next - 1
    run, used_by = divmod(last >> _POSITION_BITS, 1 << _FINGERPRINT_BITS)
    if last and not restart:
        if used_by != mark:
            raise ConfigError(
                f"{client!r} has sent other data, or with another --split, --seed, --batch, --order, --drift, "
                "--drift-at, --label-offset or --label-fraction",
                hint="use the same options to resume it, --restart to begin again, or another --client",
            )
        position = last & ((1 << _POSITION_BITS) - 1)
        return Place(daemon_next, position)
    if last:
        run += 1
    if run >= 1 << _RUN_BITS:
        raise ConfigError(f"{client!r} was restarted {run - 1:,} times", hint="use another --client")
    return Place((((run << _FINGERPRINT_BITS) | mark) << _POSITION_BITS) + 1)


def fill_gaps(endpoint: str, client: str, keys: CurveKeys | None, start: Place, stream: Batches) -> None:
    """Send the last `SPAN` batches before `start` again. `stream` begins with the first of them.

    Raises DeadlineExceeded, and ConfigError if the daemon has stored other samples under their numbers.
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
                f"the last batch of {client!r} differs from this replay: it had another --limit or --passes",
                hint="use --restart to begin again, or another --client",
            ) from error
