"""The serial reference of replicas is deterministic, fair, and with one replica the serial reference."""

import pytest
import torch
import zmq

from ffstream.ff.member import below
from ffstream.ff.network import Network
from ffstream.pipeline.cluster.frames import microbatch_of, output_of, pack_item, unpack
from ffstream.pipeline.messages import MicroBatch, StageOutput
from tests.battery import assert_equal
from tests.harness.crashing.presets import small_recipe
from tests.unit.pipeline.replicated import Replicated
from tests.unit.pipeline.run import RECIPE, Serial, Stream

WARM = RECIPE.change(replay=2, warmup_samples=8)


def test_one_replica_learns_what_the_serial_reference_learns() -> None:
    stream = Stream.random(80)
    replicated = Replicated(WARM, stream, replicas=1, merge_every=2)
    assert_equal(below("replicas.0", replicated.state()), Serial(WARM, stream).state())


def test_replicas_learn_the_same_again() -> None:
    runs = [Replicated(WARM, Stream.random(80), replicas=3, merge_every=2).state() for _ in range(2)]
    assert_equal(runs[0], runs[1])


def test_replicas_are_equal_while_all_learn_everything_and_after_each_merge() -> None:
    run = Replicated(WARM, Stream.random(80), replicas=2, merge_every=3)
    shared = 4  # microbatches of the warm-up
    equal = [
        all(torch.equal(value, state[f"replicas.1.{name}"]) for name, value in below("replicas.0", state).items())
        for state in run.states
    ]
    assert equal == [step <= shared or step % 6 == 0 for step in range(len(equal))]


def test_whitening_is_the_same_in_all_replicas() -> None:
    small = small_recipe("cifar-conv")
    stream = Stream.random(420, inputs=small.inputs, labels=small.labels)
    state = Replicated(small, stream, replicas=2, merge_every=1000).state()
    images = small.preprocessing.fitted_samples
    assert 0 < images < 420
    for name in ("filters", "products", "fitted"):
        assert torch.equal(state[f"replicas.0.input.{name}"], state[f"replicas.1.input.{name}"]), name
    assert int(state["replicas.0.input.fitted"]) == images
    assert not torch.equal(state["replicas.0.input.mean"], state["replicas.1.input.mean"])


@pytest.mark.parametrize("replicas", [1, 4])
def test_the_number_of_replicas_travels_with_a_microbatch_and_its_activities(replicas: int) -> None:
    images, labels = torch.zeros(4, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    micro = MicroBatch(3, 16, "interleaved", images, labels, 4, None, replicas)
    received = microbatch_of(unpack([zmq.Frame(bytes(frame)) for frame in pack_item(micro)]))
    assert received.replicas == replicas
    network = Network(WARM)
    given = network.input.forward(images, labels, 3, "interleaved", None, received.replicas)
    output = StageOutput(3, 16, 4, network.layers[0].forward(given))
    assert output_of(unpack([zmq.Frame(bytes(frame)) for frame in pack_item(output)])).activities.replicas == replicas
