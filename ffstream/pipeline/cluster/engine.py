"""The engine `ray`: each stage in an actor of a Ray cluster.

The daemon does not use Ray itself: its keeper does. See `keeper` and `stages`.
"""

import importlib.util
import logging
import math
import threading
import time
from collections import Counter
from typing import Any

import zmq
from torch import Tensor

from ffstream.checkpoint.replicas import MERGER
from ffstream.config import Config, amounts
from ffstream.errors import ConfigError, StagesLost
from ffstream.ff.merging import averaged
from ffstream.ff.placement import Placement as Memory
from ffstream.metrics import Metrics
from ffstream.pipeline.cluster.inbox import Inbox
from ffstream.pipeline.cluster.keeper_process import KeeperProcess
from ffstream.pipeline.cluster.line import Line, StageStart
from ffstream.pipeline.cluster.requests import Connect, Slot, is_stopping
from ffstream.pipeline.cluster.stages import ClusterStages, Placement
from ffstream.pipeline.device import bound_compiled_products
from ffstream.pipeline.engine import Hardware
from ffstream.pipeline.live_error import LIVE
from ffstream.pipeline.members import members_of
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import OnFailure

log = logging.getLogger(__name__)


def check_installed() -> None:
    """Raises ConfigError if Ray is not there."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            'pipeline.engine = "ray": the package ray is not installed',
            hint="pip install 'ffstream[ray]', on every node; or set pipeline.engine to threads",
        )


class ClusterEngine:
    """See `engine.Engine`."""

    is_remote = True

    def __init__(self, config: Config, metrics: Metrics) -> None:
        check_installed()
        bound_compiled_products()  # the weights that predict here have the precision of the stages
        self._config = config
        self._metrics = metrics
        self._slots = _slots(config)
        self._context: zmq.Context[Any] = zmq.Context()
        # At most three for each stage, with its monitor, and for each replica; as many of a run that is ending.
        self._context.set(zmq.MAX_SOCKETS, 1023 + 12 * len(self._slots))
        self._keeper: KeeperProcess | None = None
        self._stages: ClusterStages | None = None
        self._cancelled = threading.Event()
        self._connecting = threading.Lock()
        self._nodes = 0

    def connect(self) -> None:
        """Starts a keeper, if none runs. Raises StagesLost."""
        with self._connecting:
            keeper = self._keeper
            if keeper is not None and not keeper.is_gone:
                return
            if keeper is not None:
                keeper.stop(1.0)
            self._keeper = None
            if self._cancelled.is_set():
                raise is_stopping()
            self._keeper = self._start_keeper()

    def _start_keeper(self) -> KeeperProcess:
        cluster, began = self._config.cluster, time.monotonic()
        # A cluster on this machine has room for all stages and spares.
        wanted = [*self._slots, *(kind for kind in dict.fromkeys(self._slots) for _ in range(cluster.spares))]
        total: Counter[str] = Counter()
        for slot in wanted:
            total.update(dict(slot.resources))
        cpus = math.ceil(sum(slot.cpus for slot in wanted)) or 1
        try:
            keeper = KeeperProcess(cluster.address, self._cancelled, self._on_lost, self._on_keeper_failure)
        except OSError as error:  # no memory or no descriptor is free at present
            hint = "it is tried again; memory, processes or files may be used up"
            raise StagesLost(f"the keeper cannot be started: {error.strerror}", hint=hint) from error
        try:
            request = Connect(cluster.address, cpus, tuple(total.items()), cluster.spares)
            self._nodes = keeper.connect(request, cluster.start_timeout_s).nodes
        except StagesLost:
            keeper.stop(1.0)
            raise
        log.info(
            "connected to the cluster address=%s nodes=%d keeper=%d seconds=%.1f",
            cluster.address,
            self._nodes,
            keeper.pid,
            time.monotonic() - began,
        )
        return keeper

    def _running_keeper(self) -> KeeperProcess:
        keeper = self._keeper
        if keeper is None or keeper.is_gone:
            raise StagesLost("the keeper is not running", hint="it is started again")
        return keeper

    def _on_lost(self, number: int | None, reason: str) -> None:
        stages = self._stages
        if stages is not None:
            stages.lost(number, reason)

    def _on_keeper_failure(self, error: Exception) -> None:
        self._on_lost(None, str(error))

    def stages(self, resume: ResumeState, on_failure: OnFailure) -> ClusterStages:
        """The stages, not placed yet. Their state is made here, and goes to them when they are."""
        options, cluster = self._config.pipeline, self._config.cluster
        rows: list[list[Line]] = []
        weights: list[dict[str, Tensor]] = []
        for number, own in enumerate(resume.replicas(cluster.replicas)):
            row, of_row = self._replica(number, own)
            rows.append(row)
            weights.append(of_row)
        self._stages = ClusterStages(
            rows,
            averaged(weights),
            placement=Placement(
                self._running_keeper,
                self._context,
                self._slots,
                not cluster.insecure,
                cluster.start_timeout_s,
                self._cancelled,
            ),
            inbox=Inbox(self._config.network, cluster.merge_every),
            depth=options.queue_depth,
            stall_s=options.stall_timeout_s,
            metrics=self._metrics,
            on_failure=on_failure,
        )
        return self._stages

    def _replica(self, number: int, resume: ResumeState) -> tuple[list[Line], dict[str, Tensor]]:
        """The stages of one replica and its EMA weights."""
        options, recipe = self._config.pipeline, self._config.network
        sizes = recipe.stage_sizes(options.stages)
        live = resume.progress.get(LIVE)
        members = [members_of(recipe, Memory(), sizes, index, live) for index in range(len(sizes))]
        resume.restore(members)
        row: list[Line] = []
        weights: dict[str, Tensor] = {}
        for index, own in enumerate(members):
            label = f"{number}.{index}" if number else str(index)
            layers, is_last = [layer.index for layer in own.layers], index + 1 == len(sizes)
            gauges = StageGauges(label, layers, resume.seq, self._metrics, is_last=is_last, shows_layers=not number)
            gauges.on_barrier(own.figures(resume.seq))
            fields = {
                "name": gauges.name,
                "index": index,
                "sizes": list(sizes),
                "seq": resume.seq,
                "recipe": recipe.model_dump(mode="json"),
                "live": live,
                "device": options.device,
                "precision": options.precision,
                "queue_depth": options.queue_depth,
            }
            merges = tuple(f"{MERGER}.{name}." for name in own.by_name)
            merged = {name: value for name, value in resume.tensors.items() if name.startswith(merges)}
            row.append(Line(label, StageStart(fields, own.state_dict() | merged), gauges))
            weights |= own.weights()
        return row, weights

    def cancel(self) -> None:
        """What waits for the keeper, or for a stage to begin, ends."""
        self._cancelled.set()

    def hardware(self) -> Hardware:
        """What the first stage said."""
        device = self._stages.device if self._stages is not None else {}
        return Hardware(device.get("precision", "unknown"), device.get("device", "cluster"))

    def status(self) -> dict[str, Any]:
        """Its name, and the cluster."""
        return {"name": "ray", "address": self._config.cluster.address, "nodes": self._nodes}

    def stop(self, timeout_s: float) -> bool:
        """Ends the keeper, with all actors, and a local cluster. False if the deadline passed."""
        deadline = time.monotonic() + timeout_s
        self.cancel()
        if not self._connecting.acquire(timeout=timeout_s):  # never released: no other keeper may be started
            return False
        ended = self._keeper is None or self._keeper.stop(max(0.1, deadline - time.monotonic()))
        if self._stages is not None and self._stages.thread.is_alive():
            return False  # its sockets are in use
        self._context.destroy(linger=0)
        return ended


def _slots(config: Config) -> list[Slot]:
    """What each stage of each replica needs, the first replica first."""
    cluster, count = config.cluster, len(config.network.stage_sizes(config.pipeline.stages))
    cpus = cluster.cpus or (1.0,) * count
    gpus = cluster.gpus or (0.0,) * count
    resources = cluster.resources or ("",) * count
    placement = cluster.placement or ("default",) * count
    return [
        Slot(cpu, gpu, tuple(amounts(each).items()), where)
        for cpu, gpu, each, where in zip(cpus, gpus, resources, placement, strict=True)
    ] * cluster.replicas
