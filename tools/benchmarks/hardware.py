"""Learning through an unknown device, beside learning without it and moving there, and beside backpropagation.

For each severity and seed, one pass over the training split, as a daemon would form its microbatches:

    through      Forward-Forward learns on the device and predicts through it
    moved        it learns on an ideal device, and its weights are moved to this one
    peer moved   backpropagation learns on an ideal device, and its weights are moved
    peer         the device computes the forward pass of backpropagation; the backward pass has the programmed weights

The hidden layers of the peer run on devices drawn as those of the layers; its output layer is ideal, and so are the
normalisation and the goodness of the layers. After a move, the range of the converters is set on 4,096 training
images. With a change, the error is also measured right before it, right after it, and after some microbatches more.

Shapes: N rows, I inputs, F units.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ffstream.config import Config, load
from ffstream.data import Dataset
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import size_of
from ffstream.ff.hardware_model import Array, Device, Observation
from ffstream.ff.maps import WEIGHT, Map
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.learners import CPU, ForwardForward, Learner, Splits, error, splits_of
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.accuracy.tuning import settings_of
from tools.benchmarks.report import Report

Options = dict[str, Any]
SEVERITIES: dict[str, Options] = {
    "ideal": {},
    "stuck10": {"stuck": 0.1},
    "dead30": {"dead": 0.3},
    "bits2": {"bits": 2},
    "mismatch50": {"mismatch": 0.5},
    "mild": {"mismatch": 0.1, "noise": 0.05, "stuck": 0.05, "bits": 4, "dead": 0.1},
    "hard": {"mismatch": 0.2, "noise": 0.1, "stuck": 0.1, "bits": 3, "dead": 0.3},
}
CHANGES = {"change20": {"mismatch": 0.2}, "change50": {"mismatch": 0.5}}  # in the middle of the pass
_CALIBRATION = 4096
_AFTER = (8, 16, 32, 64)  # microbatches after a change
_FLOAT = torch.float32
LABELS = {
    "through": "FF through the device",
    "moved": "FF moved to it",
    "peer moved": "backprop moved to it",
    "peer": "backprop with it in the forward pass",
}


def run(
    report: Report, dataset: Dataset, kinds: list[str], seeds: int, *, validation: bool, plot: Path | None
) -> None:
    """Every kind with every seed. A seed decides stream, weights and device."""
    splits = splits_of(dataset, validation=validation)
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(seeds):
        config = _config(dataset, seed)
        experiment = Experiment(config, splits, seed)
        for kind in kinds:
            if kind in CHANGES:
                _add_change(report, experiment, kind, dataset, seed)
                continue
            errors = experiment.errors(SEVERITIES[kind])
            for way, value in errors.items():
                found.setdefault(kind, {}).setdefault(way, []).append(value)
            name = f"hardware/{dataset.name}/{kind}"
            for way in ("through", "moved"):
                if way in errors:
                    peer = "peer" if way == "through" else "peer moved"
                    report.add(f"{name}/{way}/seed{seed}", errors[way], "%", peer, errors[peer])
    if plot is not None:
        _draw(plot, found, splits.name)


def _config(dataset: Dataset, seed: int) -> Config:
    own = (
        f"network.image_shape={list(dataset.train.image_shape)}",
        f"network.labels={int(dataset.train.labels.max()) + 1}",
        f"network.seed={seed}",
        "pipeline.device=cpu",
    )
    return load(settings=own, environment={})


def _add_change(report: Report, experiment: "Experiment", kind: str, dataset: Dataset, seed: int) -> None:
    for way, finds in (("through", True), ("unaware", False)):
        for when, value in experiment.change({**CHANGES[kind], "finds_changes": finds, "finds_signs": finds}).items():
            report.add(f"hardware/{dataset.name}/{kind}/{way}/{when}/seed{seed}", value, "%")


class Experiment:
    """One seed: stream, initial weights and device. What is learned on an ideal device is learned once."""

    def __init__(self, config: Config, splits: Splits, seed: int) -> None:
        self._config, self._splits, self._seed = config, splits, seed
        self._ideal: ForwardForward | None = None
        self._ideal_peer: OnDevice | None = None

    def errors(self, options: Options) -> dict[str, float]:
        """The errors in percent of all ways."""
        if self._ideal is None or self._ideal_peer is None:
            self._ideal = ForwardForward(self._config.network, _FLOAT)
            self._ideal_peer = OnDevice(self._config.network)
            self._learn(self._ideal)
            self._learn(self._ideal_peer)
        if not options:
            return {"through": self._error(self._ideal), "peer": self._error(self._ideal_peer)}
        recipe = self._recipe(options)
        through, peer = ForwardForward(recipe, _FLOAT), OnDevice(recipe)
        self._learn(through)
        self._learn(peer)
        images = self._calibration()
        on_device = through.predictor(moved(self._ideal.network, recipe, images))
        return {
            "through": self._error(through),
            "moved": 100 * error(on_device, self._splits.held_out),
            "peer moved": self._error(moved_peer(self._ideal_peer, recipe, images)),
            "peer": self._error(peer),
        }

    def change(self, options: Options) -> dict[str, float]:
        """The error in percent before and after the device has changed, and at the end."""
        at = self._config.network.whole_up_to(len(self._splits.train) // 2)
        learner = ForwardForward(self._recipe(options | {"changes_at": (at,)}), _FLOAT)
        found = {"before": 0.0}
        since = None
        for batch in self._stream():
            before = self._error(learner) if batch.seq == at else None
            learner.learn(batch)
            if before is not None:
                found["before"], found["after"], since = before, self._error(learner), 0
            elif since is not None:
                since += 1
                if since in _AFTER:
                    found[f"{since}_later"] = self._error(learner)
        return found | {"end": self._error(learner)}

    def _recipe(self, options: Options) -> Recipe:
        return self._config.network.change(hardware={"kind": "analog", "seed": self._seed, **options})

    def _stream(self) -> Iterator[MicroBatch]:
        stream = Microbatches(self._config, self._splits.train, self._seed)
        while stream.seq < len(self._splits.train):
            yield stream.next()

    def _learn(self, learner: Learner) -> None:
        for batch in self._stream():
            learner.learn(batch)

    def _error(self, learner: Learner) -> float:
        return 100 * error(learner.predictor(learner.weights()), self._splits.held_out)

    def _calibration(self) -> Tensor:
        images = self._splits.train.images[:_CALIBRATION]
        return torch.from_numpy(images.reshape(len(images), -1))


class OnDevice(Backprop):
    """The peer, whose hidden layers run on the devices of a recipe."""

    def __init__(self, recipe: Recipe, settings: PeerSettings | None = None) -> None:
        super().__init__(recipe, settings or settings_of("stream"), _FLOAT)
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

    def __init__(self, recipe: Recipe, index: int, input_shape: tuple[int, ...]) -> None:
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


def _draw(path: Path, found: Mapping[str, Mapping[str, list[float]]], held_out: str) -> None:
    """A bar for each kind and way: the mean over the seeds, and a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ways = ("through", "moved", "peer moved", "peer")
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, way in enumerate(ways):
        at = [place + 0.2 * (number - 1.5) for place, errors in enumerate(found.values()) if way in errors]
        errors = [each[way] for each in found.values() if way in each]
        axes.bar(at, [sum(each) / len(each) for each in errors], 0.18, label=LABELS[way])
        for place, each in zip(at, errors, strict=True):
            axes.plot([place] * len(each), each, ".", color="black", markersize=4)
    axes.set_xticks(range(len(found)), list(found))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylabel(f"{held_out} error in %")
    axes.grid(visible=True, which="both", axis="y", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
