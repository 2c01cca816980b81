"""The accuracy benchmark: the microbatches of a daemon, runs that can be killed, the backprop peer, and rows."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from ffstream.data import Split
from ffstream.errors import ConfigError
from ffstream.ff.network import Network
from ffstream.ff.presets import PRESETS
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from ffstream.util.labels import UNLABELLED
from tests.unit.pipeline.run import (
    CONDITIONED,
    INPUTS,
    LABELS,
    RECIPE,
    UNSUPERVISED,
    Options,
    Run,
    Store,
    assert_same,
)
from tools.benchmarks.__main__ import main
from tools.benchmarks.accuracy import backprop, figures, plot, run, tuning
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.learners import ForwardForward, Learner
from tools.benchmarks.accuracy.rows import standing
from tools.benchmarks.accuracy.run import Files, Plan, Point
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Failed

SIZE = 50  # no multiple of a microbatch, so each pass ends with a flushed one
GRID = {"replay": 3, "replay_jitter": 1, "warmup_samples": 8}
PEER = PeerSettings(learning_rate=0.01, schedule_samples=100.0, smoothing=0.1)


def split(size: int = SIZE, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    return Split(rng.integers(0, 256, (size, 4, 4), np.uint8), rng.integers(0, LABELS, size).astype(np.uint8))


def in_order(samples: Split, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of a pass, as `ffstream replay --seed` sends them."""
    at = np.random.default_rng([seed, number]).permutation(len(samples))
    return samples.images[at].reshape(-1, INPUTS), samples.labels[at].astype(np.int64)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty journal."""
    store = Store(tmp_path)
    yield store
    for each in store.runs:
        each.end()
    store.journal.close()


# --- the stream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "wake", "sleep"),
    [(RECIPE.change(**GRID), 0, 0), (RECIPE.change(replay=0), 0, 0), (CONDITIONED.change(**GRID), 3, 2)],
    ids=["replay", "no replay", "wake and sleep"],
)
def test_the_serial_reference_learns_what_a_daemon_learns(
    store: Store, recipe: Recipe, wake: int, sleep: int
) -> None:
    options, samples, seed = Options(partial="flush", wake=wake, sleep=sleep), split(), 5
    microbatches = Microbatches(options.config(recipe), samples, seed)
    learner = ForwardForward(recipe, torch.float32)
    published = {0: 0}  # microbatch, and the steps that the weights which predict it have learned
    # Before the pipeline, so that kernels are compiled when its deadlines begin.
    while microbatches.seq < 2 * SIZE or microbatches.phase == "sleep":
        batch = microbatches.next()
        learner.learn(batch)
        published[batch.step + 1] = batch.step + 1 if microbatches.publishes else published[batch.step]
    pipelined = Run(store, recipe, options).start()
    for number in range(2):
        store.write(*in_order(samples, number, seed))
        pipelined.wait_applied((number + 1) * SIZE)  # a pause, which flushes
    last = pipelined.stop()
    assert (last.step, last.seq) == (microbatches.step, 2 * SIZE)
    assert_same(last.tensors, learner.state_dict())
    assert all(torch.equal(last.tensors[name], value) for name, value in microbatches.state_dict()[0].items())
    steps_of = {barrier.version: barrier.step for barrier in pipelined.barriers} | {0: 0}
    first_pass = [each for each in pipelined.observed if each[0].seq <= SIZE]
    assert first_pass
    for batch, version in first_pass:
        assert steps_of[version] == published[batch.step]


@pytest.mark.parametrize("fraction", [0.0, 0.4])
def test_the_same_samples_have_a_label_in_each_pass(fraction: float) -> None:
    """And errors are counted over those only."""
    recipe, samples = RECIPE.change(replay=0), split()
    microbatches = Microbatches(Options().config(recipe), samples, 1, fraction)
    passes: list[set[bytes]] = [set(), set()]
    while microbatches.seq < 2 * SIZE:
        batch = microbatches.next()
        known = batch.images[batch.labels != UNLABELLED]
        passes[(microbatches.seq - 1) // SIZE] |= {image.numpy().tobytes() for image in known}
    assert passes[0] == passes[1]
    assert len(passes[0]) == fraction * SIZE
    learner = ForwardForward(UNSUPERVISED, torch.float32)
    config = Options().config(UNSUPERVISED)
    found = run.Run(learner, Microbatches(config, samples, 1, fraction), split(40, 1), Plan(SIZE, SIZE, False))
    found.advance(SIZE)
    assert found.points[-1].predicted == fraction * SIZE
    assert found.points[-1].wrong <= fraction * SIZE


# --- runs --------------------------------------------------------------------------------------------------------


def forward_forward(recipe: Recipe) -> Learner:
    return ForwardForward(recipe, torch.bfloat16)


def peer(recipe: Recipe) -> Learner:
    return Backprop(recipe, PEER, torch.bfloat16)


def begin(learner: Learner, files: Files | None = None) -> run.Run:
    config = Options().config(RECIPE.change(**GRID))
    plan = Plan(SIZE, every=12, every_error=True)
    return run.Run(learner, Microbatches(config, split(), 1), split(40, 1), plan, files)


def without_seconds(points: list[Point]) -> list[Point]:
    return [replace(point, seconds=0.0) for point in points]


class Interrupted(Exception):
    """Raised in the middle of a run."""


class Interrupting:
    """A learner that fails at a step."""

    def __init__(self, learner: Learner, step: int) -> None:
        self._learner, self._step = learner, step
        self.weights, self.predictor = learner.weights, learner.predictor
        self.state_dict, self.load_state_dict = learner.state_dict, learner.load_state_dict

    def learn(self, batch: MicroBatch) -> None:
        if batch.step == self._step:
            raise Interrupted
        self._learner.learn(batch)


@pytest.mark.parametrize("make", [forward_forward, peer])
@pytest.mark.parametrize("step", [2, 9, 20])
def test_an_interrupted_run_continues_bit_for_bit(
    tmp_path: Path, make: Callable[[Recipe], Learner], step: int
) -> None:
    recipe = RECIPE.change(**GRID)
    whole = begin(make(recipe))
    whole.advance(2 * SIZE)
    interrupted = begin(Interrupting(make(recipe), step), Files(tmp_path, "run"))
    with pytest.raises(Interrupted):
        interrupted.advance(2 * SIZE)
    (tmp_path / "leftover.state.tmp").write_bytes(b"half a state")
    continued = begin(make(recipe), Files(tmp_path, "run"))
    assert len(continued.points) == len(interrupted.points)
    continued.advance(2 * SIZE)
    assert without_seconds(continued.points) == without_seconds(whole.points)
    assert_equal(continued.learner.state_dict(), whole.learner.state_dict())
    lines = Files(tmp_path, "run").points.read_text().splitlines()
    assert [Point(**json.loads(line)) for line in lines] == continued.points


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tests.unit.tools.test_accuracy import GRID, RECIPE, Files, begin, forward_forward

torch.set_num_threads(1)
files = Files(Path(sys.argv[1]), "run")
save = files.save
def save_or_die(state, points):
    if len(points) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, points)
files.save = save_or_die
begin(forward_forward(RECIPE.change(**GRID)), files).advance(100)
"""


def test_a_killed_run_continues(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120)
    assert died.returncode == -signal.SIGKILL
    torch.set_num_threads(1)
    continued = begin(forward_forward(RECIPE.change(**GRID)), Files(tmp_path, "run"))
    assert len(continued.points) == 3
    continued.advance(2 * SIZE)
    whole = begin(forward_forward(RECIPE.change(**GRID)))
    whole.advance(2 * SIZE)
    assert without_seconds(continued.points) == without_seconds(whole.points)


@pytest.mark.parametrize("make", [forward_forward, peer])
def test_a_longer_run_continues_a_shorter_one(tmp_path: Path, make: Callable[[Recipe], Learner]) -> None:
    recipe = RECIPE.change(**GRID)
    begin(make(recipe), Files(tmp_path, "run")).advance(SIZE)
    longer = begin(make(recipe), Files(tmp_path, "run"))
    longer.advance(2 * SIZE)
    whole = begin(make(recipe))
    whole.advance(2 * SIZE)
    assert_equal(longer.learner.state_dict(), whole.learner.state_dict())
    assert [point.samples for point in whole.points if point.samples % SIZE == 0] == [SIZE, 2 * SIZE]
    assert {point.predicted for point in whole.points if point.samples >= SIZE} == {SIZE}  # in the first pass only


def test_another_recipe_does_not_continue_a_run(tmp_path: Path) -> None:
    assert Files(tmp_path, "run", "a").state != Files(tmp_path, "run", "b").state


def test_a_run_goes_on_until_its_seconds_are_spent() -> None:
    longer = begin(forward_forward(RECIPE.change(**GRID)))
    longer.advance(SIZE)
    seconds = 2 * longer.points[-1].seconds
    longer.advance(SIZE, seconds)
    assert longer.points[-1].samples > SIZE
    assert longer.points[-1].seconds >= seconds
    assert longer.points[-1].error is not None


# --- the peer ----------------------------------------------------------------------------------------------------


def batches_of(recipe: Recipe, count: int) -> list[MicroBatch]:
    microbatches = Microbatches(Options().config(recipe), split(), 1)
    return [microbatches.next() for _ in range(count)]


def test_the_peer_is_a_perceptron_with_adam() -> None:
    recipe = RECIPE.change(preprocessing="none", normalization="rms", ema_samples=0, replay=0, warmup_batch_size=4)
    learner = Backprop(recipe, PeerSettings(0.01, 0.0, 0.1), torch.float32)
    sizes = [INPUTS, *(layer.connection.output_shape(())[0] for layer in recipe.layers), LABELS]
    linears = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    modules = [module for each in linears for module in (each, nn.ReLU())][:-1]
    model = nn.Sequential(*modules)
    first = learner.weights()["ema"]
    nn.utils.vector_to_parameters(first.clone(), model.parameters())
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in batches_of(recipe, 8):
        x = batch.images.float() / 255
        x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), batch.labels, label_smoothing=0.1).backward()
        adam.step()
        learner.learn(batch)
    trained = nn.utils.parameters_to_vector(model.parameters()).detach()
    found = learner.weights()["ema"]
    assert float((found - first).abs().max()) > 0.01
    torch.testing.assert_close(found, trained, rtol=1e-4, atol=1e-5)


def test_the_peer_learns_from_samples_with_a_label_only() -> None:
    recipe = RECIPE.change(preprocessing="none", replay=0)
    one, other = (Backprop(recipe, PEER, torch.float32) for _ in range(2))
    for batch in batches_of(recipe, 6):
        known = torch.arange(len(batch.labels)) % 2 == batch.step % 2
        one.learn(batch._replace(images=batch.images[known], labels=batch.labels[known]))
        other.learn(batch._replace(labels=batch.labels.masked_fill(~known, UNLABELLED)))
    other.learn(batch._replace(labels=torch.full_like(batch.labels, UNLABELLED)))
    assert_equal(one.weights(), other.weights())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fast_path_computes_the_formula(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    recipe = RECIPE.change(**GRID)

    def trained() -> Tensor:
        learner = Backprop(recipe, PEER, dtype)
        for batch in batches_of(recipe, 3):
            learner.learn(batch)
        return learner.weights()["ema"]

    fast = trained()
    monkeypatch.setattr(backprop, "FAST", {})
    torch.testing.assert_close(fast, trained(), rtol=0, atol=1e-5 if dtype is torch.float32 else 2e-3)


def test_the_peer_averages_its_weights_over_the_same_reach() -> None:
    recipe = RECIPE.change(**GRID)
    learner, network = Backprop(recipe, PEER, torch.float32), Network(recipe)
    for batch in batches_of(recipe, 6):
        learner.learn(batch)
        network.learn(batch.images, batch.labels, batch.step)
        assert float(learner.state_dict()["samples"]) == network.layers[0].parameters.samples


def test_the_rate_of_the_peer_falls_to_a_tenth() -> None:
    falling = PeerSettings(0.01, 100.0)
    assert [falling.rate(0), falling.rate(300), falling.rate(1e9)] == pytest.approx([0.01, 0.005, 0.001])
    assert PeerSettings(0.01).rate(1e9) == 0.01


def test_the_search_begins_with_the_default_and_returns_the_best() -> None:
    proposals = tuning.proposals(6)
    assert proposals[0] == PeerSettings()
    assert len(set(proposals)) == 6
    tried: list[PeerSettings] = []
    best, error = tuning.search(6, lambda each: -each.learning_rate, lambda settings, _: tried.append(settings))
    assert tried == proposals
    assert best == max(proposals, key=lambda each: each.learning_rate)
    assert error == -best.learning_rate


def test_kept_settings_belong_to_presets() -> None:
    kept = tuning.kept()
    assert "stream" in kept
    for preset in kept:
        assert preset in PRESETS
        assert isinstance(tuning.settings_of(preset), PeerSettings)
    with pytest.raises(ConfigError, match="--tune-peer"):
        tuning.settings_of("no such preset")


def test_printed_settings_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(tuning.as_toml("fast", PEER, dataset="mnist", trials=3))
    monkeypatch.setattr(tuning, "FILE", file)
    assert tuning.settings_of("fast") == PEER


# --- rows and curves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "found"),
    [([-0.1, -0.2], "ahead"), ([0.1, 0.2], "behind"), ([-0.1, 0.2], "undecided"), ([0.0, -0.1], "undecided")],
)
def test_ahead_means_that_the_difference_keeps_its_sign(differences: list[float], found: str) -> None:
    assert standing(differences) == found


POINTS = [Point(10, 1.0, 10, 5), Point(20, 2.0, 20, 6, 0.3), Point(40, 4.0, 20, 6, 0.2)]


def test_a_run_is_compared_only_where_it_was_measured() -> None:
    assert figures.end_of(POINTS, 20, 0.0) == figures.end_of(POINTS, 20, 3.5) == POINTS[1]
    with pytest.raises(Failed, match="passed 5 samples without a measurement"):
        figures.end_of(POINTS, 5, 0.0)
    with pytest.raises(Failed, match=r"passed 0\.5 CPU seconds without a measurement"):
        figures.end_of(POINTS, 20, 0.5)


def test_errors_before_learning_are_those_since_the_point_before() -> None:
    assert [(point.samples, error) for point, error in plot.before_learning(POINTS)] == [(10, 0.5), (20, 0.1)]


def test_learning_curves_are_drawn(tmp_path: Path) -> None:
    plot.draw(tmp_path / "curve.png", "a title", "test", {"ffstream": [POINTS, POINTS], "backprop": [POINTS]})
    with Image.open(tmp_path / "curve.png") as image:
        assert image.format == "PNG"
        colors = image.convert("RGB").getcolors(1 << 24)
        assert colors is not None
        assert {(31, 119, 180), (255, 127, 14)} <= {color for _, color in colors}  # the first two of matplotlib


def test_points_are_plain_json() -> None:
    assert [Point(**json.loads(json.dumps(asdict(point)))) for point in POINTS] == POINTS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_peer_that_learns_and_resumes(preset: str) -> None:
    recipe = make_recipe(preset)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, recipe.inputs), generator=generator, dtype=torch.uint8)
    batches = [MicroBatch(step, 6, "interleaved", images, torch.arange(6), 6) for step in range(3)]
    whole, resumed = (Backprop(recipe, PEER, torch.float32) for _ in range(2))
    first = whole.weights()["ema"]
    whole.learn(batches[0])
    resumed.load_state_dict(whole.state_dict())
    for batch in batches[1:]:
        whole.learn(batch)
        resumed.learn(batch)
    assert_equal(resumed.state_dict(), whole.state_dict())
    assert not torch.equal(whole.weights()["ema"], first)
    assert_equal(whole.weights(), resumed.weights())
    assert whole.predictor(whole.weights())(images).shape == (6,)


@pytest.mark.usefixtures("_signals_are_kept")
@pytest.mark.parametrize(
    "arguments",
    [["accuracy", "--dataset"], ["drift"], ["phases", "--dataset"], ["combinations"], ["dreams", "--dataset"]],
)
def test_a_data_set_that_is_not_there_is_explained(tmp_path: Path, arguments: list[str]) -> None:
    done = CliRunner().invoke(main, [*arguments, str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert "nowhere" in done.output


@pytest.mark.usefixtures("_signals_are_kept")
@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--preset", "fast"], 1, "--tune-peer N"),
        (["--preset", "no-such-preset", "--no-peer"], 1, "network.preset"),
        (["--passes", "2", "--through-daemon"], 2, "one pass"),
        (["--set", "network.no_such_option=1", "--no-peer"], 1, "no_such_option"),
    ],
)
def test_wrong_options_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, message: str
) -> None:
    monkeypatch.setattr(tuning, "FILE", tmp_path / "settings.toml")
    tuning.FILE.write_text("")
    done = CliRunner().invoke(main, ["accuracy", *arguments])
    assert done.exit_code == exit_code, done.output
    assert message in done.output


@pytest.mark.usefixtures("_signals_are_kept")
def test_trials_of_the_peer_say_that_they_had_one_seed() -> None:
    arguments = ["--preset", "fast", "--tune-peer", "1", "--samples", "64", "--seeds", "3", "--json"]
    done = CliRunner().invoke(main, ["accuracy", *arguments])
    assert done.exit_code == 0, done.output
    trial = next(json.loads(line) for line in done.output.splitlines() if line.startswith("{"))
    assert trial["seeds"] == [0]
