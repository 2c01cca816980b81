"""Measures samples a second of an engine: the pipeline of a daemon, on a journal that holds all samples."""

import atexit
import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ffstream.config import Config
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import Engine, make_engine
from ffstream.pipeline.messages import Barrier
from ffstream.pipeline.pipeline import Pipeline
from ffstream.pipeline.resume_state import ResumeState
from tools.benchmarks.cluster.measured import INPUTS, recipe_of
from tools.benchmarks.journals import fill
from tools.benchmarks.listener import Learned

_DEADLINE_S = 600.0
_STOP_S = 60.0
TUNED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
NODE = {"object_store_memory": 100_000_000, "include_dashboard": False}  # options of a node


@contextmanager
def ray_nodes(nodes: int, cpus: int) -> Iterator[Any]:
    """A head without processors and so many nodes on this machine, each with its own raylet: a ray Cluster.

    In the block the environment has what makes processes belong to it.
    """
    with tempfile.TemporaryDirectory(prefix="ray") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder, "ray").mkdir()
        for name, value in {**TUNED, "RAY_AUTH_TOKEN_PATH": str(_token()), "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster  # reads the environment when it is imported

        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **NODE})
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=cpus, **NODE)
            yield cluster
        finally:
            cluster.shutdown()


@cache
def _token() -> Path:
    """A file with a token. Ray reads it once in a process."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    return token


def config_of(name: str, batch: int, engine: Mapping[str, Any]) -> Config:
    """`engine` has the sections `pipeline` and `cluster`."""
    return Config.model_validate(
        {
            "network": recipe_of(name, batch),
            "pipeline": {"device": "cpu", **engine.get("pipeline", {})},
            "cluster": engine.get("cluster", {}),
            "checkpoint": {"every_samples": 0, "every_s": 0},
        }
    )


@contextmanager
def started(config: Config) -> Iterator[Engine]:
    """The engine, which serves one measurement after the other."""
    engine = make_engine(config, Metrics())
    try:
        engine.connect()
        yield engine
    finally:
        engine.stop(_STOP_S)


class Speed(NamedTuple):
    """Of a pipeline. `processors`: how many it used, together with all processes below this one."""

    samples_per_s: float
    processors: float


def speed(config: Config, engine: Engine, batches: int) -> Speed:
    """Without the first quarter of the microbatches: the pipeline fills, kernels are loaded."""
    batch, every = config.network.batch_size, config.learning.publish_every
    warm = max(1, batches // 4 // every) * every
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal.sqlite")
        journal = Journal(path, inputs=INPUTS, labels=config.network.labels)
        fill(journal, INPUTS, batch, batches)
        listener = _Timed(warm * batch, batches * batch)
        pipeline = Pipeline(config, engine, journal, ResumeState(), listener, Metrics())
        pipeline.start()
        try:
            seconds, processor_s = listener.span()
        finally:
            if not pipeline.stop(_STOP_S, save=False):
                pipeline.abort(_STOP_S)
            journal.close()
        return Speed((batches - warm) * batch / seconds, processor_s / seconds)


class _Timed(Learned):
    """Notes the time at two sequence numbers."""

    def __init__(self, begin: int, end: int) -> None:
        super().__init__(end)
        self._times: dict[int, tuple[float, float]] = {}
        self._begin, self._end = begin, end

    def on_barrier(self, barrier: Barrier) -> None:
        """Notes the time, and notices the end."""
        if barrier.seq in (self._begin, self._end):
            self._times.setdefault(barrier.seq, (time.perf_counter(), _processor_s()))
        super().on_barrier(barrier)

    def span(self) -> tuple[float, float]:
        """Seconds between them, and processor time, once the end is noticed. Raises RuntimeError."""
        self.wait(_DEADLINE_S)
        (begin, used), (end, used_then) = self._times[self._begin], self._times[self._end]
        return end - begin, used_then - used


def _processor_s() -> float:
    """Of this process and all below it: keeper, nodes, actors."""
    used = time.process_time()
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(each.cpu_times()[:2])
    return used
