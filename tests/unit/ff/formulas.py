"""The mathematics of ffstream.ff written a second time: row by row, in float64, differentiated by autograd.

The parts that ship with ffstream are implemented again here, from the papers. Parts from outside use their own
formulas.

Shapes: B samples, N rows, I inputs, F units, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, gelu, leaky_relu, silu, softplus

from ffstream.ff.activities import Activities
from ffstream.ff.connection import Shape
from ffstream.ff.layer import Layer
from ffstream.ff.network import Network
from ffstream.ff.objective import Phase
from ffstream.ff.presets import recipe
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import LayerOptions, Recipe
from ffstream.ff.recurrence import TopDown
from ffstream.util.labels import UNLABELLED

Leaves = Mapping[str, Tensor]

# Small, but with gradients that do not vanish.
SMALL = recipe(
    "fast",
    image_shape=[4, 4],
    labels=4,
    widths=[8, 12],
    batch_size=7,
    warmup_batch_size=7,
    warmup_samples=0,
    replay=0,
    replay_buffer=100,
    objective={"alpha": 0.7},
    learning_rate=0.01,
)
CONTRASTED = SMALL.change(objective={"kind": "threshold", "alpha": 0.02, "theta": 5.0}, negatives="random")
EVOKED = SMALL.change(objective={"kind": "evoked", "alpha": 0.02}, negatives="random")
CONDITIONED = CONTRASTED.change(activities="label_conditioned")
UNSUPERVISED = CONTRASTED.change(
    negatives={"kind": "hybrid", "blurs": 1},
    label_scheme="none",
    readout="softmax",
)
RECURRENT = SMALL.change(
    recurrence={"kind": "top_down", "rounds": 2},
    layers=[
        {"connection": {"units": 8}, "label_scheme": "none", "objective": {"alpha": 0.7}},
        {"connection": {"units": 12}, "objective": {"alpha": 0.7}},
    ],
)


def random_network(options: Recipe, seed: int = 1, scale: float = 0.6, **placement: Any) -> Network:
    """A network in which no parameter is zero, including label vectors and biases."""
    network = Network(options, **placement)
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith((".parameters", ".ema", ".hardware.response", ".fast_weights.values", ".fast_weights.mean")):
            state[name] = torch.empty_like(value).normal_(0, scale, generator=generator)
    network.load_state_dict(state)
    return network


def random_images(count: int, inputs: int, dtype: torch.dtype = torch.uint8, seed: int = 2) -> Tensor:
    """Random images (B, I). The pixels that may be replaced by the label are not zero."""
    generator = torch.Generator().manual_seed(seed)
    images_BI = torch.randint(0, 256, (count, inputs), generator=generator, dtype=torch.uint8)
    return images_BI if dtype == torch.uint8 else images_BI / 255


def random_labels(count: int, labels: int, seed: int = 3) -> Tensor:
    """Random labels (B)."""
    return torch.randint(0, labels, (count,), generator=torch.Generator().manual_seed(seed))


def learn(network: Network, first: int, last: int, phase: Phase = "interleaved") -> None:
    """Learns the microbatches `first` to `last`. Their content depends on their number only."""
    options = network.recipe
    for step in range(first, last + 1):
        images_BI = random_images(options.batch_size, options.inputs, seed=step)
        network.learn(images_BI, labels_for(options, options.batch_size, seed=step), step, phase)


def labels_for(options: Recipe, count: int, seed: int = 3) -> Tensor:
    """Random labels (B). Where the recipe allows it, every third sample has none."""
    labels_B = random_labels(count, options.labels, seed)
    if options.learns_unlabelled:
        labels_B[::3] = UNLABELLED
    return labels_B


def leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters as leaves for autograd, in float64."""
    return {name: value.detach().double().clone().requires_grad_() for name, value in parameters.items()}


# --- the parts ---------------------------------------------------------------------------------------------------


def activation(options: Any, z: Tensor) -> Tensor:
    """φ(z)."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": torch.relu,
        "leaky_relu": lambda z: leaky_relu(z, options.slope),
        "gelu": gelu,
        "silu": silu,
        "student_t": lambda z: torch.log(1 + z**2),
    }
    h: Tensor = known.get(options.kind, options.value)(z)
    return h


def goodness(options: Any, h: Tensor) -> Tensor:
    """G(h) over the last dimension."""
    known: dict[str, Callable[[Tensor], Tensor]] = {
        "sum_squares": lambda h: (h**2).sum(-1),
        "mean_squares": lambda h: (h**2).mean(-1),
        "sum": lambda h: h.sum(-1),
    }
    if options.kind not in known:
        own: Tensor = options.value(h)
        return own
    return known[options.kind](h) * (-1 if options.negative else 1)


def normalized(options: Any, x_NI: Tensor, extra_squares: float = 0.0) -> Tensor:
    """x̂. `extra_squares` counts in the length of a row, but is not in x."""
    squares_N1 = (x_NI**2).sum(1, keepdim=True) + extra_squares
    if options.kind == "rms":
        return x_NI / (squares_N1 / x_NI.shape[1] + 1e-8).sqrt()
    if options.kind == "unit":
        return x_NI / (squares_N1.sqrt() + 1e-4)
    inverse_norm_N: Tensor = options.inverse_norm(squares_N1[:, 0], x_NI.shape[1])
    return x_NI * inverse_norm_N[:, None]


def preactivation(layer: LayerOptions, own: Leaves, x_NI: Tensor, shape: tuple[int, ...], labels: int) -> Tensor:
    """z (N, F) of label-free rows. With the scheme `pixels`, their length includes the label's pixel."""
    scheme: Any = layer.label_scheme
    x_NI = x_NI.double()
    strength = scheme.strength if scheme.kind == "pixels" else 0.0
    if scheme.kind == "pixels":
        x_NI = torch.cat((torch.zeros_like(x_NI[:, :labels]), x_NI[:, labels:]), 1)
    return layer.connection.formula(normalized(layer.normalization, x_NI, strength**2), own, shape)


def with_label(
    layer: LayerOptions, own: Leaves, x_NI: Tensor, labels_N: Tensor, shape: tuple[int, ...], labels: int
) -> Tensor:
    """z (N, F) of rows with one label each, by the definition of the label scheme."""
    scheme: Any = layer.label_scheme
    if scheme.kind == "pixels":  # the label is written into the image; E are the weights of its pixels
        x_NI = x_NI.double().clone()
        x_NI[:, :labels] = 0
        x_NI[torch.arange(len(x_NI)), labels_N] = scheme.strength
        weight_FI = torch.cat((own["label_vectors"].t(), own["weight"][:, labels:]), 1)
        return normalized(layer.normalization, x_NI) @ weight_FI.t() + own["bias"]
    z_NF = preactivation(layer, own, x_NI, shape, labels)
    alive_F = getattr(layer.connection, "alive_F", 1.0)
    return z_NF + own["label_vectors"][labels_N] * alive_F if scheme.kind == "vectors" else z_NF


def cut(layer: LayerOptions, h_BF: Tensor, shape: tuple[int, ...]) -> list[Tensor]:
    """The activities of each area of the layer's map, from the top; all of them if it has one area."""
    count = layer.goodness.areas
    if count == 1:
        return [h_BF]
    height, width, _ = layer.connection.output_shape(shape)
    maps = h_BF.view(len(h_BF), height, width, -1)
    tall, wide = height // count, width // count
    corners = [(y, x) for y in range(0, height, tall) for x in range(0, width, wide)]
    return [maps[:, y : y + tall, x : x + wide].flatten(1) for y, x in corners]


def areas_by_row(layer: LayerOptions, h_BF: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The goodness (A, B) of every area."""
    return torch.stack([goodness(layer.goodness, h) for h in cut(layer, h_BF, shape)])


def areas_by_label(layer: LayerOptions, own: Leaves, x_BI: Tensor, shape: tuple[int, ...], labels: int) -> Tensor:
    """The goodness (A, B, L) of every area of label-free rows, computed label by label."""
    columns = []
    for label in range(labels):
        labels_B = torch.full((len(x_BI),), label)
        h_BF = activation(layer.activation, with_label(layer, own, x_BI, labels_B, shape, labels))
        if layer.label_scheme.kind == "groups":
            channels = layer.connection.output_shape(shape)[-1]
            size = channels // labels
            h_BF = h_BF.unflatten(1, (-1, channels))[..., label * size : (label + 1) * size].flatten(1)
        columns.append(areas_by_row(layer, h_BF, shape))
    G_ABL = torch.stack(columns, 2)
    if layer.objective.kind == "evoked":
        h0_BF = activation(layer.activation, preactivation(layer, own, x_BI, shape, labels))
        G_ABL = G_ABL - areas_by_row(layer, h0_BF, shape)[:, :, None]
    return G_ABL


def by_label(layer: LayerOptions, own: Leaves, x_BI: Tensor, shape: tuple[int, ...], labels: int) -> Tensor:
    """The goodness (B, L) of label-free rows."""
    return areas_by_label(layer, own, x_BI, shape, labels).mean(0)


def contrast(options: Any, positive_B: Tensor | None, negative_B: Tensor | None) -> Tensor:
    """The loss of positive and negative rows, or of one kind alone."""
    if options.kind == "paired":
        assert positive_B is not None
        assert negative_B is not None
        return softplus(-options.alpha * (positive_B - negative_B)).mean()
    loss = torch.zeros((), dtype=torch.float64)
    theta = 0.0 if options.kind == "evoked" else options.theta  # of a network that has learned nothing yet
    if positive_B is not None:
        loss = loss + softplus(-options.alpha * (positive_B - theta)).mean()
    if negative_B is not None:
        loss = loss + softplus(options.alpha * (negative_B - theta)).mean()
    return loss


def label_loss(options: Any, G_BL: Tensor, own_B: Tensor, wrong_B: Tensor | None, phase: Phase) -> Tensor:
    """The loss of a layer that computes the goodness of every label."""
    if options.kind == "softmax":
        return cross_entropy(options.alpha * G_BL, own_B, label_smoothing=options.smoothing)
    if options.kind not in ("paired", "threshold", "evoked"):
        own: Tensor = options.by_label(G_BL, own_B, wrong_B, phase).statistics().loss
        return own
    assert wrong_B is not None
    positive_B = None if phase == "sleep" else G_BL.gather(1, own_B[:, None])[:, 0]
    negative_B = None if phase == "wake" else G_BL.gather(1, wrong_B[:, None])[:, 0]
    return contrast(options, positive_B, negative_B)


def layer_loss(
    layer: LayerOptions, own: Leaves, given: Activities, wrong_B: Tensor | None, shape: tuple[int, ...], labels: int
) -> Tensor:
    """The loss of a layer for given activities: the mean over the areas of its map."""
    if given.positives is None:
        G_ABL = areas_by_label(layer, own, given.h_NF, shape, labels)
        losses = [label_loss(layer.objective, G_BL, given.labels_N, wrong_B, given.phase) for G_BL in G_ABL]
    else:
        rows = slice(given.read_only, None)
        z_NF = with_label(layer, own, given.h_NF[rows], given.labels_N[rows], shape, labels)
        G_AN = areas_by_row(layer, activation(layer.activation, z_NF), shape)
        losses = [row_loss(layer.objective, G_N, given.positives) for G_N in G_AN]
    return torch.stack(losses).mean()


def settled(options: Recipe, own: Sequence[Leaves], x_BI: Tensor) -> list[dict[int, Tensor]]:
    """The activities (B, F) of each layer of a recurrent network after the last round, by label.

    They depend on the parameters of their layer only, because the activities of the others are constants to it.
    """
    shapes, last, recurrence = list(options.input_shapes()), len(own) - 1, options.recurrence
    assert isinstance(recurrence, TopDown)
    everyone = list(range(last + 1))
    halves = [[i for i in everyone if (last - i) % 2], [i for i in everyone if (last - i) % 2 == 0]]
    order = halves if recurrence.order == "alternating" else [everyone]

    def compute(i: int, label: int | None, below_BI: Tensor, above_BA: Tensor | None) -> Tensor:
        layer = options.layers[i]
        x_BI = normalized(layer.normalization, below_BI.detach().double())
        z_BF = layer.connection.formula(x_BI, own[i], shapes[i])
        if above_BA is not None:
            z_BF = z_BF + normalized(layer.normalization, above_BA.detach()) @ own[i]["from_above"].t()
        if label is not None and "label_vectors" in own[i]:
            z_BF = z_BF + own[i]["label_vectors"][label]
        return activation(layer.activation, z_BF)

    found: list[dict[int, Tensor]] = [{} for _ in own]
    for label in range(options.labels):
        h: list[Tensor] = []
        for i in everyone:
            h.append(compute(i, label if i == last else None, h[i - 1] if i else x_BI, None))
        for part in order * recurrence.rounds:
            now = list(h)
            for i in part:
                h[i] = compute(i, label, now[i - 1] if i else x_BI, now[i + 1] if i < last else None)
        for i in everyone:
            found[i][label] = h[i]
    return found


def settled_goodness(options: Recipe, own: Sequence[Leaves], x_BI: Tensor) -> list[Tensor]:
    """The goodness (B, L) of each layer of a recurrent network after the last round."""
    pairs = zip(options.layers, settled(options, own, x_BI), strict=True)
    return [torch.stack([goodness(layer.goodness, h_BF) for h_BF in rows.values()], 1) for layer, rows in pairs]


def row_loss(options: Any, G_N: Tensor, positives: int) -> Tensor:
    """The loss of rows with one label each, or none; the first `positives` rows are positive."""
    positive_B = G_N[:positives] if positives else None
    negative_B = G_N[positives:] if positives < len(G_N) else None
    if options.kind not in ("paired", "threshold", "evoked"):
        outside: Tensor = options.by_row(G_N, positives).statistics().loss
        return outside
    return contrast(options, positive_B, negative_B)


def hardest(G_BL: Tensor, own_B: Tensor) -> Tensor:
    """The wrong label with the highest goodness, found by trying all."""
    rows = zip(G_BL.tolist(), own_B.tolist(), strict=True)
    return torch.tensor([max((g, label) for label, g in enumerate(row) if label != own)[1] for row, own in rows])


# --- hardware ----------------------------------------------------------------------------------------------------


def on_hardware(layer: Layer) -> LayerOptions:
    """The options of the layer, with a connection that is read from its device."""
    options = layer.formulas.options
    return options if options.hardware.kind == "ideal" else options.model_copy(update={"connection": Read(layer)})


class Read:
    """A connection as it is read from an analog device, with the gradient that its learner has."""

    def __init__(self, layer: Layer) -> None:
        self._connection = layer.formulas.options.connection
        self._device: Any = layer.formulas.options.hardware
        self._index, self._state = layer.index, layer.state_dict()
        self.output_shape = self._connection.output_shape
        self._draw(layer.parameters.views["weight"].shape, layer.formulas.units)

    def _draw(self, shape: Shape, units: int) -> None:
        device = self._device
        changes = len([at for at in device.changes_at if self._state["hardware.samples"] >= at])
        draws = generator_for(f"device of layer {self._index}", device.seed, changes)
        self._gain = 1 + device.mismatch * torch.randn(shape, generator=draws)
        self._gain_F = 1 + device.mismatch * torch.randn(units, generator=draws)
        self._is_stuck = torch.rand(shape, generator=draws) < device.stuck
        self._stuck = (torch.rand(shape, generator=draws) - 0.5) * 5
        self.alive_F = (torch.rand(units, generator=draws) >= device.dead).double()

    def formula(self, x_NI: Tensor, own: Leaves, shape: Shape) -> Tensor:
        """z (N, F): the value is what is read. The gradient is that of the programmed parameters, with the winners of
        pooling on the device, and reversed for units that respond the wrong way round."""
        weight, device = own["weight"], self._device
        stuck = self._stuck / self._connection.fan_in(shape) ** 0.5
        actual = torch.where(self._is_stuck, stuck, self._gain * weight).detach()
        z_NF = self._connection.formula(x_NI, {**own, "weight": actual + weight - weight.detach()}, shape)
        with torch.no_grad():
            read_NF = self._read(z_NF, x_NI, actual, shape, own)
        if device.finds_signs:
            z_NF = torch.where(self._state["hardware.response"] < 0, -z_NF, z_NF)
        return read_NF + z_NF - z_NF.detach()

    def _read(self, z_NF: Tensor, x_NI: Tensor, actual: Tensor, shape: Shape, own: Leaves) -> Tensor:
        device = self._device
        # Var Σ x w ε = Σ x² w² for independent ε
        none = {name: torch.zeros_like(value) for name, value in own.items()}
        variance_NF = self._connection.formula(x_NI**2, {**none, "weight": actual**2}, shape)
        draws = generator_for(f"noise of layer {self._index}", device.seed, int(self._state["hardware.reads"]))
        normal_NF = torch.randn((len(x_NI) + 15) // 16 * 16, z_NF.shape[1], generator=draws)[: len(x_NI)]
        z_NF = (z_NF + device.noise * variance_NF.clamp(min=0).sqrt() * normal_NF) * self._gain_F * self.alive_F
        if not device.bits:
            return z_NF
        step = float(self._state["hardware.range"]) / (2**device.bits - 1)
        read_NF: Tensor = (z_NF / step).round().clamp(1 - 2**device.bits, 2**device.bits - 1) * step
        return read_NF


# --- the readout -------------------------------------------------------------------------------------------------


def readout_logits(own: Leaves, carried: Sequence[Tensor]) -> Tensor:
    """W f + b (B, L), where f is the activities of the layers, each divided by its root mean square."""
    rows = []
    for layers in zip(*(h_BF.double() for h_BF in carried), strict=True):
        f = torch.cat([h / (h.square().mean() + 1e-8).sqrt() for h in layers])
        rows.append(own["weight"] @ f + own["bias"])
    return torch.stack(rows)


def readout_loss(options: Any, own: Leaves, given: Activities) -> Tensor:
    """The mean cross-entropy of the positive rows that have a label."""
    logits_BL = readout_logits(own, given.carried)
    pairs = zip(logits_BL, given.labels_N[: len(logits_BL)], strict=True)
    losses = [cross_entropy(z, label, label_smoothing=options.smoothing) for z, label in pairs if label != UNLABELLED]
    return torch.stack(losses).mean()


# --- fast weights -------------------------------------------------------------------------------------------------


def with_recall(options: Any, given: Activities, state: Leaves, labels: int) -> Activities:
    """The activities, with what fast weights recall beside each row: sample by sample, in the order of the stream."""
    if options.kind == "none":
        return given
    A_LK, rows = state["values"].double(), []
    for number, (x_I, label) in enumerate(zip(given.h_NF.double(), given.labels_N, strict=True)):
        centred_I = x_I - state["mean"]
        k_K = (
            centred_I / (centred_I.norm() + 1e-6) if options.kind != "recent" else torch.ones(1, dtype=torch.float64)
        )
        m_L = A_LK @ k_K
        rows.append(torch.cat((x_I, m_L / (m_L.square().mean() + 1e-12).sqrt() * x_I.square().mean().sqrt())))
        if options.kind != "fixed" and number < given.fresh:
            v_L = torch.full((labels,), -1 / labels, dtype=torch.float64)
            v_L[label] += 1
            A_LK = options.decay * A_LK + v_L[:, None] * k_K
    return given._replace(h_NF=torch.stack(rows))


# --- decoders ----------------------------------------------------------------------------------------------------


def decoder_loss(own: Leaves, h_BF: Tensor, target_BI: Tensor) -> Tensor:
    """½ ‖D ĥ + d − t‖², the mean over rows, for activities that autograd does not differentiate."""
    h_BF = h_BF.detach().double()
    decoded_BI = (h_BF / (h_BF.square().mean(1, keepdim=True) + 1e-8).sqrt()) @ own["weight"].t() + own["bias"]
    return (decoded_BI - target_BI.double()).square().sum(1).mean() / 2


# --- image negatives ---------------------------------------------------------------------------------------------


def hybrid(x_BHWC: Tensor, noise_BHW: Tensor, blurs: int) -> Tensor:
    """Hybrids of each image with the one before, pixel by pixel."""
    m = noise_BHW.double()
    for _ in range(blurs):
        for axis in (1, 2):
            m = m.roll(1, axis) / 4 + m / 2 + m.roll(-1, axis) / 4
    made = x_BHWC.clone()
    for at in (m <= 0.5).nonzero().tolist():
        image, row, column = at
        made[image, row, column] = x_BHWC[image - 1, row, column]
    return made
