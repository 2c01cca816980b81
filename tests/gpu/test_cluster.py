"""Stages in actors that compute on the device."""

from dataclasses import replace

import pytest
import torch

from ffstream.ff.recipe import Recipe
from tests.gpu.conftest import Size
from tests.unit.pipeline.cluster.local import ended_engines
from tests.unit.pipeline.run import QUIET, Run, Store, Stream

pytestmark = pytest.mark.gpu


def test_replicas_on_a_device_go_on_from_the_same_state(
    store: Store, digits: Stream, smooth: Recipe, size: Size, device: str
) -> None:
    samples = size.steps * size.batch
    store.write(digits.images[:samples], digits.labels[:samples], size=size.batch)
    with ended_engines() as engines:
        run = Run(store, smooth, replace(QUIET, device=device), engine=engines, replicas=2, merge_every=5).start()
        run.wait_applied(samples)
        assert {stage["device"].partition(":")[0] for stage in run.pipeline.describe()} == {device}
        barrier = run.stop()
    assert barrier.step % 10 == 0, "at a merge"
    for name in (f"layers.{index}.parameters" for index in range(len(size.widths))):
        assert torch.equal(barrier.tensors[name], barrier.tensors[f"replica.1.{name}"])
        assert float(barrier.tensors[f"merger.{name.replace('parameters', 'velocity')}"].abs().max()) > 0
