"""Everybody at once, for long: what the daemon promises holds all the time, and what it holds stays flat.

Every producer sends messages of the same size, and in the end each message is accounted for: those of producers that
waited for their acks by the acks; those of killed ones by the number that the daemon would give them next, because a
producer's messages are stored in order; those of clients that did not read by sending all of them once more.
"""

import random
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ffstream.client import Control
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tests.harness.load import flood, polite, rude
from tests.harness.load.figures import Figures, Tolerance, Verdict, Watcher, judge_series
from tests.harness.load.peer import next_number, settle
from tests.harness.load.report import grown
from tests.harness.load.workers import Worker, shared_count

# Checkpoints so often that rows are deleted from the journal all the time, and its files reach their full size soon.
SETTINGS = (
    "network.preset=fast",
    "checkpoint.every_s=5",
    "checkpoint.keep=2",
    f"limits.message_max_bytes={flood.MESSAGE_MAX_BYTES}",
)

TOLERANCES = {
    "rss_mb": Tolerance(
        25.0, 0.05, "allocator arenas and SQLite's cache; a leak worth the name exceeds it within an hour"
    ),
    "descriptors": Tolerance(12, 0.1, "producers come and go: how many are there in a fifth differs by a few"),
    "threads": Tolerance(4, 0.0, "Starlette and the control socket make threads when needed, and keep them"),
    "disk_mb": Tolerance(
        20.0, 0.25, "the samples between two checkpoints, and a third checkpoint while it is written"
    ),
}
assert polite.SAMPLES == rude.SAMPLES

GAP_MAX_S = 5.0  # without a prediction: a client would call that an outage
_KILL_S = (2.0, 6.0)  # between two deaths of a producer
_FLOOD_S = 8.0  # between two floods
_FLOOD_MESSAGES = 1000
_PAUSE_S = 0.02  # between two messages of a polite client: a load that leaves a small machine air
_RUDE_PER_SECOND = 20.0
_IDLE_S = 120.0
_ACCOUNT_S = 30.0
_LOOKS = 200  # over the run, at most four a second
_WORST = 10


@dataclass
class _Killed:
    """A producer that is killed and started again under its name."""

    client: str
    acked: Any = field(default_factory=shared_count)
    lives: int = 0


@dataclass
class _Run:
    """What the run saw."""

    steady: list[polite.Polite] = field(default_factory=list)
    rude_sent: Mapping[str, int] = field(default_factory=dict)
    poured: list[flood.Poured] = field(default_factory=list)


def run(
    seconds: float,
    *,
    seed: int = 1,
    settings: tuple[str, ...] = (),
    warm_samples: int = polite.WARM_SAMPLES,
    gap_max_s: float = GAP_MAX_S,
) -> dict[str, Any]:
    """The whole run. Its `broken` lists what went wrong; so is a time of `gap_max_s` without a prediction."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        warmed = polite.warm_up(daemon.endpoints, warm_samples)
        killed = _Killed("killed")
        with Watcher(daemon.pid, daemon.state, every_s=max(0.25, seconds / _LOOKS)) as watcher:
            seen = _everybody(daemon, killed, seconds, random.Random(seed))
        account = _account(daemon, seen, killed, warmed)
        alive = daemon.process.poll() is None
    verdicts = judge_all(watcher.figures)
    predictions = seen.steady[0].predictions
    gap_s = predictions.longest_gap_s()
    errors = [error for each in seen.steady for error in each.errors]
    broken = [*grown(verdicts), *errors[:_WORST], *account.complaints]
    broken += [complaint for each in seen.poured for complaint in each.complaints][:_WORST]
    if not alive or daemon.wait():
        broken.append(f"the daemon ended with exit code {daemon.wait()}")
    if not predictions.ended_s or gap_s > gap_max_s:
        broken.append(f"{gap_s:.1f} s without a prediction")
    figures: dict[str, Any] = {}
    for name, verdict in zip(TOLERANCES, verdicts, strict=True):
        figures[f"{name}_before"], figures[f"{name}_after"] = round(verdict.before, 1), round(verdict.after, 1)
    return {
        "seconds": round(seconds, 1),
        **figures,
        "flat": all(verdict.flat for verdict in verdicts),
        **account.describe(),
        "producers": sum(each.producers for each in seen.steady) + killed.lives,
        "kills": killed.lives - 1,
        "malformed": sum(each.answerable + each.raw_connections + each.oversize for each in seen.poured),
        "predictions": len(predictions.ended_s),
        "prediction_gap_s": round(gap_s, 3),
        "prediction_p99_ms": round(predictions.percentile(99), 2),
        "ack_p99_ms": round(seen.steady[0].acks.percentile(99), 2),
        "scrapes": len(seen.steady[0].scrapes.ended_s),
        "others_errors": len(errors),
        "broken": broken,
    }


def judge_all(figures: list[Figures]) -> list[Verdict]:
    """Each figure over time against its tolerance."""
    return [
        judge_series(name, [getattr(each, name) for each in figures], tolerance)
        for name, tolerance in TOLERANCES.items()
    ]


def _everybody(daemon: DaemonProcess, killed: _Killed, seconds: float, chance: random.Random) -> _Run:
    """All loads for that long, from when the last has begun; returns when all have ended."""
    endpoints = daemon.endpoints
    seen = _Run()
    with ExitStack() as stack:

        def start(*work: Any) -> Worker:
            return stack.enter_context(Worker(*work))

        def start_victim() -> Worker:
            killed.lives += 1
            worker = start(polite.until_killed, endpoints["learn"], killed.client, _PAUSE_S, killed.acked)
            worker.await_begun()  # a process that only imports is no producer that is killed
            return worker

        steady = start(polite.serve_all, endpoints, "steady", _PAUSE_S)
        visitors = [start(polite.come_and_go, endpoints["learn"], f"visitor{at}", 20, _PAUSE_S) for at in range(2)]
        rough = start(rude.send_without_reading, endpoints, _RUDE_PER_SECOND)
        victim = start_victim()
        for worker in (steady, *visitors, rough):
            worker.await_begun()
        flood_at = time.monotonic()
        end, kill_at = flood_at + seconds, flood_at + chance.uniform(*_KILL_S)
        pouring: Worker | None = None
        while (now := time.monotonic()) < end:
            if now >= kill_at:
                victim.kill()
                victim = start_victim()
                kill_at = time.monotonic() + chance.uniform(*_KILL_S)
            if pouring is not None and pouring.is_done:  # not waited for: others come, go and die meanwhile
                seen.poured.append(pouring.result())
                pouring, flood_at = None, now + _FLOOD_S
            if pouring is None and now >= flood_at:
                pouring = start(flood.pour, endpoints, _FLOOD_MESSAGES, chance.randrange(1 << 30), True)
            time.sleep(0.1)
        if pouring is not None:
            seen.poured.append(pouring.result())
        for worker in (steady, *visitors):
            worker.stop()
        seen.rude_sent = rough.finish()
        seen.steady = [worker.result() for worker in (steady, *visitors)]
    return seen


@dataclass
class _Account:
    """Samples in the end."""

    accepted: int = 0
    learned: int = 0
    acked_polite: int = 0
    stored_killed: int = 0
    stored_rude: int = 0
    complaints: list[str] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Samples that should be there."""
        return self.acked_polite + self.stored_killed + self.stored_rude

    def describe(self) -> dict[str, int]:
        """The figures of a report."""
        return {"accepted": self.accepted, "learned": self.learned, "accounted": self.known}


def _account(daemon: DaemonProcess, seen: _Run, killed: _Killed, warmed: int) -> _Account:
    """Holds what the clients know against what the daemon says, when all is learned."""
    account, learn = _Account(acked_polite=warmed), daemon.endpoints["learn"]
    for each in seen.steady:
        account.acked_polite += each.acked
        if each.acked != each.sent:
            account.complaints.append(f"of {each.sent} samples of producers that waited {each.acked} were acked")
    for client, last in seen.rude_sent.items():
        settle(learn, client, last, rude.SAMPLES)
        account.stored_rude += last * rude.SAMPLES
    deadline = time.monotonic() + _ACCOUNT_S
    with Control(daemon.endpoints["control"]) as control:
        while True:  # what a killed producer had under way may still come in
            account.stored_killed = (next_number(learn, killed.client) - 1) * polite.SAMPLES
            status = control.wait_idle(_IDLE_S)
            account.accepted, account.learned = status["accepted"], status["learned"]
            if account.known == account.accepted == account.learned or time.monotonic() > deadline:
                break
            time.sleep(0.2)
    if not account.known == account.accepted == account.learned:
        account.complaints.append(
            f"{account.accepted} samples accepted, {account.learned} learned, {account.known} accounted for"
        )
    if killed.acked.value > account.stored_killed:
        account.complaints.append(
            f"killed producers had {killed.acked.value} samples acked, {account.stored_killed} are stored"
        )
    return account
