"""The peer: a network of a recipe's shape, trained by backpropagation.

It has the same connections with ReLU between them, and a linear softmax layer at the end. Preprocessing, the
normalisation of the first layer's input, the share of a small microbatch in the step size, the EMA weights that
predict and the dtype of the products are those of the recipe. Its learning rate, schedule and label smoothing are its
own (`PeerSettings`).

Shapes: B samples, I inputs, N rows, F units, L labels.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from ffstream.ff.buffers import Buffers, ReusedBuffers
from ffstream.ff.connection import Connection, Dense, Shape
from ffstream.ff.formulas import sum_squares
from ffstream.ff.input import Preprocessor, to_unit
from ffstream.ff.maps import WEIGHT
from ffstream.ff.optimizer import Adam
from ffstream.ff.recipe import Recipe
from ffstream.ff.steps import AdamStepper
from ffstream.pipeline.messages import MicroBatch
from ffstream.util.labels import UNLABELLED
from tools.benchmarks.accuracy.learners import CPU, Predict

_CHUNK = 256
_MIN_RATIO = 0.1  # the learning rate never falls below this share, as in the recipes


@dataclass(frozen=True)
class PeerSettings:
    """What is chosen for the peer on validation data. `schedule_samples`: samples after which the learning rate is
    1/√2 of its initial value, as in the schedule `inverse_sqrt`; 0: it stays constant. `beta1`: Adam's, whose β₂ is
    0.999."""

    learning_rate: float = 1e-3
    schedule_samples: float = 0.0
    smoothing: float = 0.0
    beta1: float = 0.9

    def rate(self, samples: float) -> float:
        """The learning rate of a whole microbatch after that many samples."""
        if not self.schedule_samples:
            return self.learning_rate
        return self.learning_rate * max(_MIN_RATIO, 1 / math.sqrt(1 + samples / self.schedule_samples))


Parameters = Mapping[str, Tensor]
Forward = Callable[[Tensor, Parameters], Tensor]  # rows (N, I) and parameters to preactivations (N, F)


def _dense(connection: Connection, input_shape: Shape) -> Forward:
    return lambda x_NI, parameters: linear(x_NI, parameters[WEIGHT], parameters["bias"])


# Faster ways to compute the formula of a connection, by kind.
FAST: Mapping[str, Callable[[Connection, Shape], Forward]] = {"dense": _dense}


def forward_of(connection: Connection, input_shape: Shape) -> Forward:
    """The fast path of a connection, or its formula."""
    if connection.kind in FAST:
        return FAST[connection.kind](connection, input_shape)
    return lambda x_NI, parameters: connection.formula(x_NI, parameters, input_shape)


class Backprop:
    """The network, its optimiser and its preprocessing. All its parameters lie in one vector, as a layer's do.

    `logits_BL` are those of the last microbatch, of its samples that have a label, by the weights before its update.
    """

    logits_BL: Tensor

    def __init__(
        self, recipe: Recipe, settings: PeerSettings, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        self._recipe, self._settings, self._dtype, self._device = recipe, settings, dtype, device
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, device)
        self._buffers = ReusedBuffers()
        connections = [layer.connection for layer in recipe.layers]
        shapes = [*recipe.input_shapes()]
        shapes.append(connections[-1].output_shape(shapes[-1]))
        connections.append(Dense(units=recipe.labels))
        pairs = list(zip(connections, shapes, strict=True))
        self._forwards = [forward_of(*pair) for pair in pairs]
        self._shapes = [connection.parameters(shape) for connection, shape in pairs]
        self._flat = self._initial([connection.fan_in(shape) for connection, shape in pairs])
        self._ema = self._flat.clone()
        self._stepper = AdamStepper(self._flat, Adam(beta1=settings.beta1, beta2=0.999))
        self._samples = 0.0

    def _initial(self, fan_ins: list[int]) -> Tensor:
        """Weights uniform in ±1/√fan_in, all else zero: as the layers of a Forward-Forward network begin."""
        sizes = [math.prod(shape) for own in self._shapes for shape in own.values()]
        flat = torch.zeros(sum(sizes))
        generator = torch.Generator().manual_seed(self._recipe.seed)
        for views, fan_in in zip(self._split(flat), fan_ins, strict=True):
            views[WEIGHT].uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
        return flat.to(self._device)

    def _split(self, flat: Tensor) -> list[dict[str, Tensor]]:
        """The parameters of each layer, as views."""
        parts = iter(flat.split([math.prod(shape) for own in self._shapes for shape in own.values()]))
        return [{name: next(parts).view(shape) for name, shape in own.items()} for own in self._shapes]

    def learn(self, batch: MicroBatch) -> None:
        """One update of all layers from the samples that have a label."""
        pixels_BI = to_unit(batch.images, self._device, self._buffers)
        self._preprocessor.fit(pixels_BI)
        x_BI, labels_B = self._normalized(pixels_BI, self._preprocessor.weights()), batch.labels.to(self._device)
        known_B = labels_B != UNLABELLED
        if not bool(known_B.all()):
            x_BI, labels_B = x_BI[known_B], labels_B[known_B]
        if not len(labels_B):
            return
        with torch.enable_grad():
            leaf = self._flat.detach().requires_grad_()
            logits_BL = self._logits(x_BI, self._split(leaf))
            loss = cross_entropy(logits_BL, labels_B, label_smoothing=self._settings.smoothing)
            (gradient,) = torch.autograd.grad(loss, leaf)
        self.logits_BL = logits_BL.detach()
        share = len(labels_B) / self._recipe.rows
        # As in ff/parameters.py: fewer rows make a smaller step and count as fewer samples.
        self._stepper.step(self._flat, gradient, self._settings.rate(self._samples) * math.sqrt(share))
        fresh = share * self._recipe.batch_size
        self._samples += fresh
        reach = min(self._recipe.ema_samples, self._samples / 5)
        self._ema.lerp_(self._flat, fresh / (fresh + reach))

    def _normalized(self, pixels_BI: Tensor, fitted: Mapping[str, Tensor]) -> Tensor:
        x_BI = self._preprocessor.apply(pixels_BI, fitted)
        normalization = self._recipe.layers[0].normalization
        return x_BI * normalization.inverse_norm(sum_squares(x_BI), x_BI.shape[1])[:, None]

    def _logits(self, x_NI: Tensor, layers: list[dict[str, Tensor]]) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._dtype is torch.bfloat16):
            *hidden, head = zip(self._forwards, layers, strict=True)
            for forward, parameters in hidden:
                x_NI = forward(x_NI, parameters).relu()
            return head[0](x_NI, head[1]).float()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights and of what the preprocessing needs."""
        fitted = {name: value.clone() for name, value in self._preprocessor.weights().items()}
        return {"ema": self._ema.clone(), **fitted}

    def predictor(self, weights: Mapping[str, Tensor]) -> Predict:
        """The label with the highest logit."""
        logits = self.scorer(weights)
        return lambda images_BI: logits(images_BI).argmax(1)

    def scorer(self, weights: Mapping[str, Tensor]) -> Callable[[Tensor], Tensor]:
        """From images (B, I; uint8) to logits (B, L), with weights that `weights` returned."""
        layers, buffers = self._split(weights["ema"]), Buffers()

        def score(images_BI: Tensor) -> Tensor:
            with torch.inference_mode():
                found = []
                for part in images_BI.split(_CHUNK):
                    x_BI = self._normalized(to_unit(part, self._device, buffers), weights)
                    found.append(self._logits(x_BI, layers))
                return torch.cat(found).cpu()

        return score

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that later updates depend on."""
        fitted = {f"preprocessing.{name}": value for name, value in self._preprocessor.state_dict().items()}
        samples = torch.tensor(self._samples, dtype=torch.float64)
        return {"parameters": self._flat, "ema": self._ema, "samples": samples, **self._stepper.state, **fitted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._flat.copy_(state["parameters"])
        self._ema.copy_(state["ema"])
        self._samples = float(state["samples"])
        for name, value in self._stepper.state.items():
            value.copy_(state[name])
        prefix = "preprocessing."
        fitted = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        self._preprocessor.load_state_dict(fitted)
