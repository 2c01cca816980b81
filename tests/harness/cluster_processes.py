"""The processes of a daemon whose stages run in a cluster on this machine, by the part that they play.

daemon ─ keeper ─┬ gcs (the head) and other parts of Ray
                 └ raylet ─┬ actors
                           └ agents
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import psutil

from ffstream.client import Control
from ffstream.errors import FFStreamError
from tests.harness.daemon import DaemonProcess

_KEEPER: Final = "ffstream.pipeline.cluster.keeper"
_ACTOR: Final = "ray::_RayStage"
_POLL_S: Final = 0.1
_ANSWER_S: Final = 30.0


class Learning(NamedTuple):
    """What a daemon says of its learning. `actors` is empty unless all stages are placed."""

    applied: int
    actors: tuple[int, ...]  # pids


def read_learning(daemon: DaemonProcess) -> Learning:
    """What it says now. Raises DaemonFailed when it has ended, and FFStreamError."""
    try:
        with Control(daemon.control) as control:
            status = control.status(_ANSWER_S)
    except FFStreamError:
        daemon.check()
        raise
    actors = tuple(stage["pid"] for stage in status["stages"] if "pid" in stage)
    is_placed = status["interrupted"] is None and len(actors) == len(status["stages"])
    return Learning(status["applied_seq"], actors if is_placed else ())


def keeper_of(daemon: DaemonProcess) -> psutil.Process | None:
    """Its keeper: the newest, because one that ends may still be there."""
    found = [each for each in _children(daemon.pid) if _KEEPER in _command(each)]
    return max(found, key=psutil.Process.create_time, default=None)


def child_of(parent: psutil.Process | None, name: str) -> psutil.Process | None:
    """A child with that name."""
    return None if parent is None else next((each for each in _children(parent.pid) if _name(each) == name), None)


def parts_of(daemon: DaemonProcess, actors: Sequence[int] = ()) -> dict[str, psutil.Process]:
    """The processes that are there, by part: `keeper`, `gcs`, `raylet`, `actor 0` … for the pids in `actors`, and if
    there are any, `spare 0` … for the other actors."""
    keeper = keeper_of(daemon)
    raylet = child_of(keeper, "raylet")
    found = {"keeper": keeper, "gcs": child_of(keeper, "gcs_server"), "raylet": raylet}
    for number, pid in enumerate(actors):
        found[f"actor {number}"] = _process(pid)
    if actors and raylet is not None:
        spares = [each for each in _children(raylet.pid) if each.pid not in actors and _name(each).startswith(_ACTOR)]
        found |= {f"spare {number}": each for number, each in enumerate(spares)}
    return {part: process for part, process in found.items() if process is not None}


def resident_mb(daemon: DaemonProcess, actors: Sequence[int]) -> dict[str, float]:
    """Resident memory in units of 10⁶ bytes: of the daemon, its keeper, the actor of each stage, each spare actor
    and the rest of Ray."""
    own = {part: each for part, each in parts_of(daemon, actors).items() if part not in ("gcs", "raylet")}
    rest = [each for each in descendants(daemon.pid) if each not in own.values()]
    memory = {"daemon": daemon.resident_mb()} | {part: _resident_mb(each) for part, each in own.items()}
    return memory | {"ray": sum(map(_resident_mb, rest))}


def descendants(pid: int) -> list[psutil.Process]:
    """All that run, without those that have ended and were not waited for."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [each for each in found if is_running(each)]


def is_running(process: psutil.Process) -> bool:
    """Whether it has not ended."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def left_after(find: Callable[[], Sequence[psutil.Process]], timeout_s: float) -> list[str]:
    """What those processes that have not ended by then are. Kills them."""
    deadline = time.monotonic() + timeout_s
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    described = [f"{each.pid} {_name(each)} {' '.join(_command(each))[:200]}" for each in left]
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    return described


def _children(pid: int) -> list[psutil.Process]:
    try:
        return [each for each in psutil.Process(pid).children() if is_running(each)]
    except psutil.NoSuchProcess:
        return []


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if is_running(process) else None


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _resident_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss / 1e6)
    except psutil.NoSuchProcess:
        return 0.0
