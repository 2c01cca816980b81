"""Power loss: a daemon starts again on what a disk may hold when everything that was not fsynced is lost.

strace records what daemons do to a state folder and which acks they send. Three daemons run on it one after another:
one is stopped, one is killed, one is stopped. SQLite copies its WAL into the database every few pages, so that this
happens often. For a point in the recording, `disk` creates a folder as power loss at this point may leave it. A
daemon starts on it, a producer that has received the acks sent before that point sends the rest of the stream, and in
the end the audit must be clean and the state equal to that of a daemon that was not interrupted.

This takes seconds for each point. A cheaper check covers every point: if only what was fsynced is there, each acked
sample is in an intact checkpoint or in the journal, and there is no gap between the two.
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
from tests.harness.crashing.audit import Audit, FinalState, audit, journal_rows
from tests.harness.crashing.fork_server import CrashDirectory, ForkServer, stop_cleanly
from tests.harness.crashing.instrumented import Instrumentation
from tests.harness.crashing.killing import run_without_kills
from tests.harness.crashing.stream import (
    CHECKPOINT_SAMPLES,
    KEPT_CHECKPOINTS,
    LABELS,
    LADDER,
    StoredMessage,
    Stream,
    connect,
    message_sizes,
    send_all,
)
from tests.harness.daemon import DaemonProcess

_MESSAGES = 240
_PAUSE_S = 0.005  # so that nearly every message gets its own commit
_WAL_PAGES = 24
_SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)
_IDLE_S = 60.0
_POLL_S = 0.05
# The recorded daemons publish a snapshot when they stop, which an uninterrupted daemon does not.
_NOT_COMPARED = "progress.version"


@dataclass(frozen=True)
class Recording:
    """The operations on the folder in order, and how many of them came before each ack and each start of a daemon."""

    root: Path
    stream: Stream
    sizes: Sequence[int]
    operations: Sequence[disk.Operation]
    acks: Sequence[tuple[int, StoredMessage]]
    starts: Sequence[int]

    def acks_before(self, point: int) -> list[StoredMessage]:
        """The acks that a producer may have received when this many operations were done."""
        return [ack for at, ack in self.acks if at <= point]


@dataclass(frozen=True)
class PowerLoss:
    """The outcome of one power loss."""

    point: int
    kept: disk.Kept
    audit: Audit
    different: list[str]

    @property
    def broken(self) -> bool:
        """Whether a promise is broken."""
        return bool(self.audit.lost or self.audit.twice or self.different or not self.audit.in_order)


def record(folder: Path, stream: Stream) -> Recording:
    """Runs three daemons under strace. Raises DaemonFailed, and trace.TraceError for a call that is not modelled."""
    root = folder / "recorded"
    root.mkdir()
    directory, sizes = CrashDirectory(root / "state", stream.settings), message_sizes(_MESSAGES)
    reader = trace.Reader(root, directory.state)
    output = folder / "trace"
    thirds = [_MESSAGES * part // 3 for part in range(4)]
    pids, contents = [], []
    with ForkServer(wrapper=trace.command(output)) as forks:
        for (begin, end), number in zip(pairwise(thirds), _SIGNALS, strict=True):
            newest = max(manifest.seqs(directory.state / "checkpoints"), default=0)
            with forks.start(directory, Instrumentation(wal_pages=_WAL_PAGES)) as daemon:
                pids.append(daemon.pid)
                daemon.await_ready()
                with connect(directory.learn) as producer:
                    send_all(producer, stream, sizes, begin=begin, end=end, pause_s=_PAUSE_S)
                _await_idle(daemon, newest)
                code = daemon.kill() if number == signal.SIGKILL else daemon.terminate()
            if code != (-number if number == signal.SIGKILL else 0):
                raise daemon.failure(f"a traced daemon left with exit code {code}")
            contents.append(reader.contents())
    operations: list[disk.Operation] = []
    acks: list[tuple[int, StoredMessage]] = []
    starts = []
    for steps, content in zip(trace.split_by_daemon(output, pids), contents, strict=True):
        starts.append(len(operations))
        for event in reader.read(steps):
            if isinstance(event, StoredMessage):
                acks.append((len(operations), event))
            else:
                operations.append(event)
        reader.check(content)
    output.unlink()
    return Recording(root, stream, sizes, operations, acks, starts)


def _await_idle(daemon: DaemonProcess, start_seq: int) -> None:
    """Waits until a daemon that started from checkpoint `start_seq` has nothing left to write. Raises DaemonFailed.

    A call that SIGKILL interrupts may change the folder and is not in the recording, so there must be none. A
    checkpoint on request would have the same effect, but would leave the next daemon nothing to recover from the
    journal.
    """
    deadline = time.monotonic() + _IDLE_S
    with Control(daemon.control) as control:
        learned = control.wait_idle(_IDLE_S)["applied_seq"]
        due = learned - (learned - start_seq) % CHECKPOINT_SAMPLES
        while control.status()["checkpoint_seq"] != due or not _is_trimmed(daemon.state):
            if time.monotonic() > deadline:
                raise daemon.failure(f"checkpoint {due} and the trim after it take more than {_IDLE_S:g} s")
            time.sleep(_POLL_S)
    # The rows are gone when their transaction is done, but SQLite may then still copy its WAL into the database. The
    # same thread answers a new producer, and only after that.
    connect(daemon.learn).close()


def _is_trimmed(state: Path) -> bool:
    """Whether every surplus checkpoint and every journal row that the kept ones have learned is deleted."""
    folder = state / "checkpoints"
    kept = [Rung(seq, *manifest.clock_and_size(folder, seq)) for seq in manifest.seqs(folder)]
    oldest = min((rung.seq for rung in kept[-KEPT_CHECKPOINTS:]), default=0)
    return not LADDER.surplus(kept) and all(row.last_seq > oldest for row in journal_rows(state / "journal.sqlite"))


def missing_when_only_fsynced(folder: Path, recording: Recording) -> Iterator[str]:
    """Promises that are broken if power is lost at some point and only what was fsynced is there."""
    state = disk.Disk(recording.root)
    durable = folder / "durable"
    acked = {at for at, _ in recording.acks}
    for at, operation in enumerate(recording.operations, start=1):
        state.apply(operation)
        if isinstance(operation, disk.FsyncEnds) or at in acked:
            state.write_after_power_loss(durable, "nothing", random.Random(0))
            missing = _missing(durable / "state", recording.acks_before(at), recording.stream.inputs)
            shutil.rmtree(durable)
            if missing:
                yield f"after operation {at}, {type(operation).__name__}: {missing}"


def _missing(state: Path, acks: Sequence[StoredMessage], inputs: int) -> str | None:
    """What neither an intact checkpoint nor the journal holds."""
    acked = max((each.last_seq for each in acks), default=0)
    if not (state / "journal.sqlite").exists():
        return f"samples up to {acked} are acked, but there is no journal" if acked else None
    try:
        with closing(Journal(state / "journal.sqlite", inputs=inputs, labels=LABELS)) as journal:
            first, last = journal.first_seq, journal.head.seq
        checkpoints = manifest.seqs(state / "checkpoints")
        for each in checkpoints:
            manifest.verify(state / "checkpoints", each)
    except FFStreamError as error:
        return str(error)
    learned = max(checkpoints, default=0)
    if first > learned + 1:
        return f"the journal begins at {first}, and the newest checkpoint ends at {learned}"
    if last < max(acked, learned):
        return f"the journal ends at {last}; acked {acked}, newest checkpoint {learned}"
    return None


def choose_points(recording: Recording, count: int, rng: random.Random) -> list[int]:
    """Where power is lost: half of the points anywhere, half next to an fsync or a change of names."""
    operations = recording.operations
    steps = [at for at, each in enumerate(operations) if not isinstance(each, disk.Write | disk.Truncate)]
    close = [rng.choice(steps) + rng.randint(0, 1) for _ in range(count - count // 2)]
    return sorted([*close, *(rng.randint(1, len(operations)) for _ in range(count // 2))])


def lose_power(
    folder: Path,
    recording: Recording,
    points: Sequence[int],
    forks: ForkServer,
    report: Callable[[str], None] = lambda what: None,
    *,
    honors_fsync: bool = True,
) -> Iterator[PowerLoss]:
    """Power losses at these points, in order. With `honors_fsync` false the disk loses what was fsynced, too."""
    rng = random.Random(recording.stream.seed)
    expected = run_without_kills(folder / "without-power-loss", recording.stream, recording.sizes, forks)
    state, done = disk.Disk(recording.root, honors_fsync=honors_fsync), 0
    for number, point in enumerate(points):
        for operation in recording.operations[done:point]:
            state.apply(operation)
        done = point
        kept = disk.KEPT[number % len(disk.KEPT)]
        directory = CrashDirectory(folder / f"after-{number}" / "state", recording.stream.settings)
        state.write_after_power_loss(directory.state.parent, kept, rng)
        acks = recording.acks_before(point)
        final = _continue(directory, forks, recording, acks)
        different = [each for each in final.differences(expected) if each != _NOT_COMPARED]
        result = PowerLoss(point, kept, audit(recording.sizes, acks, final), different)
        report(f"power loss, keeping {kept}")
        if not result.broken:
            shutil.rmtree(directory.state.parent)
        yield result
    shutil.rmtree(folder / "without-power-loss")


def _continue(
    directory: CrashDirectory, forks: ForkServer, recording: Recording, acks: list[StoredMessage]
) -> FinalState:
    """Starts a daemon on what is left and sends all messages that are not in `acks`. Adds the new acks to it."""
    with forks.start(directory) as daemon:
        daemon.await_ready()
        begin = max((each.n for each in acks), default=0)
        with connect(directory.learn) as producer:
            producer.resume_at(begin + 1)
            send_all(producer, recording.stream, recording.sizes, begin=begin)
            acks += producer.acks
        stop_cleanly(daemon)
    return FinalState.read(directory.state)
