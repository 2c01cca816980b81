"""A pipeline on a real journal, with what it reports kept; and the same stream learned serially."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ffstream.config import Config
from ffstream.errors import FFStreamError
from ffstream.ff.network import Network
from ffstream.ff.objective import Phase
from ffstream.ff.placement import Placement
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.journal.journal import Entry, Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel
from ffstream.pipeline.engine import Engine
from ffstream.pipeline.messages import Barrier, MicroBatch
from ffstream.pipeline.pipeline import Pipeline
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.stage import Stage
from ffstream.pipeline.threads import ThreadEngine, ThreadStages
from ffstream.util.labels import UNLABELLED
from tests.support import wait_until

DEADLINE_S = 30.0
INPUTS, LABELS, BATCH = 16, 4, 4

RECIPE = make_recipe(
    "fast",
    image_shape=[4, 4],
    widths=[8, 7, 6],
    labels=LABELS,
    batch_size=BATCH,
    warmup_batch_size=2,
    warmup_samples=0,
    replay=0,
    replay_buffer=20,
    learning_rate=0.01,
)
CONDITIONED = RECIPE.change(
    activities="label_conditioned", objective={"kind": "threshold", "alpha": 0.05}, negatives="random"
)
UNSUPERVISED = CONDITIONED.change(
    activities="label_free", negatives={"kind": "hybrid", "blurs": 1}, label_scheme="none", readout="softmax"
)
EVOKED = RECIPE.change(
    objective={"kind": "evoked", "alpha": 0.05}, negatives="random", opponent="average", constraint="centred_labels"
)
DREAMING = EVOKED.change(negatives="dreams", decoder={"kind": "linear", "memory": {"kind": "store", "samples": 20}})


@dataclass(frozen=True)
class Options:
    """What of the configuration these tests vary. Cuts depend on counts alone, if nothing else is said."""

    queue_depth: int = 2
    overflow: str = "block"
    stages: tuple[int, ...] = ()
    wake: int = 0
    sleep: int = 0
    sleep_when_quiet_s: float = 0.0
    sleep_when_quiet_max_microbatches: int = 32
    publish_every: int = 3
    partial: str = "wait"
    linger_s: float = 0.05
    checkpoint_every_samples: int = 0
    checkpoint_every_s: float = 0.0
    device: str = "cpu"
    precision: str = "fp32"
    stall_timeout_s: float = 60.0
    replicas: int = 1
    merge_every: int = 8

    def config(self, recipe: Recipe) -> Config:
        """All options."""
        given = asdict(self)

        def named(*names: str) -> dict[str, Any]:
            return {name: given[name] for name in names}

        return Config.model_validate(
            {
                "network": recipe.change(**named("wake", "sleep")),
                "pipeline": {
                    "engine": "threads" if self.replicas == 1 else "ray",
                    **named("device", "precision", "queue_depth", "overflow", "stages", "stall_timeout_s"),
                },
                "learning": named(
                    "publish_every",
                    "partial",
                    "linger_s",
                    "sleep_when_quiet_s",
                    "sleep_when_quiet_max_microbatches",
                ),
                "cluster": named("replicas", "merge_every") | {"gpus": self._gpus(recipe)},
                "checkpoint": {
                    "every_samples": self.checkpoint_every_samples,
                    "every_s": self.checkpoint_every_s,
                },
            }
        )

    def _gpus(self, recipe: Recipe) -> list[float]:
        """What a stage needs of a device that Ray gives out."""
        return [0.1] * len(self.stages or recipe.layers) if self.device == "cuda" else []


QUIET = Options()


class Stream(NamedTuple):
    """Samples in order: images (N, inputs), labels (N)."""

    images: NDArray[Any]
    labels: NDArray[np.int64]

    @classmethod
    def random(cls, samples: int, seed: int = 0, inputs: int = INPUTS, labels: int = LABELS) -> "Stream":
        rng = np.random.default_rng(seed)
        return cls(rng.integers(0, 256, (samples, inputs), np.uint8), rng.integers(0, labels, samples))

    def without_some_labels(self) -> "Stream":
        """The same samples, but each third has no label."""
        hidden = np.arange(len(self.labels)) % 3 == 0
        return self._replace(labels=np.where(hidden, UNLABELLED, self.labels))


class Store:
    """A journal that messages of any size are written to."""

    def __init__(self, folder: Path, inputs: int = INPUTS, labels: int = LABELS, name: str = "journal") -> None:
        self.journal = Journal(folder / f"{name}.sqlite", inputs=inputs, labels=labels)
        self.runs: list[Run] = []
        self._n = 0

    def write(self, images: NDArray[Any], labels: NDArray[Any], size: int = 3) -> None:
        """Appends samples, `size` a message, in one commit."""
        entries = []
        for at in range(0, len(images), size):
            self._n += 1
            part = images[at : at + size]
            label_bytes = labels[at : at + size].astype("<u2").tobytes()
            entries.append(Entry("test", self._n, 1, len(part), part.dtype.name, label_bytes, part.tobytes()))
        self.journal.append(entries)


class Run:
    """One pipeline from start to stop, and its listener."""

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        options: Options = QUIET,
        *,
        resume: ResumeState | None = None,
        contributors: tuple[str, ...] = (),
        engine: Callable[[Config, Metrics], Engine] = ThreadEngine,
        **cut_options: Any,
    ) -> None:
        self._started = False
        self.barriers: list[Barrier] = []
        self.failures: list[FFStreamError] = []
        self.observed: list[tuple[MicroBatch, int]] = []
        self.saving: list[Barrier] = []
        self.events: list[tuple[str, int]] = []
        self.metrics = Metrics()
        config = replace(options, **cut_options).config(recipe)
        self.pipeline = Pipeline(
            config,
            engine(config, self.metrics),
            store.journal,
            resume or ResumeState(),
            self,
            self.metrics,
            save_contributors=contributors,
        )
        store.runs.append(self)

    def on_microbatch(self, microbatch: MicroBatch, version: int) -> None:
        self.observed.append((microbatch, version))
        self.events.append(("observed", microbatch.seq))

    def on_saving(self, barrier: Barrier) -> None:
        self.events.append(("saving", barrier.seq))
        self.saving.append(barrier)  # last: a test that waits for it reads the events next

    def on_barrier(self, barrier: Barrier) -> None:
        self.barriers.append(barrier)

    def on_failure(self, error: FFStreamError) -> None:
        self.failures.append(error)

    @property
    def stages(self) -> list[Stage]:
        """The stages on threads of this process."""
        assert isinstance(self.pipeline.stages, ThreadStages)
        return self.pipeline.stages.stages

    @property
    def inboxes(self) -> Sequence[Channel]:
        """What each of them reads from."""
        assert isinstance(self.pipeline.stages, ThreadStages)
        return self.pipeline.stages.channels

    @property
    def learned(self) -> int:
        """Samples that every layer has learned, by the metric."""
        return int(self.metrics.registry.get_sample_value("ffstream_samples_learned_total") or 0)

    def start(self) -> "Run":
        self.pipeline.start()
        self._started = True
        return self

    def end(self) -> None:
        """Ends what a failed test left running."""
        if self._started:
            assert self.pipeline.abort(DEADLINE_S)

    def wait_applied(self, seq: int) -> None:
        wait_until(lambda: self.pipeline.applied_seq >= seq or self.failures, DEADLINE_S, f"applied {seq}")
        assert not self.failures, self.failures

    def save(self) -> Barrier:
        """A saving barrier, complete."""
        self.pipeline.request_checkpoint().result(DEADLINE_S)
        return next(each for each in reversed(self.barriers) if each.saves)

    def stop(self) -> Barrier:
        """Stops; the last barrier, which saves."""
        assert self.pipeline.stop(DEADLINE_S)
        assert not self.failures, self.failures
        assert self.barriers[-1].saves
        return self.barriers[-1]


def resume_state(barrier: Barrier) -> ResumeState:
    """What a checkpoint of that barrier would hold."""
    return ResumeState(barrier.seq, barrier.tensors, barrier.progress)


class Serial:
    """The serial reference, fed with microbatches composed here. `states[k]` is the state after k steps.

    `quiet`: how many sleep microbatches follow a sample because the stream was quiet, besides those by counts.
    """

    def __init__(
        self,
        recipe: Recipe,
        stream: Stream,
        *,
        wake: int = 0,
        sleep: int = 0,
        quiet: Mapping[int, int] | None = None,
        placement: Placement = Placement(),  # noqa: B008 - it cannot change
    ) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe
        self.network = Network(recipe, placement)
        self.states = [self.state()]
        self.phases: list[Phase] = []
        self.seqs = [0]
        self._replay = ReplayBuffer(recipe)
        self._images = torch.from_numpy(stream.images)
        self._labels = torch.from_numpy(stream.labels)
        seq = position = 0
        quiet_left = dict(quiet or {})
        while True:
            step = len(self.phases)
            ages: Tensor | None
            phase: Phase = "interleaved"
            if wake:
                phase = "wake" if position % (wake + sleep) < wake else "sleep"
            if phase == "wake" and quiet_left.get(seq):
                phase = "sleep"
                quiet_left[seq] -= 1
            else:
                position += 1
            fresh = recipe.warmup_batch_size if seq < recipe.warmup_samples else recipe.batch_size
            if phase == "sleep":
                fresh = 0
                images, labels, ages = self._replay.draw(recipe.rows, step)
            elif seq + fresh > len(stream.images):
                break
            else:
                images, labels, ages = self._wake(seq, fresh, step)
                seq += fresh
            self.learn(MicroBatch(step, seq, phase, images, labels, fresh, ages))
            self.states.append(self.state())
            self.phases.append(phase)
            self.seqs.append(seq)

    def learn(self, micro: MicroBatch) -> None:
        """One step."""
        self.network.learn(micro.images, micro.labels, micro.step, micro.phase, micro.ages)

    def state(self) -> dict[str, Tensor]:
        """A copy of the state."""
        return _copy(self.network.state_dict())

    def _wake(self, seq: int, count: int, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        recipe, fresh = self.recipe, slice(seq, seq + count)
        images, labels = self._images[fresh], self._labels[fresh]
        replayed = None
        if recipe.replay and len(self._replay):
            replayed = self._replay.draw(recipe.replay * count // recipe.batch_size, step)
        self._replay.add(images, labels)
        if replayed is None:
            return images, labels, None
        return torch.cat((images, replayed.images_BI)), torch.cat((labels, replayed.labels_B)), replayed.ages_B


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def assert_same(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Raises AssertionError unless all layers' tensors are equal bit for bit."""
    network = {name: value for name, value in got.items() if not name.startswith("replay.")}
    assert network.keys() == want.keys()
    different = [name for name in want if not torch.equal(network[name], want[name])]
    assert not different, f"different: {different}"


def running() -> list[str]:
    """Names of our threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ff-")]


class Gated:
    """Holds a layer's update until opened. `entered` says that it waits there."""

    def __init__(self, layer: Any) -> None:
        self.entered = threading.Event()
        self._open = threading.Event()
        update = layer.update

        def wait_then_update() -> None:
            self.entered.set()
            assert self._open.wait(DEADLINE_S), "the test never opened the gate"
            update()

        layer.update = wait_then_update

    def open(self) -> None:
        self._open.set()
