"""Measures how long learning stands still after kill -9 of an actor that runs a stage, and of a raylet, its node.

A daemon learns from a producer that never stops. `noticed`: from the kill until the daemon knows. `learning_again`:
until a microbatch is learned by the next training run. `longest_ack`: the longest time that a message waited for its
ack meanwhile.
"""

import os
import re
import signal
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import psutil

from ffstream.client import Producer
from tests.harness.daemon import DaemonProcess, temporary_daemon
from tests.support import wait_until
from tools.benchmarks.cluster.measured import INPUTS
from tools.benchmarks.cluster.rates import NODE, ray_nodes
from tools.benchmarks.report import Failed, Report

SETTINGS = ("network.preset=fast", "pipeline.engine=ray", "cluster.spares=1", "checkpoint.every_s=5")
_DEADLINE_S = 180.0
_BATCH = 64
_PAUSE_S = 0.02  # between two messages: about 3,000 samples a second, which leaves time for what is measured


def run(report: Report, rounds: int) -> None:
    """Reports medians over `rounds` kills of each kind."""
    figures: dict[str, list[float]] = {}
    with ray_nodes(2, 4) as nodes:
        settings = (*SETTINGS, f"cluster.address={nodes.address}")
        with temporary_daemon(*settings) as daemon, _stream(daemon) as acks:
            _await(daemon, lambda now: now["learned"] > 0, "learning")
            for _ in range(rounds):
                for what, kill in (("actor", _kill_actor), ("raylet", _kill_raylet)):
                    for figure, seconds in _measure(daemon, acks, partial(kill, nodes)):
                        figures.setdefault(f"{what}/{figure}", []).append(seconds)
                nodes.add_node(num_cpus=4, **NODE)
    for name, all_seconds in figures.items():
        report.add(f"cluster/recovery/{name}", statistics.median(all_seconds), "s", longest=max(all_seconds))


def _measure(daemon: DaemonProcess, acks: "_Acks", kill: Callable[[], None]) -> Iterator[tuple[str, float]]:
    time.sleep(2.0)  # spares are made, and checkpoints written, as in a daemon that has run for a while
    acks.longest_s = 0.0
    start = time.perf_counter()
    kill()
    _await(daemon, lambda now: now["interrupted"] > 0, "the loss is noticed")
    yield "noticed", time.perf_counter() - start
    _await(daemon, lambda now: now["interrupted"] == 0, "stages are placed again")
    learned = _figures(daemon)["learned"]
    _await(daemon, lambda now: now["learned"] > learned, "learning again")
    yield "learning_again", time.perf_counter() - start
    yield "longest_ack", acks.longest_s


def _await(daemon: DaemonProcess, condition: Callable[[Mapping[str, float]], bool], what: str) -> None:
    try:
        wait_until(lambda: condition(_figures(daemon)), _DEADLINE_S, what)
    except AssertionError as error:
        raise Failed(f"{error}\n{daemon.log_text()[-3000:]}") from None


def _figures(daemon: DaemonProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"{daemon.http}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    names = {"interrupted": "ffstream_learning_interrupted", "learned": "ffstream_samples_learned_total"}
    found = {key: re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for key, name in names.items()}
    return {key: float(match[1]) if match else 0.0 for key, match in found.items()}


# --- what is killed ----------------------------------------------------------------------------------------------


def _raylets(nodes: Any) -> list[psutil.Process]:
    """Of the nodes that are not the head."""
    return [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes.worker_nodes]


def _running_stages(raylet: psutil.Process) -> list[psutil.Process]:
    return [each for each in raylet.children(recursive=True) if "Stage.run" in " ".join(each.cmdline())]


def _kill_actor(nodes: Any) -> None:
    stages = [stage for raylet in _raylets(nodes) for stage in _running_stages(raylet)]
    os.kill(stages[0].pid, signal.SIGKILL)


def _kill_raylet(nodes: Any) -> None:
    node = next(
        node
        for node in sorted(nodes.worker_nodes, key=lambda node: node.node_id)
        if _running_stages(psutil.Process(node.all_processes["raylet"][0].process.pid))
    )
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    nodes.worker_nodes.remove(node)


# --- the producer ------------------------------------------------------------------------------------------------


class _Acks:
    """The longest wait for an ack since it was set to 0."""

    longest_s = 0.0


@contextmanager
def _stream(daemon: DaemonProcess) -> Iterator[_Acks]:
    """Sends a message, waits for its ack, and so on."""
    acks, stop = _Acks(), threading.Event()

    def work() -> None:
        draw = np.random.default_rng(0)
        images = draw.integers(0, 256, (_BATCH, INPUTS), dtype=np.uint8)
        labels = draw.integers(0, 10, _BATCH)
        with Producer(daemon.learn) as producer:
            while not stop.wait(_PAUSE_S):
                start = time.perf_counter()
                producer.send(images, labels)
                producer.flush(_DEADLINE_S)
                acks.longest_s = max(acks.longest_s, time.perf_counter() - start)

    thread = threading.Thread(target=work, name="producer")
    thread.start()
    try:
        yield acks
    finally:
        stop.set()
        thread.join(_DEADLINE_S)
