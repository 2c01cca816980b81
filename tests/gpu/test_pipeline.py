"""The pipeline on a CUDA device: a stream for each stage, and the same results as the serial reference."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.ff.classifier import Classifier
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.resume_state import ResumeState
from tests.gpu.conftest import Size
from tests.support import wait_until
from tests.unit.pipeline.run import QUIET, Gated, Options, Run, Store, Stream

pytestmark = pytest.mark.gpu
DEADLINE_S = 120.0


def options(device: str) -> Options:
    return replace(QUIET, device=device, publish_every=8)


def write(store: Store, digits: Stream, steps: int, size: Size) -> int:
    """So many microbatches into the journal; the last sample's number."""
    samples = steps * size.batch
    store.write(digits.images[:samples], digits.labels[:samples], size=size.batch)
    return samples


def learned(run: Run, seq: int) -> None:
    wait_until(lambda: run.pipeline.applied_seq >= seq or run.failures, DEADLINE_S, f"applied {seq}")
    assert not run.failures


def learned_serially(recipe: Recipe, digits: Stream, steps: int, device: str) -> Network:
    network = Network(recipe, Placement(torch.device(device)))
    for step in range(steps):
        part = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
        network.learn(torch.from_numpy(digits.images[part]), torch.from_numpy(digits.labels[part]), step)
    return network


def distance(got: Tensor, want: Tensor) -> float:
    """Relative, in float64 on the CPU."""
    got, want = got.detach().cpu().double(), want.detach().cpu().double()
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def assert_close(got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    far = {name: distance(got[name], want[name]) for name in want}
    assert max(far.values()) <= tolerance, far


def assert_equal(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    different = [name for name in want if not torch.equal(got[name].cpu(), want[name].cpu())]
    assert not different, f"different: {different}"


@pytest.mark.parametrize("stages", [(), (1, 2), (3,)], ids=["a stage a layer", "two stages", "one stage"])
def test_the_pipeline_is_close_to_the_serial_reference_on_the_cpu(
    store: Store, digits: Stream, smooth: Recipe, size: Size, device: str, stages: tuple[int, ...]
) -> None:
    run = Run(store, smooth, replace(options(device), stages=stages)).start()
    learned(run, write(store, digits, size.steps, size))
    state = run.stop().tensors
    start = Network(smooth).state_dict()
    for index in range(len(size.widths)):
        name = f"layers.{index}.parameters"
        assert state[name].device.type == device
        assert distance(state[name], start[name]) > 1e-3, "too little was learned to tell anything"
    assert_close(state, learned_serially(smooth, digits, size.steps, "cpu").state_dict(), 1e-4)


def test_a_readout_reads_what_layers_on_other_streams_have_computed(
    store: Store, digits: Stream, unsupervised: Recipe, size: Size, device: str
) -> None:
    """Also with samples without a label, and negative rows whose masks are drawn on the CPU."""
    some = digits.without_some_labels()
    run = Run(store, unsupervised, options(device)).start()
    learned(run, write(store, some, size.steps, size))
    state = run.stop().tensors
    assert state["readout.parameters"].abs().max() > 1e-3
    assert_close(state, learned_serially(unsupervised, some, size.steps, "cpu").state_dict(), 1e-4)


def test_the_pipeline_is_close_to_the_serial_reference_on_the_same_device(
    store: Store, digits: Stream, smooth: Recipe, size: Size, device: str
) -> None:
    run = Run(store, smooth, options(device)).start()
    learned(run, write(store, digits, size.steps, size))
    assert_close(run.stop().tensors, learned_serially(smooth, digits, size.steps, device).state_dict(), 1e-6)


@pytest.mark.parametrize("replay", [0, 1], ids=["no replay", "replay"])
def test_two_runs_are_equal_bit_for_bit(
    store: Store, digits: Stream, fast: Recipe, size: Size, device: str, replay: int
) -> None:
    recipe = fast.change(replay=replay * size.batch, replay_buffer=8 * size.batch)
    seq = write(store, digits, size.steps, size)
    states = []
    for queue_depth in (1, 4):
        run = Run(store, recipe, replace(options(device), queue_depth=queue_depth)).start()
        learned(run, seq)
        states.append(run.stop().tensors)
    assert_equal(states[1], states[0])


def test_a_checkpoint_on_disk_resumes_bit_for_bit(
    store: Store, digits: Stream, fast: Recipe, size: Size, device: str, tmp_path: Path
) -> None:
    half = write(store, digits, size.steps // 2, size)
    first = Run(store, fast, options(device)).start()
    learned(first, half)
    saved = first.save()
    checkpoints = CheckpointStore(tmp_path / "checkpoints", keep=1, recipe=fast.model_dump(mode="json"))
    checkpoints.write(Checkpoint(saved.seq, saved.tensors, saved.progress))
    rest = slice(half, 2 * half)
    store.write(digits.images[rest], digits.labels[rest], size=size.batch)
    learned(first, 2 * half)
    uninterrupted = first.stop()
    loaded = checkpoints.load(saved.seq)
    assert_equal(loaded.tensors, saved.tensors)
    resumed = Run(
        store, fast, options(device), resume=ResumeState(loaded.seq, loaded.tensors, loaded.progress)
    ).start()
    learned(resumed, 2 * half)
    last = resumed.stop()
    assert last.seq == uninterrupted.seq == 2 * half
    assert_equal(last.tensors, uninterrupted.tensors)


def test_a_snapshot_predicts_while_learning_goes_on(
    store: Store, digits: Stream, fast: Recipe, size: Size, device: str
) -> None:
    """As the same weights on the CPU do, and the same before and after more is learned."""
    half = write(store, digits, size.steps // 2, size)
    run = Run(store, fast, options(device)).start()
    learned(run, half)
    weights = run.save().weights
    on_cpu = {name: value.cpu() for name, value in weights.items()}
    snapshot = Classifier(fast, weights)
    queries = torch.from_numpy(digits.images[-200:])
    rest = slice(half, 2 * half)
    store.write(digits.images[rest], digits.labels[rest], size=size.batch)
    during = snapshot.predict(queries)
    learned(run, 2 * half)
    assert_equal({"goodness": snapshot.predict(queries).goodness_BL}, {"goodness": during.goodness_BL})
    assert_equal(weights, on_cpu)
    assert during.labels_B.device.type == "cpu"
    wanted = Classifier(fast, on_cpu).predict(queries)
    assert distance(during.goodness_BL, wanted.goodness_BL) < 1e-4
    best, second = wanted.goodness_BL.topk(2, 1).values.unbind(1)
    clear = (best - second) > 1e-3 * best.abs()
    assert clear.any()
    assert torch.equal(during.labels_B[clear], wanted.labels_B[clear])
    run.stop()


def test_with_skip_the_first_stage_does_not_wait_for_the_second(
    store: Store, digits: Stream, smooth: Recipe, size: Size, device: str
) -> None:
    """What it learns is the reference's; what the second one skips is counted."""
    run = Run(store, smooth, replace(options(device), overflow="skip", queue_depth=10, publish_every=10_000))
    first, second, _ = run.stages
    gate = Gated(second.layers[0])
    samples = write(store, digits, size.steps, size)
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the second stage is held")
    wait_until(lambda: first.last_seq == samples, DEADLINE_S, "the first stage has learned everything")
    gate.open()
    learned(run, samples)
    state = run.stop().tensors
    skipped = run.inboxes[1].skipped
    assert skipped > 0
    assert float(state["layers.0.samples"]) == samples
    assert float(state["layers.1.samples"]) == samples - skipped * size.batch
    assert run.learned == samples - (skipped + run.inboxes[2].skipped) * size.batch
    own = {name: value for name, value in state.items() if name.startswith(("input.", "layers.0."))}
    serial = learned_serially(smooth, digits, size.steps, "cpu").state_dict()
    assert_close(own, {name: serial[name] for name in own}, 1e-4)
