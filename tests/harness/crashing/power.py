"""Power loss: what was not flushed is gone, and the daemon begins again on what a disk may hold then.

strace records what a daemon does to its state folder and which acks it sends. Three lives follow one another there:
one that is stopped, one that is killed, one that is stopped; SQLite folds its log into the file every few pages, so
that this happens often. For a point in the record, `disk` makes a folder as power loss there may leave it. A daemon
begins on it, a producer that heard the acks sent before that point sends the rest of the stream, and in the end the
accounts must be right and the state equal to that of a life that nothing happened to.

That takes seconds a point. What every single point must have, if nothing is there but what was flushed, is looked up
in the files: each acked sample in a whole checkpoint or in the journal, and no gap between the two.
"""

import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ffstream.checkpoint import manifest
from ffstream.checkpoint.ladder import Rung
from ffstream.client import Control
from ffstream.errors import FFStreamError
from ffstream.journal.journal import Journal
from tests.harness.crashing import disk, trace
from tests.harness.crashing.accounts import Account, Remains, rows_of, settle
from tests.harness.crashing.killing import end_in_order, never_killed
from tests.harness.crashing.lives import ForkServer, Home
from tests.harness.crashing.stream import (
    CHECKPOINT_SAMPLES,
    INPUTS,
    KEPT,
    LABELS,
    LADDER,
    Heard,
    connect,
    send_all,
    sizes,
)
from tests.harness.crashing.victim import Death
from tests.harness.daemon_process import DaemonFailed, log_tail

_MESSAGES = 240
_PAUSE_S = 0.005  # each message gets a commit of its own, nearly
_WAL_PAGES = 24
_ENDS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
_QUIET_S = 60.0
_LOOK_S = 0.05
# The lives in the record end with a snapshot that a life without an end does not publish.
_NOT_LEARNED = "progress.version"


@dataclass(frozen=True)
class Recording:
    """Operations on the folder in order; each ack and the birth of each life with the number of them before it."""

    root: Path
    seed: int
    sizes: Sequence[int]
    operations: Sequence[disk.Operation]
    acks: Sequence[tuple[int, Heard]]
    births: Sequence[int]

    def heard_before(self, point: int) -> list[Heard]:
        """What a producer may have heard when so many operations were done."""
        return [heard for at, heard in self.acks if at <= point]


@dataclass(frozen=True)
class PowerLost:
    """What one power loss led to."""

    point: int
    kept: disk.Kept
    account: Account
    different: list[str]

    @property
    def broken(self) -> bool:
        """Whether a promise is."""
        account = self.account
        return bool(account.lost or account.twice or self.different or not account.in_order)


def record(folder: Path, seed: int) -> Recording:
    """Three lives. Raises DaemonFailed, and trace.TraceUnclear when something is not understood."""
    root = folder / "recorded"
    root.mkdir()
    home, counts = Home(root / "state"), sizes(_MESSAGES)
    reader = trace.Reader(root, home.state)
    output = folder / "trace"
    thirds = [_MESSAGES * part // 3 for part in range(4)]
    pids, contents = [], []
    with ForkServer(below=trace.command(output)) as traced:
        for (begin, end), how in zip(pairwise(thirds), _ENDS, strict=True):
            newest = max(manifest.seqs(home.state / "checkpoints"), default=0)
            life = traced.start(home, Death(wal_pages=_WAL_PAGES))
            pids.append(life.pid)
            with life.or_dies():
                life.await_ready()
                with connect(home.learn) as producer:
                    send_all(producer, seed, counts, begin=begin, end=end, pause_s=_PAUSE_S)
                _await_quiet(home, newest)
                code = life.end(how)
            if code != (-how if how == signal.SIGKILL else 0):
                raise DaemonFailed(f"a traced daemon left with exit code {code}\n{log_tail(home.log)}")
            contents.append(reader.contents())
    operations: list[disk.Operation] = []
    acks: list[tuple[int, Heard]] = []
    births = []
    for steps, there in zip(trace.by_life(output, pids), contents, strict=True):
        births.append(len(operations))
        for event in reader.read(steps):
            if isinstance(event.what, Heard):
                acks.append((len(operations), event.what))
            else:
                operations.append(event.what)
        reader.check(there)
    output.unlink()
    return Recording(root, seed, counts, operations, acks, births)


def _await_quiet(home: Home, begun_at: int) -> None:
    """Returns once a daemon that began at that checkpoint has nothing left to write. Raises DaemonFailed.

    A call that a kill cuts off is in the folder perhaps, and not in the record. To settle would be quiet, too, but
    would leave the next life nothing to recover from the journal.
    """
    deadline = time.monotonic() + _QUIET_S
    with Control(home.control) as control:
        learned = control.wait_idle(_QUIET_S)["applied_seq"]
        due = learned - (learned - begun_at) % CHECKPOINT_SAMPLES
        while control.status()["checkpoint_seq"] != due or not _is_trimmed(home.state):
            if time.monotonic() > deadline:
                raise DaemonFailed(
                    f"checkpoint {due} and what it sets free take {_QUIET_S:g} s\n{log_tail(home.log)}"
                )
            time.sleep(_LOOK_S)
    # Rows are gone once their transaction is done; SQLite may fold its log then. The same thread answers after that.
    connect(home.learn).close()


def _is_trimmed(state: Path) -> bool:
    """Whether no checkpoint is left over, and no row that all of the newest have learned: the last things it does."""
    folder = state / "checkpoints"
    kept = [Rung(seq, *manifest.clock_and_size(folder, seq)) for seq in manifest.seqs(folder)]
    oldest = min((rung.seq for rung in kept[-KEPT:]), default=0)
    ends = (row.first_seq + row.samples - 1 for row in rows_of(state / "journal.sqlite"))
    return not LADDER.surplus(kept) and all(end > oldest for end in ends)


def unsafe(folder: Path, recording: Recording) -> Iterator[str]:
    """What was promised and not yet flushed, at any point of the record."""
    state = disk.Disk(recording.root)
    safe = folder / "safe"
    acked = {at for at, _ in recording.acks}
    for at, operation in enumerate(recording.operations, start=1):
        state.do(operation)
        if isinstance(operation, disk.SyncEnds) or at in acked:
            state.write_after_power_loss(safe, "nothing", random.Random(0))
            missing = _missing(safe / "state", recording.heard_before(at))
            shutil.rmtree(safe)
            if missing:
                yield f"after operation {at}, {type(operation).__name__}: {missing}"


def _missing(state: Path, heard: Sequence[Heard]) -> str | None:
    """What neither a whole checkpoint nor the journal holds."""
    acked = max((each.first_seq + each.samples - 1 for each in heard), default=0)
    if not (state / "journal.sqlite").exists():
        return f"samples up to {acked} are acked, and there is no journal" if acked else None
    try:
        with closing(Journal(state / "journal.sqlite", inputs=INPUTS, labels=LABELS)) as journal:
            first, last = journal.first_seq, journal.head.seq
        checkpoints = manifest.seqs(state / "checkpoints")
        for each in checkpoints:
            manifest.verify(state / "checkpoints", each)
    except FFStreamError as error:
        return str(error)
    learned = max(checkpoints, default=0)
    if first > learned + 1:
        return f"the journal begins at {first}, and checkpoints end at {learned}"
    if last < max(acked, learned):
        return f"the journal ends at {last}; acked {acked}, checkpoints {learned}"
    return None


def points(recording: Recording, count: int, chance: random.Random) -> list[int]:
    """Where power is lost: half anywhere, half close to a flush or a change of names."""
    operations = recording.operations
    steps = [at for at, each in enumerate(operations) if not isinstance(each, disk.Write | disk.Truncate)]
    close = [chance.choice(steps) + chance.randint(0, 1) for _ in range(count - count // 2)]
    return sorted([*close, *(chance.randint(1, len(operations)) for _ in range(count // 2))])


def lose_power(
    folder: Path,
    recording: Recording,
    at: Sequence[int],
    forks: ForkServer,
    tell: Callable[[str], None] = lambda what: None,
    *,
    honest: bool = True,
) -> Iterator[PowerLost]:
    """Power losses at these points, in order. With `honest` false the disk forgets what it was told to flush."""
    chance = random.Random(recording.seed)
    expected = never_killed(folder / "powered", recording.seed, recording.sizes, forks)
    state, done = disk.Disk(recording.root, honest=honest), 0
    for number, point in enumerate(at):
        for operation in recording.operations[done:point]:
            state.do(operation)
        done = point
        kept = disk.KEPT[number % len(disk.KEPT)]
        home = Home(folder / f"after-{number}" / "state")
        state.write_after_power_loss(home.state.parent, kept, chance)
        heard = recording.heard_before(point)
        remains = _live_on(home, forks, recording, heard)
        different = [each for each in remains.differs_from(expected) if each != _NOT_LEARNED]
        result = PowerLost(point, kept, settle(recording.sizes, heard, remains), different)
        tell(f"power loss, keeping {kept}")
        if not result.broken:
            shutil.rmtree(home.state.parent)
        yield result
    shutil.rmtree(folder / "powered")


def _live_on(home: Home, forks: ForkServer, recording: Recording, heard: list[Heard]) -> Remains:
    """A daemon on what is left, a producer that sends what nobody acked; `heard` grows."""
    life = forks.start(home)
    with life.or_dies():
        life.await_ready()
        begin = max((each.n for each in heard), default=0)
        with connect(home.learn) as producer:
            producer.resume_at(begin + 1)
            send_all(producer, recording.seed, recording.sizes, begin=begin)
            heard += producer.heard
        end_in_order(home, life)
    return Remains.of(home.state)
