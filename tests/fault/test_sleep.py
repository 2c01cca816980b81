"""SIGKILL of a network that learns in phases: by counts, and in a quiet stream, where the clock decides on sleep."""

import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ffstream.client import Control
from ffstream.errors import FFStreamError
from ffstream.journal import database, events
from ffstream.journal.events import Event
from ffstream.journal.journal import Entry, Journal
from ffstream.journal.schema import JOURNAL
from tests.harness.crashing.audit import Audit, FinalState
from tests.harness.crashing.fork_server import CrashDirectory, ForkServer, start_as_user, stop_cleanly
from tests.harness.crashing.instrumented import Instrumentation
from tests.harness.crashing.killing import KillRun
from tests.harness.crashing.stream import (
    BATCH,
    CLIENT,
    DENSE,
    LABELS,
    Stream,
    connect,
    message_sizes,
    send_all,
)
from tests.harness.daemon import DaemonProcess
from tests.support import wait_until

DEADLINE_S = 60.0
PHASES = (*DENSE, "network.preset=wake-sleep", "network.wake=3", "network.sleep=2")
KEPT = (*PHASES, "checkpoint.keep=1000")  # after the first checkpoint no sample and no decision is removed
QUIET = (*KEPT, "learning.sleep_when_quiet_s=0.02", "learning.sleep_when_quiet_max_microbatches=64")
STREAM = Stream(3, PHASES)
LIFE = 20  # messages that each daemon gets


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with ForkServer() as server:
        yield server


@pytest.mark.timeout(600)
def test_phases_by_counts_survive_kills(tmp_path: Path, forks: ForkServer) -> None:
    killed = KillRun(tmp_path, Stream(2, PHASES), forks).run(9, lambda place: None)
    assert killed.audit == Audit(acked=killed.audit.acked, lost=0, twice=0, in_order=True)
    assert killed.different == []
    assert killed.by_failpoint.total() == 9


@pytest.mark.timeout(600)
def test_sleep_in_a_quiet_stream_survives_kills(tmp_path: Path, forks: ForkServer) -> None:
    """The state at the end is that of a daemon that learns the same samples and events from a new journal."""
    directory, awake = CrashDirectory(tmp_path / "state", QUIET), CrashDirectory(tmp_path / "state", KEPT)
    lives = [
        Instrumentation("sleep.before"),
        Instrumentation("sleep.recorded"),
        Instrumentation("sleep.recorded", 3),
        Instrumentation(),  # killed while it sleeps
        Instrumentation(),  # killed after a checkpoint that it takes while it sleeps
        Instrumentation("checkpoint.manifest.after"),
        Instrumentation(),  # another one stands by, and takes over
    ]
    sizes = message_sizes(LIFE * (len(lives) + 2))
    with forks.start(awake) as daemon:
        daemon.await_ready()
        send_life(awake, sizes, 0)
        stop_cleanly(daemon)  # writes the first checkpoint, before the first decision
    with ThreadPoolExecutor(1) as sender:
        for number, instrumentation in enumerate(lives, 1):
            with forks.start(directory, instrumentation) as daemon:
                sent = sender.submit(send_life, directory, sizes, number)
                # A daemon that kills itself when it sleeps may do so before it is ready. The next one then gets these
                # messages.
                if not (instrumentation.failpoint or "").startswith("sleep"):
                    daemon.await_ready()
                    sent.result(DEADLINE_S)
                    await_sleep(directory, sum(sizes[: number * LIFE + LIFE]))
                if number in (5, 6):
                    request_checkpoint(daemon)
                if number == 7:
                    take_over(directory, daemon)
                elif instrumentation.failpoint is None:
                    daemon.kill()
                assert daemon.wait() == -signal.SIGKILL
    with forks.start(awake) as daemon:
        daemon.await_ready()
        send_life(awake, sizes, len(lives) + 1)
        stop_cleanly(daemon)
    decided = sleeps(directory.state / JOURNAL)
    assert len(decided) > len(lives) // 2, "too few quiet periods, so this run proves little"
    want = learned_from(decided, tmp_path, sizes, forks)
    # A requested checkpoint publishes a snapshot, which changes this counter.
    assert set(FinalState.read(directory.state).differences(want)) <= {"progress.version"}


def send_life(directory: CrashDirectory, sizes: list[int], number: int) -> None:
    """Sends the messages of one daemon's life, all of which are acked."""
    with connect(directory.learn) as producer:
        producer.resume_at(number * LIFE + 1)
        send_all(producer, STREAM, sizes, begin=number * LIFE, end=(number + 1) * LIFE)


def take_over(directory: CrashDirectory, daemon: DaemonProcess) -> None:
    """Kills a daemon while another one stands by. That one learns the rest, and is killed too."""
    standby = start_as_user(directory, standby=True)
    try:
        standby.await_standby()
        daemon.kill()
        standby.await_ready()
    finally:
        standby.kill()


def request_checkpoint(daemon: DaemonProcess) -> None:
    """Returns when it is written, or when the daemon has killed itself meanwhile."""
    with Control(daemon.control) as control, suppress(FFStreamError):
        control.request("checkpoint", timeout_s=5.0)


def await_sleep(directory: CrashDirectory, acked: int) -> None:
    """Returns once a decision to sleep after these samples is in the journal."""
    end = acked // BATCH * BATCH
    wait_until(lambda: sleeps(directory.state / JOURNAL)[end], DEADLINE_S, "sleep")


def sleeps(journal: Path) -> Counter[int]:
    with closing(database.connect(journal, read_only=True)) as connection:
        return Counter(events.sleeps(connection, journal))


def learned_from(decided: Counter[int], folder: Path, sizes: list[int], forks: ForkServer) -> FinalState:
    """What a daemon leaves that finds all samples and all events in its journal, and is never killed."""
    directory = CrashDirectory(folder / "whole", PHASES)
    directory.state.mkdir()
    path = directory.state / JOURNAL
    journal = Journal(path, inputs=STREAM.inputs, labels=LABELS)
    for at, size in enumerate(sizes):
        images, labels = STREAM.message(at, size)
        entry = Entry(CLIENT, at + 1, 1, size, "uint8", labels.astype("<u2").tobytes(), images.tobytes())
        journal.append([entry])
    journal.close()
    for seq in sorted(decided.elements()):
        events.add(path, Event(events.SLEEP, seq))
    with forks.start(directory) as daemon:
        daemon.await_ready()
        stop_cleanly(daemon)
    return FinalState.read(directory.state)
