"""What a long run holds on the device."""

import gc

import pytest
import torch

from ffstream.ff.recipe import Recipe
from tests.gpu.conftest import Size
from tests.gpu.test_pipeline import learned, options
from tests.unit.pipeline.run import Run, Store, Stream

pytestmark = pytest.mark.gpu


def held(device: str) -> int:
    """Bytes of tensors on the device; on the CPU, where torch does not count them, the number of tensors."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    # By type: isinstance would ask every object for its class, and some warn.
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def test_memory_is_flat_over_many_microbatches(
    store: Store, digits: Stream, fast: Recipe, size: Size, device: str
) -> None:
    run = Run(store, fast, options(device)).start()
    before = run.pipeline.threads
    # Parts of equal length: the run keeps the barriers of a part, and with them as many snapshots.
    ends = [size.many_steps * third // 3 for third in (1, 2, 3)]
    holds, reserved, start = [], [], 0
    for steps in ends:
        part = slice(start, steps * size.batch)
        store.write(digits.images[part], digits.labels[part], size=size.batch)
        start = part.stop
        learned(run, start)
        run.save()
        for kept in (run.barriers, run.saving, run.observed):  # they hold copies of the state and images
            kept.clear()
        holds.append(held(device))
        reserved.append(torch.cuda.memory_reserved() if device == "cuda" else 0)
    state = run.stop().tensors
    assert run.pipeline.threads == before
    # Copies of the state are kept for the next barrier: in the last part there may be one more of them at a time.
    copy = sum(value.nbytes for value in state.values()) if device == "cuda" else len(state)
    assert holds[2] - holds[1] <= copy, holds
    assert reserved[2] - reserved[1] <= 4 * copy, reserved
