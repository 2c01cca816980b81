"""Replicas learn what their serial reference learns, bit for bit."""

from dataclasses import replace

import pytest
import torch

from ffstream.checkpoint.replicas import of_replica
from ffstream.errors import CheckpointIncompatible
from ffstream.ff.member import below
from ffstream.ff.merging import averaged
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from ffstream.pipeline.cluster.sockets import Opened, connected
from ffstream.pipeline.resume_state import ResumeState
from ffstream.server.resources import raise_file_limit
from tests.unit.pipeline.cluster.local import Engines
from tests.unit.pipeline.replicated import Replicated
from tests.unit.pipeline.run import (
    BATCH,
    EVOKED,
    QUIET,
    RECIPE,
    UNSUPERVISED,
    Options,
    Run,
    Store,
    Stream,
    resume_state,
)

STEPS = 24


def expected(serial: Replicated, step: int) -> dict[str, torch.Tensor]:
    """The names of a checkpoint: those of the first replica have no prefix."""
    state = {}
    for name, value in serial.states[step].items():
        for prefix, own in (("replicas.0.", ""), ("replicas.", "replica.")):
            if name.startswith(prefix):
                state[own + name.removeprefix(prefix)] = value
                break
        else:
            state[name] = value
    return state


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    found = {name: value for name, value in found.items() if not name.startswith("replay.")}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("recipe", "options", "replicas", "merge_every"),
    [
        (RECIPE, QUIET, 2, 3),
        (RECIPE.change(replay=3), replace(QUIET, stages=(3,)), 3, 2),
        (RECIPE.change(warmup_samples=9 * BATCH), QUIET, 2, 1),
        (EVOKED.change(replay=3), replace(QUIET, wake=5, sleep=4), 2, 2),
        (UNSUPERVISED, replace(QUIET, stages=(2, 1)), 2, 4),
    ],
    ids=["two", "three-in-one", "shared-start", "phases", "readout"],
)
def test_every_barrier_has_the_states_of_all_replicas(
    store: Store, engines: Engines, recipe: Recipe, options: Options, replicas: int, merge_every: int
) -> None:
    stream = Stream.random(STEPS * recipe.batch_size, inputs=recipe.inputs, labels=recipe.labels)
    serial = Replicated(
        recipe, stream, replicas=replicas, merge_every=merge_every, wake=options.wake, sleep=options.sleep
    )
    store.write(stream.images, stream.labels)
    run = Run(
        store,
        recipe,
        options,
        engine=engines,
        replicas=replicas,
        merge_every=merge_every,
        checkpoint_every_samples=5 * BATCH,
    ).start()
    run.wait_applied(len(stream.labels))
    run.stop()
    saving = [barrier for barrier in run.barriers if barrier.saves]
    assert len(saving) > STEPS // 6
    for barrier in saving:
        assert_equal(barrier.tensors, expected(serial, barrier.step))
    assert run.learned == len(stream.labels), "each sample is counted once"
    assert len(run.metrics.stage_place.describe()) == 1


def test_a_resumed_run_ends_with_the_same_states(store: Store, engines: Engines) -> None:
    """Also when it was stopped between two merges."""
    stream = Stream.random(STEPS * BATCH)
    serial = Replicated(RECIPE, stream, replicas=2, merge_every=4)
    half = 11 * BATCH
    store.write(stream.images[:half], stream.labels[:half])
    first = Run(store, RECIPE, engine=engines, replicas=2, merge_every=4).start()
    first.wait_applied(half)
    barrier = first.stop()
    assert barrier.step % 8, "not at a merge"
    store.write(stream.images[half:], stream.labels[half:])
    second = Run(store, RECIPE, engine=engines, replicas=2, merge_every=4, resume=resume_state(barrier)).start()
    second.wait_applied(STEPS * BATCH)
    last = second.stop()
    assert_equal(last.tensors, expected(serial, last.step))


@pytest.mark.parametrize("replicas", [1, 3])
def test_another_number_of_replicas_begins_with_the_mean(store: Store, engines: Engines, replicas: int) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    first = Run(store, RECIPE, engine=engines, replicas=2).start()
    first.wait_applied(STEPS * BATCH)
    resume = resume_state(first.stop())
    states = [each.tensors for each in resume.replicas(2)]
    own = [{name: value for name, value in state.items() if not name.startswith("merger.")} for state in states]
    mean = averaged(own, below("merger", states[0]))
    second = Run(store, RECIPE, engine=engines, replicas=replicas, resume=resume).start()
    last = second.stop()
    for number in range(replicas):
        prefix = f"replica.{number}." if number else ""
        assert all(torch.equal(last.tensors[prefix + name], value) for name, value in mean.items())


@pytest.mark.parametrize("value", [None, torch.zeros(3)], ids=["missing", "another shape"])
def test_replicas_that_do_not_belong_together_are_an_incompatible_checkpoint(value: torch.Tensor | None) -> None:
    tensors = Network(RECIPE).state_dict()
    odd = {name: tensor for name, tensor in tensors.items() if name != "layers.1.ema"}
    odd |= {} if value is None else {"layers.1.ema": value}
    with pytest.raises(CheckpointIncompatible, match="checkpoint 8 does not hold this network's state"):
        ResumeState(8, tensors | of_replica(1, odd)).replicas(1)


def test_threads_go_on_with_the_mean_of_replicas(store: Store, engines: Engines) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    first = Run(store, RECIPE, engine=engines, replicas=2).start()
    first.wait_applied(STEPS * BATCH)
    resume = resume_state(first.stop())
    last = Run(store, RECIPE, resume=resume).start().stop()
    (mean,) = resume.replicas(1)
    assert all(torch.equal(last.tensors[name], value) for name, value in mean.tensors.items())


def test_there_are_sockets_for_as_many_replicas_as_are_allowed(engines: Engines) -> None:
    raise_file_limit()
    config = replace(QUIET, replicas=64).config(RECIPE.change(widths=[8] * 7))
    context = engines(config, Metrics())._context
    opened = [Opened(connected(context, "127.0.0.1", 9, "token", None, ""), None) for _ in range(64 * (7 + 1))]
    for each in opened:
        each.socket.linger = 0
        each.close()
