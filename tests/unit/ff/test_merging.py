"""Replicas: what each tensor of N states becomes, and that a merged network continues as one that learned it all."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ffstream.ff import merging
from ffstream.ff.adaptation import CumulativeSum
from ffstream.ff.drift import Restart
from ffstream.ff.merging import MOMENTUM, Merger, averaged
from ffstream.ff.network import Network
from ffstream.ff.objective import Contrast
from ffstream.ff.part import members
from ffstream.ff.presets import PRESETS, recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.resume_state import ResumeState
from tests.battery import assert_equal, phases_of
from tests.harness.crashing.presets import small_recipe
from tests.unit.ff import formulas
from tests.unit.ff.formulas import CONDITIONED, EVOKED, SMALL, UNSUPERVISED

State = dict[str, Tensor]


def learned(options: Recipe, replicas: int, steps: int = 4) -> list[State]:
    """The states of replicas that have learned different microbatches in every phase, with the same first one."""
    networks = [Network(options) for _ in range(replicas)]
    phases = phases_of(options)
    for network in networks:
        formulas.learn(network, 0, 0, phases[0])
    for step in range(replicas, replicas * (1 + steps)):
        learn_alone(networks[step % replicas], step, replicas, phases[step // replicas % len(phases)])
    return [network.state_dict() for network in networks]


def learn_alone(network: Network, step: int, replicas: int, phase: str = "interleaved", rows: int = 0) -> None:
    """A microbatch that one of the replicas learns."""
    options = network.recipe
    rows = rows or options.batch_size
    images_BI = formulas.random_images(rows, options.inputs, seed=step)
    labels_B = formulas.labels_for(options, rows, seed=step)
    network.learn(images_BI, labels_B, step, phase, replicas=replicas)  # type: ignore[arg-type]


def recipes() -> Iterator[tuple[str, Recipe]]:
    """The presets, and every registered part that may hold a state."""
    for preset in PRESETS:
        yield preset, small_recipe(preset)
    bases = {
        "optimizer": SMALL,
        "opponent": EVOKED,
        "drift": SMALL,
        "preprocessing": SMALL,
        "readout": SMALL,
        "constraint": EVOKED,
        "hardware": SMALL,
        "decoder": SMALL,
    }
    for family, base in bases.items():
        for kind in members(family):
            yield f"{family} {kind}", base.change(**{family: kind})
    for kind, objective in members("objective").items():
        wrong = {"negatives": "random"} if issubclass(objective, Contrast) else {}
        yield f"objective {kind}", SMALL.change(objective=kind, **wrong)
    yield "label-conditioned", CONDITIONED
    yield "unsupervised", UNSUPERVISED


FOUND_OUT = ("usual", "excess", "since", "changes")  # of a device, when a change is looked for
RECIPES = dict(recipes())
every_recipe = pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES)


@every_recipe
def test_every_tensor_has_a_rule(options: Recipe) -> None:
    """It is merged to the mean, or to that of replica 0."""
    states = learned(options, 3)
    merged = averaged(states)
    for name, value in merged.items():
        own = [state[name] for state in states]
        assert (value.shape, value.dtype) == (own[0].shape, own[0].dtype), name
        mean = torch.stack([each.double() for each in own]).mean(0)
        of_first = (".filters", ".products", ".fitted", *(f".hardware.{each}" for each in FOUND_OUT))
        if ".drift." in name or ".memory." in name or name.endswith(of_first):
            assert torch.equal(value, own[0]), name
        else:
            assert torch.allclose(value.double(), mean, rtol=1e-5, atol=1e-7), name
    assert any(not torch.equal(merged[name], states[0][name]) for name in merged)


@every_recipe
def test_a_merged_state_is_that_of_one_network(options: Recipe) -> None:
    """A network, or any number of replicas, continues from it."""
    merged = averaged(learned(options, 3))
    network = Network(options)
    ResumeState(1, merged, {"step": 1, "version": 1, "phase_position": 0}).check_network(dict(network._members()))
    network.load_state_dict(merged)
    assert_equal(network.state_dict(), merged)
    learn_alone(network, 40, 1, phases_of(options)[-1])
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())


@every_recipe
def test_equal_states_are_merged_to_that_state_bit_for_bit(options: Recipe) -> None:
    before = learned(options, 2)
    state = {name: value.clone() for name, value in before[1].items()}
    for name, value in state.items():
        if value.is_floating_point() and value.dim() and value.numel():
            value.view(-1)[:2] = torch.tensor([-0.0, 1e-42])
        elif name.endswith("samples"):
            value.fill_(1e6 / 3)
    for replicas in (1, 2, 3, 5, 64):
        merger = Merger()
        merger.merge(before)
        for merged in (averaged([state] * replicas), merger.merge([state] * replicas)):
            assert_same_bits(merged, state)


def assert_same_bits(got: State, want: State) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(got[name].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8)), name
        assert not value.numel() or got[name].data_ptr() != value.data_ptr(), f"{name} is not a copy"


def test_states_with_different_tensors_are_rejected() -> None:
    state = averaged(learned(SMALL, 2))
    with pytest.raises(ValueError, match="different networks"):
        averaged([state, {name: state[name] for name in list(state)[1:]}])


@pytest.mark.parametrize("value", [torch.tensor(3), torch.tensor([True, False])], ids=["integer", "boolean"])
def test_integers_without_a_rule_may_not_differ(value: Tensor) -> None:
    state: State = {"layers.0.objective.position": value}
    assert_same_bits(averaged([state, state]), state)
    with pytest.raises(ValueError, match=r"layers\.0\.objective\.position"):
        averaged([state, {"layers.0.objective.position": torch.zeros_like(value)}])


# --- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(7, 7), (7, 7, 7), (7, 2, 5), (3, 7, 1, 7)], ids=str)
def test_after_a_merge_every_replica_knows_how_much_all_have_learned(sizes: tuple[int, ...]) -> None:
    networks = [Network(SMALL) for _ in sizes]
    for step, (network, rows) in enumerate(zip(networks, sizes, strict=True)):
        learn_alone(network, step, len(sizes), rows=rows)
    merged = averaged([network.state_dict() for network in networks])
    assert int(merged["input.seen"]) == sum(sizes)
    for layer in (0, 1):
        assert float(merged[f"layers.{layer}.samples"]) == pytest.approx(sum(sizes))


def test_the_merged_mean_of_the_images_is_that_of_all_images() -> None:
    networks = [Network(SMALL) for _ in range(3)]
    for step, network in enumerate(networks):
        learn_alone(network, step, 3)
    images = torch.cat([formulas.random_images(7, SMALL.inputs, seed=step) for step in range(3)])
    merged = averaged([network.state_dict() for network in networks])
    assert torch.allclose(merged["input.mean"].double(), images.double().mean(0) / 255, atol=1e-6)


def test_the_ema_of_a_replica_follows_as_if_it_had_learned_the_samples_of_all() -> None:
    network = Network(SMALL)
    learn_alone(network, 0, 1)
    before = network.state_dict()
    learn_alone(network, 4, 4)
    after = network.state_dict()
    samples = 7 + 4 * 7
    assert float(after["layers.1.samples"]) == samples
    want = before["layers.1.ema"].double().lerp(after["layers.1.parameters"].double(), 28 / (28 + samples / 5))
    assert torch.allclose(after["layers.1.ema"].double(), want, atol=1e-6)


def test_the_schedule_of_a_replica_counts_the_samples_of_all() -> None:
    alone, one_of_four = Network(SMALL), Network(SMALL)
    for step in range(8):
        learn_alone(alone, step, 1)
    for step in (0, 4):
        learn_alone(one_of_four, step, 4)
    rates = [[layer.parameters.learning_rate for layer in network.layers] for network in (alone, one_of_four)]
    assert rates[0] == rates[1]


# --- drift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("replicas", "steps"), [(1, [0, 4, 8]), (2, [0, 4, 8]), (3, [0, 3, 6, 9]), (8, [0, 8])])
def test_only_the_first_replica_looks_for_a_drift_and_as_often_as_one_network(
    replicas: int, steps: list[int]
) -> None:
    test = CumulativeSum(Restart(every=4, rows=32), 100)
    assert [step for step in range(12) if test.rows_due(step, 128, replicas)] == steps
    assert all(step % replicas == 0 for step in steps)


def test_what_one_replica_restarted_restarts_in_all() -> None:
    merger = Merger()
    before = merger.merge(learned(SMALL, 3))
    later = learned(SMALL, 3, steps=8)
    later[0]["layers.1.samples"].fill_(9.0)
    want = averaged(later)
    merged = merger.merge(later)
    assert float(merged["layers.1.samples"]) == 9
    assert torch.equal(merged["layers.1.ema"], want["layers.1.parameters"])
    assert float(merged["layers.0.samples"]) == float(want["layers.0.samples"]) > float(before["layers.0.samples"])
    assert torch.equal(merged["layers.0.ema"], want["layers.0.ema"])
    assert_equal(averaged(later, merger.state_dict()), want)  # the restart is known to all: it counts once


def test_what_all_replicas_restarted_stays_as_it_is() -> None:
    merger = Merger()
    merger.merge(learned(SMALL, 2, steps=8))
    state = learned(SMALL, 2, steps=1)[0]
    assert_same_bits(merger.merge([state, state]), state)


def test_a_drift_that_the_first_replica_found_is_known_to_all() -> None:
    options = SMALL.change(drift={"kind": "restart"})
    states = learned(options, 3)
    states[0]["layers.0.drift.restarts"].fill_(2)
    states[0]["layers.0.drift.since_change"].fill_(40)
    states[1]["layers.0.drift.since_change"].fill_(90)
    merged = averaged(states)
    assert int(merged["layers.0.drift.restarts"]) == 2
    assert int(merged["layers.0.drift.since_change"]) == 40


def test_only_the_first_replica_looks_for_a_change_of_its_device() -> None:
    options = SMALL.change(hardware="analog", batch_size=64, warmup_samples=0, replay=0)
    replicas = [Network(options), Network(options)]

    def found(images_BI: Tensor) -> list[int]:
        """How many changes each replica has found after two microbatches with these images."""
        for step, network in enumerate(replicas):
            network.learn(images_BI, formulas.labels_for(options, 64, seed=step), step, replicas=2)
        return [network.layers[0].formulas.hardware.changes for network in replicas]

    usual_BI = formulas.random_images(64, options.inputs, seed=0)
    for _ in range(80):
        assert found(usual_BI) == [0, 0]
    assert found(torch.zeros_like(usual_BI)) == [1, 0]
    merged = averaged([network.state_dict() for network in replicas])
    for name in (f"layers.0.hardware.{each}" for each in FOUND_OUT):
        assert torch.equal(merged[name], replicas[0].state_dict()[name])


# --- momentum ------------------------------------------------------------------------------------------------------

KEY, EMA, SAMPLES = "layers.0.parameters", "layers.0.ema", "layers.0.samples"


def rounds(count: int) -> list[list[State]]:
    """States of three replicas at each of so many merges."""
    generator = torch.Generator().manual_seed(3)
    like = Network(SMALL).state_dict()
    return [
        [
            {
                name: torch.rand(like[name].shape, generator=generator).to(like[name].dtype) + at
                for name in (KEY, EMA, SAMPLES)
            }
            for _ in range(3)
        ]
        for at in range(count)  # counts grow from merge to merge: nothing is restarted
    ]


def test_parameters_are_merged_with_momentum_by_the_formula() -> None:
    merger = Merger()
    last: Tensor | None = None
    velocity = torch.zeros(())
    for states in rounds(5):
        merged = merger.merge(states)
        mean = torch.stack([state[KEY].double() for state in states]).mean(0)
        velocity = torch.zeros_like(mean) if last is None else MOMENTUM * velocity + mean - last
        last = mean + MOMENTUM * velocity
        assert torch.allclose(merged[KEY].double(), last, atol=1e-5)
        ema = torch.stack([state[EMA].double() for state in states]).mean(0)
        assert torch.allclose(merged[EMA].double(), ema, atol=1e-6)


def test_the_first_merge_has_no_momentum() -> None:
    (states,) = rounds(1)
    assert_equal(Merger().merge(states), averaged(states))


def test_a_merger_continues_from_its_state_bit_for_bit() -> None:
    whole, first = Merger(), Merger()
    given = rounds(5)
    wanted = [whole.merge(states) for states in given]
    for states in given[:3]:
        first.merge(states)
    saved = first.state_dict()
    kept = {name: value.clone() for name, value in saved.items()}
    first.merge(given[3])
    assert_equal(saved, kept)
    resumed = Merger()
    resumed.load_state_dict(saved)
    for states, want in zip(given[3:], wanted[3:], strict=True):
        assert_equal(resumed.merge(states), want)
    assert_equal(resumed.state_dict(), whole.state_dict())


def test_merging_changes_neither_the_given_states_nor_what_it_returned_before() -> None:
    merger = Merger()
    (first, second) = rounds(2)
    kept = [{name: value.clone() for name, value in state.items()} for state in first]
    merged = merger.merge(first)
    merged_before = {name: value.clone() for name, value in merged.items()}
    merger.merge(second)
    for state, before in zip(first, kept, strict=True):
        assert_equal(state, before)
    assert_equal(merged, merged_before)


# --- the first part of the stream ----------------------------------------------------------------------------------


def test_every_replica_learns_the_start_of_the_stream() -> None:
    stream = recipe("stream")
    assert [stream.replicas_after(seq, 4) for seq in (0, 8191, 8192, 60_000)] == [1, 1, 4, 4]
    whitened = recipe("cifar-conv")
    assert [whitened.replicas_after(seq, 4) for seq in (0, 1023, 1024)] == [1, 1, 4]
    assert recipe("conv").replicas_after(0, 4) == 4


def test_averaged_weights_predict() -> None:
    states = learned(SMALL, 2)
    networks = []
    for state in states:
        networks.append(Network(SMALL))
        networks[-1].load_state_dict(state)
    merged = Network(SMALL)
    merged.load_state_dict(merging.averaged(states))
    assert_equal(merging.averaged([network.weights() for network in networks]), merged.weights())
