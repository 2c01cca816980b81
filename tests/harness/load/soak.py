"""All kinds of clients at the same time, for a long time: no promise may be broken, and no usage may grow.

At the end every message is accounted for. All producers send messages of the same size. Messages of producers that
wait for their acks are counted by the acks. A producer that is killed has stored all messages below the number that
the daemon expects next, because the messages of a client are stored in order. Messages of clients that do not read
their answers are sent once more until they are acked.
"""

import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ffstream.client import Control
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tests.harness.load import flood, misbehaving, well_behaved
from tests.harness.load.report import growth
from tests.harness.load.usage import Comparison, Tolerance, Usage, UsageSampler, compare_series
from tests.harness.load.workers import Worker, shared_count
from tests.harness.raw_client import next_number, resend_until_acked

# Checkpoints are frequent, so the journal is trimmed all the time and its files soon reach their full size.
SETTINGS = (
    "network.preset=fast",
    "checkpoint.every_s=5",
    "checkpoint.keep=2",
    f"limits.message_max_bytes={flood.MESSAGE_MAX_BYTES}",
)

TOLERANCES = {
    "rss_mb": Tolerance(25.0, 0.05, "allocator arenas and SQLite's cache; a leak exceeds this within an hour"),
    "descriptors": Tolerance(12, 0.1, "producers connect and leave: how many are connected differs by a few"),
    "threads": Tolerance(4, 0.0, "Starlette and the control socket start threads when they need them, and keep them"),
    "disk_mb": Tolerance(20.0, 0.25, "the samples between two checkpoints, and a checkpoint that is being written"),
}
assert well_behaved.SAMPLES == misbehaving.SAMPLES

GAP_MAX_S = 5.0  # without a prediction; a client would call a longer time an outage
_KILL_S = (2.0, 6.0)  # between two kills of a producer
_FLOOD_S = 8.0  # between two floods
_FLOOD_MESSAGES = 1000
_PAUSE_S = 0.02  # between two messages of a well-behaved client, so that a small machine is not overloaded
_WITHOUT_READING_PER_S = 20.0
_IDLE_S = 120.0
_ACCOUNT_S = 30.0
_READINGS = 200  # of the usage during a run, at most four a second
_MAX_PROBLEMS = 10  # in the report


@dataclass
class _KilledProducer:
    """A producer that is killed and started again with the same name."""

    client: str
    acked: Any = field(default_factory=shared_count)
    starts: int = 0


@dataclass
class _Observations:
    """What all clients observed."""

    clients: list[well_behaved.Observations] = field(default_factory=list)  # the well-behaved ones
    sent_without_reading: Mapping[str, int] = field(default_factory=dict)
    floods: list[flood.FloodResult] = field(default_factory=list)


def run(
    seconds: float,
    *,
    seed: int = 1,
    settings: tuple[str, ...] = (),
    warm_samples: int = well_behaved.WARM_SAMPLES,
    gap_max_s: float = GAP_MAX_S,
) -> dict[str, Any]:
    """Runs all clients. `broken` in the result lists the promises that are broken.

    A time of more than `gap_max_s` without a prediction counts as broken, too.
    """
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        warmed = well_behaved.warm_up(daemon.endpoints, warm_samples)
        killed = _KilledProducer("killed")
        with UsageSampler(daemon.pid, daemon.state, every_s=max(0.25, seconds / _READINGS)) as sampler:
            observed = _run_clients(daemon, killed, seconds, random.Random(seed))
        account = _account(daemon, observed, killed, warmed)
        alive = daemon.process.poll() is None
    comparisons = compare_all(sampler.values)
    steady = observed.clients[0]
    gap_s = steady.predictions.longest_gap_s()
    errors = [error for each in observed.clients for error in each.errors]
    broken = [*growth(comparisons), *errors[:_MAX_PROBLEMS], *account.problems]
    broken += [problem for each in observed.floods for problem in each.problems][:_MAX_PROBLEMS]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    if not steady.predictions.ended_s or gap_s > gap_max_s:
        broken.append(f"{gap_s:.1f} s without a prediction")
    usage: dict[str, Any] = {}
    for name, each in zip(TOLERANCES, comparisons, strict=True):
        usage[f"{name}_before"], usage[f"{name}_after"] = round(each.before, 1), round(each.after, 1)
    return {
        "seconds": round(seconds, 1),
        **usage,
        "flat": all(each.flat for each in comparisons),
        **account.describe(),
        "producers": sum(each.producers for each in observed.clients) + killed.starts,
        "kills": killed.starts - 1,
        "malformed": sum(each.messages for each in observed.floods),
        "predictions": len(steady.predictions.ended_s),
        "prediction_gap_s": round(gap_s, 3),
        "prediction_p99_ms": round(steady.predictions.percentile(99), 2),
        "ack_p99_ms": round(steady.acks.percentile(99), 2),
        "scrapes": len(steady.scrapes.ended_s),
        "others_errors": len(errors),
        "broken": broken,
    }


def compare_all(values: list[Usage]) -> list[Comparison]:
    """Each kind of usage over time, compared by its tolerance."""
    return [
        compare_series(name, [getattr(each, name) for each in values], tolerance)
        for name, tolerance in TOLERANCES.items()
    ]


def _run_clients(daemon: DaemonProcess, killed: _KilledProducer, seconds: float, rng: random.Random) -> _Observations:
    """Runs all clients for a time that begins when the last one has started. Returns when all have ended."""
    endpoints = daemon.endpoints
    observed = _Observations()
    with ExitStack() as stack:

        def start(*work: Any) -> Worker:
            return stack.enter_context(Worker(*work))

        def start_killed() -> Worker:
            killed.starts += 1
            worker = start(well_behaved.send_until_killed, endpoints["learn"], killed.client, _PAUSE_S, killed.acked)
            worker.await_started()  # a process that is still importing is not a producer yet
            return worker

        steady = start(well_behaved.run_one_of_each, endpoints, "steady", _PAUSE_S)
        visitors = [
            start(well_behaved.connect_and_leave, endpoints["learn"], f"visitor{at}", 20, _PAUSE_S) for at in range(2)
        ]
        without_reading = start(misbehaving.send_without_reading, endpoints, _WITHOUT_READING_PER_S)
        to_kill = start_killed()
        for worker in (steady, *visitors, without_reading):
            worker.await_started()
        flood_at = time.monotonic()
        end, kill_at = flood_at + seconds, flood_at + rng.uniform(*_KILL_S)
        flooding: Worker | None = None
        while (now := time.monotonic()) < end:
            if now >= kill_at:
                to_kill.kill()
                to_kill = start_killed()
                kill_at = time.monotonic() + rng.uniform(*_KILL_S)
            if flooding is not None and flooding.is_done:  # the loop does not wait for it, so that kills continue
                observed.floods.append(flooding.result())
                flooding, flood_at = None, now + _FLOOD_S
            if flooding is None and now >= flood_at:
                flooding = start(flood.send_flood, endpoints, _FLOOD_MESSAGES, rng.randrange(1 << 30), True)
            time.sleep(0.1)
        if flooding is not None:
            observed.floods.append(flooding.result())
        for worker in (steady, *visitors):
            worker.stop()
        observed.sent_without_reading = without_reading.finish()
        observed.clients = [worker.result() for worker in (steady, *visitors)]
    return observed


@dataclass
class _Account:
    """Numbers of samples at the end."""

    accepted: int = 0
    learned: int = 0
    acked: int = 0  # of well-behaved producers
    stored_of_killed: int = 0
    stored_without_reading: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def expected(self) -> int:
        """How many samples the daemon should have accepted and learned."""
        return self.acked + self.stored_of_killed + self.stored_without_reading

    @property
    def balanced(self) -> bool:
        return self.expected == self.accepted == self.learned

    def describe(self) -> dict[str, int]:
        """The values for the report."""
        return {"accepted": self.accepted, "learned": self.learned, "accounted": self.expected}


def _account(daemon: DaemonProcess, observed: _Observations, killed: _KilledProducer, warmed: int) -> _Account:
    """Compares what the clients know with what the daemon says, once everything is learned."""
    account, learn = _Account(acked=warmed), daemon.learn
    for each in observed.clients:
        account.acked += each.acked
        if each.acked != each.sent:
            account.problems.append(f"{each.acked} of {each.sent} samples of well-behaved producers were acked")
    for client, last in observed.sent_without_reading.items():
        resend_until_acked(learn, client, last, misbehaving.SAMPLES)
        account.stored_without_reading += last * misbehaving.SAMPLES
    deadline = time.monotonic() + _ACCOUNT_S
    with Control(daemon.control) as control:
        while True:  # messages of a killed producer may still arrive
            account.stored_of_killed = (next_number(learn, killed.client) - 1) * well_behaved.SAMPLES
            status = control.wait_idle(_IDLE_S)
            account.accepted, account.learned = status["accepted"], status["learned"]
            if account.balanced or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    if not account.balanced:
        account.problems.append(
            f"{account.accepted} samples accepted, {account.learned} learned, {account.expected} accounted for"
        )
    if killed.acked.value > account.stored_of_killed:
        account.problems.append(
            f"{killed.acked.value} samples of killed producers were acked, {account.stored_of_killed} are stored"
        )
    return account
