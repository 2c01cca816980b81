"""What separate phases need: the objective `evoked` with its running threshold, opponents, centred label vectors."""

import math
from typing import Any

import pytest
import torch

from ffstream.ff.balanced_threshold import BalancedThreshold
from ffstream.ff.network import Network
from ffstream.ff.objective import Evoked, Phase, threshold_losses
from ffstream.ff.opponent import AverageGradient
from ffstream.ff.recipe import Recipe
from tests.battery import assert_equal
from tests.unit.ff.formulas import CONDITIONED, EVOKED, SMALL, learn

CPU = torch.device("cpu")
CENTRED = EVOKED.change(constraint={"kind": "centred_labels", "rms": 0.7})
ROUNDS: list[Phase] = ["wake", "wake", "sleep", "interleaved", "sleep", "wake"]


def goodness(step: int) -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) * 3 + 5


OWN, WRONG = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 2, 3])


def test_each_running_mean_follows_rows_of_its_sign_and_theta_lies_between_them() -> None:
    loss = BalancedThreshold(Evoked(alpha=0.3, mean_rate=0.25), CPU)
    seen: dict[str, list[float]] = {"positive": [], "negative": []}
    for step, phase in enumerate(ROUNDS):
        G_BL = goodness(step)
        loss.by_label(G_BL, OWN, WRONG, phase)
        if phase != "sleep":
            seen["positive"].append(float(G_BL.gather(1, OWN[:, None]).mean()))
        if phase != "wake":
            seen["negative"].append(float(G_BL.gather(1, WRONG[:, None]).mean()))
        means = []
        for sign, values in seen.items():
            shares = [0.75 ** (len(values) - 1 - at) for at in range(len(values))]
            want = sum(s * v for s, v in zip(shares, values, strict=True)) / sum(shares) if values else float("nan")
            assert getattr(loss.balance(), sign) == pytest.approx(want, rel=1e-5, nan_ok=True)
            means += [want] if values else []
        assert loss.balance().theta == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.mark.parametrize("phase", ["interleaved", "wake", "sleep"])
def test_the_loss_is_the_threshold_loss_with_theta_as_it_was_before(phase: Phase) -> None:
    loss = BalancedThreshold(Evoked(alpha=0.3), CPU)
    loss.by_label(goodness(0), OWN, WRONG, "interleaved")
    theta, G_BL = loss.balance().theta, goodness(1)
    found = loss.by_label(G_BL, OWN, WRONG, phase)
    positive_B = G_BL.gather(1, OWN[:, None])[:, 0] if phase != "sleep" else None
    negative_B = G_BL.gather(1, WRONG[:, None])[:, 0] if phase != "wake" else None
    plus_B, minus_B, want = threshold_losses(positive_B, negative_B, 0.3, theta)
    assert torch.allclose(found.statistics().loss, want)
    gradient_BL = torch.zeros(6, 4)
    if plus_B is not None:
        gradient_BL.scatter_(1, OWN[:, None], plus_B[:, None])
    if minus_B is not None:
        gradient_BL.scatter_(1, WRONG[:, None], minus_B[:, None])
    assert torch.allclose(found.goodness_gradient, gradient_BL)


def test_nothing_is_known_before_the_first_microbatch() -> None:
    (layer, *_) = Network(EVOKED).layers
    balance = layer.figures().balance
    assert balance is not None
    assert all(math.isnan(value) for value in balance)
    network = Network(EVOKED)
    learn(network, 1, 1, "wake")
    balance = network.layers[0].figures().balance
    assert balance is not None
    assert balance.theta == pytest.approx(balance.positive)
    assert math.isnan(balance.negative)


def test_what_an_image_evokes_with_every_label_is_not_learned() -> None:
    """If no label changes the activities, a positive and a negative row cancel out exactly."""
    network = Network(EVOKED.change(label_scheme="vectors"))
    state = network.state_dict()
    for index in range(2):
        views = network.layers[index].parameters.views
        views["label_vectors"].zero_()
        state[f"layers.{index}.parameters"] = network.layers[index].parameters.flat.clone()
    network.load_state_dict(state)
    learn(network, 1, 1, "wake")
    for layer in network.layers:
        assert not layer.parameters.gradients["weight"].any()
        assert not layer.parameters.gradients["bias"].any()
        assert layer.parameters.gradients["label_vectors"].any()


def test_weights_are_a_new_start_for_running_means_and_opponents() -> None:
    recipe = EVOKED.change(opponent="average", ema_samples=0.0)
    network, fresh = Network(recipe), Network(recipe)
    learn(network, 1, 3, "wake")
    learn(network, 4, 6, "sleep")
    network.load_weights(fresh.weights())
    state, want = network.state_dict(), fresh.state_dict()
    for name in want:
        if ".objective." in name or ".opponent." in name:
            assert not want[name].any()
    assert_equal(
        {name: value for name, value in state.items() if not name.startswith("input")},
        {name: value for name, value in want.items() if not name.startswith("input")},
    )


# --- opponents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_rate", [0.0, 0.75])
def test_the_opponent_adds_the_other_phases_average_until_it_is_too_old(min_rate: float) -> None:
    opponent = AverageGradient(decay=0.75, reach=2, min_rate=min_rate).build(torch.zeros(3))
    averages = {"wake": torch.zeros(3), "sleep": torch.zeros(3)}
    since = {"wake": 0, "sleep": 0}
    phases: list[Phase] = ["wake", "wake", "sleep", "sleep", "wake", "wake", "wake", "wake", "wake", "wake", "sleep"]
    strengths = []
    for step, phase in enumerate(phases):
        other = "sleep" if phase == "wake" else "wake"
        gradient = torch.randn(3, generator=torch.Generator().manual_seed(step))
        strength = min(1.0, max(0.0, 2 - since[other] / 2))
        want = gradient + strength * averages[other]
        kept = gradient.clone()
        made = opponent.apply(gradient, phase)
        assert torch.allclose(made.gradient, want)
        assert made.rate == max(min_rate, strength)
        assert torch.equal(gradient, kept)
        averages[phase] = 0.75 * averages[phase] + 0.25 * gradient
        since[phase], since[other] = 0, since[other] + 1
        strengths.append(strength)
    assert strengths[4:10] == [1, 1, 1, 0.5, 0, 0]
    assert strengths[10] == 1


def test_interleaved_rows_of_both_signs_have_no_opponent() -> None:
    recipes = [EVOKED, EVOKED.change(opponent="average")]
    networks = [Network(recipe) for recipe in recipes]
    for network in networks:
        learn(network, 1, 4)
    assert_equal(networks[0].weights(), networks[1].weights())
    for network in networks:
        learn(network, 5, 6, "wake")
        learn(network, 7, 8, "sleep")
    assert not torch.equal(
        networks[0].state_dict()["layers.0.parameters"], networks[1].state_dict()["layers.0.parameters"]
    )


# --- constraints -------------------------------------------------------------------------------------------------


def test_label_vectors_begin_at_random_and_keep_their_length_and_their_mean() -> None:
    network, other = Network(CENTRED), Network(CENTRED.change(seed=5))
    begun = [net.layers[0].parameters.views["label_vectors"].clone() for net in (network, other)]
    assert not torch.allclose(begun[0], begun[1])
    for _ in range(3):
        for layer in network.layers:
            vectors_LF = layer.parameters.views["label_vectors"]
            assert torch.allclose(vectors_LF.square().mean(1).sqrt(), torch.tensor(0.7), rtol=1e-4)
            assert float(vectors_LF.mean(0).abs().max()) < 0.35  # centred, and then rescaled one by one
        learn(network, 1, 3, "wake")
    assert not torch.allclose(network.layers[0].parameters.views["label_vectors"], begun[0], atol=1e-3)


def test_centring_and_rescaling_follow_their_formula() -> None:
    vectors_LF = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    centred_LF = vectors_LF - vectors_LF.mean(0)
    want_LF = 0.5 * centred_LF / centred_LF.square().mean(1).sqrt()[:, None]
    parts: dict[str, torch.Tensor] = {"label_vectors": vectors_LF}
    EVOKED.change(constraint="centred_labels").layers[0].constraint.apply_(parts)
    assert torch.allclose(vectors_LF, want_LF, atol=1e-6)


# --- options -----------------------------------------------------------------------------------------------------

WRONG_OPTIONS: list[tuple[Recipe, dict[str, Any], str]] = [
    (EVOKED, {"activities": "label_conditioned"}, "needs network.activities"),
    (EVOKED, {"label_scheme": "groups"}, "needs network.activities"),
    (SMALL, {"opponent": "average"}, "has no phases"),
    (SMALL, {"label_scheme": "groups", "constraint": "centred_labels"}, "no label vectors"),
    (CONDITIONED.change(constraint="none"), {"objective": "evoked"}, "needs network.activities"),
    (EVOKED, {"objective": {"mean_rate": 0.0}}, "mean_rate = 0.0: expected"),
    (EVOKED, {"opponent": {"kind": "average", "reach": 0}}, "reach = 0: expected"),
]


@pytest.mark.parametrize(("recipe", "options", "said"), WRONG_OPTIONS)
def test_options_that_cannot_work_are_rejected(recipe: Recipe, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe.change(**options)
