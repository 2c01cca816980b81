"""A barrier is one consistent cut, taken while learning goes on."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ffstream.ff.network import Network
from ffstream.pipeline.messages import Barrier, Part
from tests.support import wait_until
from tests.unit.pipeline.run import (
    BATCH,
    CONDITIONED,
    DEADLINE_S,
    QUIET,
    RECIPE,
    Gated,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

STEPS = 40


def weights_after(recipe: Serial, step: int) -> dict[str, Tensor]:
    """The serial reference's EMA weights after so many steps, by name."""
    network = Network(recipe.recipe)
    network.load_state_dict(recipe.states[step])
    return network.weights()


def test_every_barrier_has_the_weights_of_its_step(store: Store) -> None:
    recipe = RECIPE.change(replay=3)
    stream = Stream.random(STEPS * BATCH)
    serial = Serial(recipe, stream)
    store.write(stream.images, stream.labels)
    run = Run(store, recipe, publish_every=3, checkpoint_every_samples=5 * BATCH).start()
    run.wait_applied(STEPS * BATCH)
    run.stop()
    assert [each.version for each in run.barriers] == list(range(1, len(run.barriers) + 1))
    steps = [each.step for each in run.barriers]
    assert steps == sorted(steps)
    assert set(range(3, STEPS, 3)) | {1, 2, 4, 8, 16} <= set(steps)
    for barrier in run.barriers:
        assert barrier.seq == serial.seqs[barrier.step]
        want = weights_after(serial, barrier.step)
        assert barrier.weights.keys() == want.keys()
        assert all(torch.equal(barrier.weights[name], want[name]) for name in want)
    saving = [each for each in run.barriers if each.saves]
    assert [each.seq for each in saving[:-1]] == list(range(5 * BATCH, STEPS * BATCH + 1, 5 * BATCH))
    for barrier in saving:
        assert_same(barrier.tensors, serial.states[barrier.step])
        assert barrier.progress["step"] == barrier.step
        assert barrier.progress["version"] == barrier.version


def test_only_saving_barriers_carry_state(store: Store) -> None:
    stream = Stream.random(8 * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE).start()
    run.wait_applied(8 * BATCH)
    run.stop()
    assert all(not each.tensors and not each.progress for each in run.barriers if not each.saves)


def test_stages_are_at_different_samples_and_the_cut_is_one(store: Store) -> None:
    """While the last stage hangs the first one runs ahead; a barrier asked for then is of one sample all the same."""
    stream = Stream.random(STEPS * BATCH)
    serial = Serial(CONDITIONED, stream)
    store.write(stream.images, stream.labels)
    run = Run(store, CONDITIONED, replace(QUIET, queue_depth=3), publish_every=1000)
    gate = Gated(run.stages[2].layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the last stage waits")
    saved = run.pipeline.request_checkpoint()
    wait_until(lambda: run.stages[0].last_seq > 2 * BATCH, DEADLINE_S, "the first stage runs ahead")
    assert run.pipeline.applied_seq == 0
    assert not saved.done()
    gate.open()
    run.wait_applied(STEPS * BATCH)
    seq = saved.result(DEADLINE_S)
    barrier = next(each for each in run.barriers if each.saves and each.seq == seq)
    assert 0 < barrier.step < STEPS
    assert_same(barrier.tensors, serial.states[barrier.step])
    assert_same(run.stop().tensors, serial.states[STEPS])
    assert_same(barrier.tensors, serial.states[barrier.step])  # a copy: learning went on and it did not change


def test_a_request_is_served_while_nothing_comes(store: Store) -> None:
    run = Run(store, RECIPE).start()
    barrier = run.save()
    assert barrier.seq == 0
    assert_same(barrier.tensors, Network(RECIPE).state_dict())
    run.stop()


def test_an_idle_learner_publishes_what_it_learned_last(store: Store) -> None:
    stream = Stream.random(7 * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, publish_every=1000).start()
    wait_until(lambda: run.barriers and run.barriers[-1].seq == 7 * BATCH, DEADLINE_S, "published")
    assert not run.barriers[-1].saves
    run.stop()


def test_other_contributors_see_saving_barriers_in_the_order_of_the_stream(store: Store) -> None:
    """What was observed before a saving barrier is before it, and the barrier waits for their part."""
    stream = Stream.random(12 * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, checkpoint_every_samples=4 * BATCH, contributors=("me",)).start()
    run.wait_applied(12 * BATCH)
    wait_until(lambda: len(run.saving) == 3, DEADLINE_S, "three saving barriers are sent")
    expected = []
    for step in range(1, 13):
        expected.append(("observed", step * BATCH))
        expected += [("saving", step * BATCH)] if step % 4 == 0 else []
    assert run.events == expected
    assert not [each for each in run.barriers if each.saves]
    for number, barrier in enumerate(run.saving):
        barrier.contribute("me", Part(tensors={"mine": torch.tensor(number)}, progress={"mine": number}))
    wait_until(lambda: sum(each.saves for each in run.barriers) == 3, DEADLINE_S, "three are complete")
    saved = {each.seq: each for each in run.barriers if each.saves}
    assert [saved[seq].progress["mine"] for seq in sorted(saved)] == [0, 1, 2]
    assert {int(each.tensors["mine"]) for each in saved.values()} == {0, 1, 2}
    assert run.pipeline.stop(DEADLINE_S, save=False)


def test_by_time_nothing_is_saved_without_news(store: Store) -> None:
    """In the sleep phase the network learns from memory: steps go on, and the stream does not."""
    stream = Stream.random(6 * BATCH)
    store.write(stream.images, stream.labels)
    options = replace(QUIET, wake=2, sleep=3)
    run = Run(store, CONDITIONED, options, checkpoint_every_s=1e-9).start()  # at each step the time has come
    run.wait_applied(6 * BATCH)
    run.stop()
    by_time = [each.seq for each in run.saving[:-1]]
    assert by_time == list(range(BATCH, 6 * BATCH + 1, BATCH))
    assert run.barriers[-1].step > 6, "it has slept"


def test_microbatches_are_observed_before_they_are_learned_with_the_version_sent_before(store: Store) -> None:
    stream = Stream.random(10 * BATCH)
    store.write(stream.images, stream.labels)
    recipe = CONDITIONED.change(replay=3)
    run = Run(store, recipe, replace(QUIET, wake=2, sleep=1), publish_every=3)
    gate = Gated(run.stages[0].layers[0])
    run.start()
    wait_until(gate.entered.is_set, DEADLINE_S, "the first microbatch is about to be learned")
    assert run.observed[0][0].seq == BATCH
    gate.open()
    run.wait_applied(10 * BATCH)
    run.stop()
    assert [micro.seq for micro, _ in run.observed] == list(range(BATCH, 10 * BATCH + 1, BATCH)), "only fresh ones"
    for micro, version in run.observed:
        assert len(micro.labels) == BATCH, "without replayed ones"
        before = [each.version for each in run.barriers if each.step <= micro.step]
        assert version == max(before, default=0)


def test_the_last_barrier_saves_only_if_wanted(store: Store) -> None:
    stream = Stream.random(3 * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE).start()
    run.wait_applied(3 * BATCH)
    assert run.pipeline.stop(DEADLINE_S, save=False)
    assert not [each for each in run.barriers if each.saves]


def test_versions_go_on_where_they_were(store: Store) -> None:
    stream = Stream.random(3 * BATCH)
    store.write(stream.images, stream.labels)
    first = Run(store, RECIPE).start()
    first.wait_applied(3 * BATCH)
    last = first.stop()
    second = Run(store, RECIPE, resume=resume_state(last)).start()
    assert second.stop().version == last.version + 1


def test_a_barrier_is_complete_when_everybody_has_contributed_once() -> None:
    done: list[Barrier] = []
    barrier = Barrier(step=1, seq=2, version=3, saves=True, contributors=["a", "b"], on_complete=done.append)
    barrier.contribute("b", Part(tensors={"b": torch.tensor(1)}, progress={"x": 1}))
    assert not done
    with pytest.raises(KeyError):
        barrier.contribute("b", Part(progress={}))
    barrier.contribute("a", Part(progress={"y": 2}))
    assert done == [barrier]
    assert set(barrier.tensors) == {"b"}
    assert barrier.progress == {"x": 1, "y": 2}
