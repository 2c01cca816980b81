"""One pass through a daemon, to compare with the serial reference that the other figures come from."""

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ffstream.checkpoint import weights
from ffstream.client import Control, Predictor, Producer
from ffstream.data import Split, batches
from tests.harness.daemon import temporary_daemon

# Every microbatch is predicted before it is learned, so the queue of the evaluation must hold a whole pass. Only the
# end of the stream flushes a microbatch, and only counts decide when a snapshot is published.
SETTINGS = (
    "prequential.busy_fraction=1",
    "prequential.queue_depth=100000",
    "learning.linger_s=5",
    "checkpoint.every_s=0",
    "checkpoint.every_samples=0",
)
_MESSAGE = 64
_PATIENCE_S = 3600.0  # a convolution learns a few hundred samples per second


class Result(NamedTuple):
    """Errors as fractions, and the weights after the pass."""

    error: float
    prequential: float
    weights: dict[str, Tensor]


def one_pass(
    train: Split, held_out: Split, seed: int, settings: tuple[str, ...], label_fraction: float = 1.0
) -> Result:
    """Streams the split once, in the order of the seed."""
    with temporary_daemon(*settings, *SETTINGS) as daemon:
        with Producer(daemon.endpoints["learn"]) as producer:
            for images, labels in batches(train, _MESSAGE, seed=seed, label_fraction=label_fraction):
                producer.send(images, labels, _PATIENCE_S)
            producer.flush(_PATIENCE_S)
        with Control(daemon.endpoints["control"]) as control:
            control.wait_idle(_PATIENCE_S)
            # Complete only once the evaluator has caught up.
            control.request("checkpoint", {"timeout_s": _PATIENCE_S}, _PATIENCE_S + 10)
            prequential = control.status()["prequential_error_total"]
        with Predictor(daemon.endpoints["predict"]) as predictor:
            parts = np.array_split(held_out.images, 20)
            predicted = np.concatenate([predictor.predict(part).labels for part in parts])
        saved = weights.load(daemon.state).tensors
    return Result(float((predicted != held_out.labels).mean()), prequential, saved)
