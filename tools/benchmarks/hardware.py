"""Learning through an unknown device, beside learning without it and moving there, and beside backpropagation.

For each kind of device and each seed, one pass over the training split, as a daemon would form its microbatches:

    through             Forward-Forward learns on the device and predicts through it
    moved               it learns on an ideal device, and its weights are moved to this one
    backprop through    the device computes the forward pass; the backward pass has the programmed weights
    backprop moved      backpropagation learns on an ideal device, and its weights are moved to this one

The hidden layers of the peer run on the same devices as the layers; its output layer is ideal, and so are
normalisation and goodness of the layers. After a move, the range of the converters is set on 4,096 training images.

Where the device is replaced by another one in the middle of the pass, the error is measured right before it, right
after it, some microbatches later and at the end: of `aware` layers, which find negative gains and changes, of those
that find only `signs`, and of `unaware` ones.

Shapes: N rows, I inputs, F units.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from ffstream.config import Config
from ffstream.data import Dataset
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.hardware_model import Array, Device, Observation
from ffstream.ff.maps import WEIGHT, Map
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.figures import Options as Accuracy
from tools.benchmarks.accuracy.figures import config_of
from tools.benchmarks.accuracy.learners import (
    CPU,
    ForwardForward,
    Learner,
    Splits,
    error,
    held_out_error,
    splits_of,
)
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

Options = Mapping[str, Any]
Errors = Mapping[str, Sequence[float]]  # in percent, by way; one for each seed
DEVICES: Mapping[str, Options] = {
    "ideal": {},
    "stuck10": {"stuck": 0.1},
    "dead30": {"dead": 0.3},
    "bits2": {"bits": 2},
    "mismatch50": {"mismatch": 0.5},
    "mild": {"mismatch": 0.1, "noise": 0.05, "stuck": 0.05, "bits": 4, "dead": 0.1},
    "hard": {"mismatch": 0.2, "noise": 0.1, "stuck": 0.1, "bits": 3, "dead": 0.3},
}
CHANGES: Mapping[str, Options] = {"change20": {"mismatch": 0.2}, "change50": {"mismatch": 0.5}}
FINDS: Mapping[str, Options] = {
    "aware": {},
    "signs": {"finds_changes": False},
    "unaware": {"finds_changes": False, "finds_signs": False},
}
WAYS: Mapping[str, str] = {
    "through": "FF through the device",
    "moved": "FF moved to it",
    "backprop moved": "backprop moved to it",
    "backprop through": "backprop with it in the forward pass",
}
_PEERS = {way: f"backprop {way}" for way in ("through", "moved")}
# Activities are read by a converter, so they are not negative: the preset `stream` with ReLU, and settings for that.
RECIPE = Accuracy(
    settings=(
        "network.activation=relu",
        "network.objective.alpha=10.0",
        "network.objective.smoothing=0.15",
        "network.replay_buffer=10000",
        "network.replay_jitter=2",
    )
)
PEER = PeerSettings(learning_rate=0.0025, schedule_samples=25_600.0, smoothing=0.1)
_CALIBRATION = 4096
_LATER = (8, 16, 32, 64)  # microbatches after a change
_FLOAT = torch.float32


def run(
    report: Report, dataset: Dataset, kinds: Sequence[str], seeds: int, *, validation: bool = False
) -> dict[str, Errors]:
    """Every kind with every seed, which decides stream, weights and device. Rows have the means over the seeds."""
    splits = splits_of(dataset, validation=validation)
    found: dict[str, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for seed in range(seeds):
        experiment = Experiment(config_of(dataset, RECIPE, seed), splits, seed)
        for kind in kinds:
            for way, value in experiment.errors(kind).items():
                found[kind].setdefault(way, []).append(value)
    for kind, errors in found.items():
        _add(report, f"hardware/{dataset.name}/{kind}", errors)
    return dict(found)


def _add(report: Report, name: str, errors: Errors) -> None:
    """A row for each way, with what the peer does in the same way beside it."""
    for way, values in errors.items():
        if (peer := _PEERS.get(way, "")) in errors:
            peers = errors[peer]
            report.add(
                f"{name}/{way}", mean(values), "%", peer, mean(peers), values=_text(values), peers=_text(peers)
            )
        elif way not in _PEERS.values():
            report.add(f"{name}/{way}", mean(values), "%", values=_text(values))


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def question(report: Report, digits: Dataset) -> None:
    """The question at a small size, with few digits."""
    run(report, digits, ["hard"], 1)


class Experiment:
    """One seed: stream, initial weights and device. What is learned on an ideal device is learned once."""

    def __init__(self, config: Config, splits: Splits, seed: int) -> None:
        self._config, self._splits, self._seed = config, splits, seed
        self._ideal: tuple[ForwardForward, OnDevice] | None = None

    def errors(self, kind: str) -> dict[str, float]:
        """The errors in percent, by way."""
        if kind in DEVICES:
            return self._beside_peer(DEVICES[kind])
        found: dict[str, float] = {}
        for way, finds in FINDS.items():
            errors = self._around_change({**CHANGES[kind], **finds})
            found |= {f"{way}/{when}": value for when, value in errors.items()}
        return found

    def _beside_peer(self, options: Options) -> dict[str, float]:
        if self._ideal is None:
            self._ideal = ForwardForward(self._config.network, _FLOAT), OnDevice(self._config.network)
            self._learn(*self._ideal)
        ours, theirs = self._ideal
        if not options:
            return {"through": self._error(ours), "backprop through": self._error(theirs)}
        recipe, images = self._recipe(options), self._calibration()
        through, peer = ForwardForward(recipe, _FLOAT), OnDevice(recipe)
        self._learn(through, peer)
        there = through.predictor(moved(ours.network, recipe, images))
        return {
            "through": self._error(through),
            "moved": 100 * error(there, self._splits.held_out),
            "backprop moved": self._error(moved_peer(theirs, recipe, images)),
            "backprop through": self._error(peer),
        }

    def _around_change(self, options: Options) -> dict[str, float]:
        """Before and after the device has changed in the middle of the pass, and at the end."""
        at = self._config.network.whole_up_to(len(self._splits.train) // 2)
        learner = ForwardForward(self._recipe({**options, "changes_at": (at,)}), _FLOAT)
        found: dict[str, float] = {}
        later = 0
        for batch in self._stream():
            if batch.seq == at:  # the device changes once this microbatch is learned
                found["before"] = self._error(learner)
            learner.learn(batch)
            if batch.seq == at:
                found["after"] = self._error(learner)
            later += batch.seq > at
            if later in _LATER:
                found[f"{later}_later"] = self._error(learner)
        return found | {"end": self._error(learner)}

    def _recipe(self, options: Options) -> Recipe:
        return self._config.network.change(hardware={"kind": "analog", "seed": self._seed, **options})

    def _stream(self) -> Iterator[MicroBatch]:
        stream = Microbatches(self._config, self._splits.train, self._seed)
        while stream.seq < len(self._splits.train):
            yield stream.next()

    def _learn(self, *learners: Learner) -> None:
        for batch in self._stream():
            for learner in learners:
                learner.learn(batch)

    def _error(self, learner: Learner) -> float:
        return 100 * held_out_error(learner, self._splits.held_out)

    def _calibration(self) -> Tensor:
        images = self._splits.train.images[:_CALIBRATION]
        return torch.from_numpy(images.reshape(len(images), -1))


class OnDevice(Backprop):
    """The peer, whose hidden layers run on the devices of a recipe."""

    def __init__(self, recipe: Recipe, settings: PeerSettings | None = None) -> None:
        super().__init__(recipe, settings or PEER, _FLOAT)
        self._hidden = [Hidden(recipe, index, shape) for index, shape in enumerate(recipe.input_shapes())]

    def learn(self, batch: MicroBatch) -> None:
        """One update through the devices."""
        super().learn(batch)
        for hidden in self._hidden:
            hidden.learned(batch.fresh)

    def _logits(self, x_NI: Tensor, layers: list[dict[str, Tensor]]) -> Tensor:
        *inner, last = layers
        for hidden, forward, parameters in zip(self._hidden, self._forwards, inner, strict=False):
            x_NI = hidden.read(x_NI, forward(x_NI, parameters), parameters).relu()
        return self._forwards[-1](x_NI, last)


class Hidden:
    """The device of a hidden layer of the peer."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape) -> None:
        connection = recipe.layers[index].connection
        units = size_of(connection.output_shape(input_shape))
        self._map: Map = connection.build(input_shape)
        shape = connection.parameters(input_shape)[WEIGHT]
        array = Array(self._map, shape, connection.fan_in(input_shape), units, index, CPU)
        self._device: Device = recipe.layers[index].hardware.build(array)
        self._observation: Observation | None = None

    def read(self, x_NI: Tensor, z_NF: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """What is read in place of z. Its gradient is that of z."""
        with torch.no_grad():
            ones_N = x_NI.new_ones(len(x_NI))
            weights = self._device.program(parameters)
            read_NF = self._map.forward(x_NI, ones_N, weights, Buffers()).z_NO
            read_NF = self._device.read(read_NF, x_NI, ones_N, weights)
            self._observation = self._device.observe(read_NF, x_NI, ones_N, parameters)
        return z_NF + (read_NF - z_NF).detach()

    def learned(self, fresh: int) -> None:
        """The last reading was learned."""
        self._device.learned(self._observation, fresh)


def moved(ideal: Network, recipe: Recipe, images_BI: Tensor) -> dict[str, Tensor]:
    """The weights that predict, on the device of the recipe. It reads the images, so that its converters fit."""
    network = Network(recipe.change(learning_rate=0.0))
    network.load_weights(network.weights() | ideal.weights())
    for step, part_BI in enumerate(images_BI.split(recipe.batch_size)):
        network.learn(part_BI, torch.zeros(len(part_BI), dtype=torch.int64), step)
    return network.weights() | ideal.weights()


def moved_peer(ideal: OnDevice, recipe: Recipe, images_BI: Tensor) -> OnDevice:
    """The same for the peer."""
    peer = OnDevice(recipe, PeerSettings(learning_rate=0.0))
    state = ideal.state_dict()
    peer.load_state_dict(state | {"parameters": state["ema"]})
    for step, part_BI in enumerate(images_BI.split(recipe.batch_size)):
        labels_B = torch.zeros(len(part_BI), dtype=torch.int64)
        peer.learn(MicroBatch(step, 0, "interleaved", part_BI, labels_B, 0))
    peer.load_state_dict(state)
    return peer


def draw(path: Path, found: Mapping[str, Errors], held_out: str) -> None:
    """Writes a PNG: for each kind of device and each way a line at the mean over the seeds, and a dot for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (way, label) in enumerate(WAYS.items()):
        points = [
            (place + 0.2 * (number - 1.5), each[way]) for place, each in enumerate(found.values()) if way in each
        ]
        means = [mean(errors) for _, errors in points]
        axes.plot(
            [at for at, _ in points], means, "_", color=f"C{number}", markersize=24, markeredgewidth=3, label=label
        )
        for at, errors in points:
            axes.plot([at] * len(errors), errors, ".", color=f"C{number}", markersize=5)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_yscale("log")
    for axis_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_formatter("{x:g}")
    axes.set_ylabel(f"{held_out} error in %")
    axes.grid(visible=True, which="both", axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)


def table(found: Mapping[str, Errors]) -> str:
    """The mean errors over the seeds in percent as a table: a row for each kind of device, a column for each way."""
    rows = [["device", *WAYS.values()], ["---"] * (1 + len(WAYS))]
    for kind, errors in found.items():
        rows.append([kind, *(f"{mean(errors[way]):.2f}" if way in errors else "" for way in WAYS)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
