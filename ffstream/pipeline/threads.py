"""The engine `threads`: each stage on a thread of this process, with bounded queues in memory between them."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ffstream.config import Config
from ffstream.ff.placement import Placement
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Channel
from ffstream.pipeline.device import DeviceStream, choose_device, choose_product_dtype, make_stream
from ffstream.pipeline.engine import Hardware
from ffstream.pipeline.live_error import LIVE
from ffstream.pipeline.members import StageMembers, members_of
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.stage import Stage
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import OnFailure, Worker


class ThreadEngine:
    """See `engine.Engine`."""

    is_remote = False

    def __init__(self, config: Config, metrics: Metrics) -> None:
        options = config.pipeline
        self._config = config
        self._metrics = metrics
        self._device = choose_device(options.device)
        self._product_dtype = choose_product_dtype(options.precision, self._device)

    def connect(self) -> None:
        """Threads can always be started."""

    def stages(self, resume: ResumeState, on_failure: OnFailure) -> "ThreadStages":
        """The stages, restored and not started."""
        options, recipe = self._config.pipeline, self._config.network
        # A stage that skips keeps an activity for longer than any ring lasts: the stage before does not wait for it.
        buffers = 0 if options.overflow == "skip" else options.queue_depth + 2
        placement = Placement(self._device, self._product_dtype, buffers)
        resume = resume.replicas(1)[0]
        sizes = recipe.stage_sizes(options.stages)
        members = [
            members_of(recipe, placement, sizes, index, resume.progress.get(LIVE)) for index in range(len(sizes))
        ]
        resume.restore(members)
        return ThreadStages(
            members,
            # The feeder's own channel always blocks: skipping there would leave samples unlearned by every layer.
            [Channel(options.queue_depth, options.overflow if index else "block") for index in range(len(sizes))],
            [make_stream(self._device, options.queue_depth) for _ in sizes],
            self._metrics,
            on_failure,
            resume.seq,
        )

    def cancel(self) -> None:
        """Nothing waits."""

    def hardware(self) -> Hardware:
        """Of all stages."""
        return Hardware(str(self._product_dtype).removeprefix("torch."), str(self._device))

    def status(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "threads"}

    def stop(self, timeout_s: float) -> bool:
        """Nothing outlives the stages."""
        return True


class ThreadStages:
    """See `engine.Stages`."""

    def __init__(
        self,
        members: Sequence[StageMembers],
        channels: Sequence[Channel],
        streams: Sequence[DeviceStream],
        metrics: Metrics,
        on_failure: OnFailure,
        seq: int,
    ) -> None:
        self.inbox = channels[0]
        self.channels = channels
        self.stages: list[Stage] = []
        self.gauges: list[StageGauges] = []
        for index, own in enumerate(members):
            inbox, is_last = channels[index], index + 1 == len(members)
            gauges = StageGauges(str(index), [layer.index for layer in own.layers], seq, metrics, is_last=is_last)
            gauges.queue_depth, gauges.skipped = inbox.__len__, partial(getattr, inbox, "skipped")
            gauges.on_barrier(own.figures(seq))
            self.gauges.append(gauges)
            self.stages.append(
                Stage(
                    gauges.name,
                    own,
                    inbox=inbox,
                    outbox=None if is_last else channels[index + 1],
                    stream=streams[index],
                    observer=gauges,
                    on_failure=on_failure,
                    seq=seq,
                )
            )

    @property
    def threads(self) -> list[Worker]:
        """The last stage's thread comes first: when it is stuck, those before it only wait for it."""
        return [stage.thread for stage in reversed(self.stages)]

    def weights(self) -> dict[str, Tensor]:
        """Only before `start`: afterwards the stages' threads own them."""
        return {name: value for stage in self.stages for name, value in stage.members.weights().items()}

    def start(self) -> None:
        """The last stage first."""
        for stage in reversed(self.stages):
            stage.start()

    def abort(self) -> None:
        """Each stage ends after its current item."""
        for stage in self.stages:
            stage.inbox.close(drop=True)

    def join(self, timeout_s: float) -> bool:
        """False if a thread has not ended by then."""
        deadline = time.monotonic() + timeout_s
        ended = [thread.join(max(0.0, deadline - time.monotonic())) for thread in self.threads]
        return all(ended)
