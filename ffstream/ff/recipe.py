"""Recipes: everything that determines the weights that a stream leads to.

A recipe is a frozen record of the network's options and the parts of each layer. In a file, options of layers may
also be written in [network] itself. They then apply to every layer that does not override them:

    [network]
    preset = "fast"              # the options below override it
    learning_rate = 2e-3         # for all layers
    [[network.layers]]           # if there are layers, they replace the preset's
    connection = { kind = "dense", units = 1000 }
    [[network.layers]]
    connection = { kind = "dense", units = 500 }
    learning_rate = 1e-3         # for this layer

`widths = [1000, 500]` is a shorthand for dense layers of these widths that are otherwise like the preset's.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ffstream.ff import recipe_checks
from ffstream.ff.activation import Activation
from ffstream.ff.connection import Connection, Shape, size_of
from ffstream.ff.constraint import Constraint
from ffstream.ff.decoder import Decoder
from ffstream.ff.dreams import Dreams
from ffstream.ff.drift import Drift
from ffstream.ff.fast_weights import FastWeights
from ffstream.ff.goodness import Goodness
from ffstream.ff.hardware import Hardware
from ffstream.ff.image_negatives import ImageNegatives
from ffstream.ff.label_scheme import LabelScheme
from ffstream.ff.negatives import Negatives
from ffstream.ff.normalization import Normalization
from ffstream.ff.objective import Objective
from ffstream.ff.opponent import Opponent
from ffstream.ff.optimizer import Optimizer, Schedule
from ffstream.ff.part import Options, check_numbers, field_of, make
from ffstream.ff.preprocessing import Preprocessing
from ffstream.ff.readout import Readout
from ffstream.ff.recurrence import Recurrence
from ffstream.ff.tables import complete
from ffstream.util.option_errors import OptionError, show, wrong

Compares = Literal["labels", "groups", "images"]


class LayerOptions(Options):
    """One layer: its parts, and how fast it learns."""

    connection: Annotated[Connection, *field_of("connection")] = Field(
        description="how the inputs are connected to the units"
    )
    activation: Annotated[Activation, *field_of("activation")] = Field(description="activation function of the units")
    normalization: Annotated[Normalization, *field_of("normalization")] = Field(
        description="how the layer's input is normalised"
    )
    goodness: Annotated[Goodness, *field_of("goodness")] = Field(
        description="the number computed from the activities"
    )
    label_scheme: Annotated[LabelScheme, *field_of("label_scheme")] = Field(
        description="how a label enters the layer"
    )
    objective: Annotated[Objective, *field_of("objective")] = Field(description="the loss on goodness")
    negatives: Annotated[Negatives, *field_of("negatives")] = Field(
        description="what negative rows are, for objectives that compare with one: how wrong labels are chosen, or "
        "how images are made"
    )
    optimizer: Annotated[Optimizer, *field_of("optimizer")] = Field(description="the optimiser")
    schedule: Annotated[Schedule, *field_of("schedule")] = Field(description="how the learning rate falls")
    opponent: Annotated[Opponent, *field_of("opponent")] = Field(
        description="what stands for the other phase during a wake or sleep phase"
    )
    constraint: Annotated[Constraint, *field_of("constraint")] = Field(
        description="what is enforced on the parameters after each step of the optimiser"
    )
    hardware: Annotated[Hardware, *field_of("hardware")] = Field(
        description="the device that computes the products, in learning and in prediction"
    )
    fast_weights: Annotated[FastWeights, *field_of("fast_weights")] = Field(
        description="memory of the recent stream that the layer reads beside its input"
    )
    decoder: Annotated[Decoder, *field_of("decoder")] = Field(
        description="what learns to reconstruct the layer's input from its activities, so that the layer can dream"
    )
    learning_rate: float = Field(
        4e-3, ge=0, description="learning rate of a whole microbatch at the start of the stream"
    )
    min_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="the schedule never falls below this share of the learning rate"
    )
    score_weight: float = Field(
        1.0, allow_inf_nan=False, description="weight of the layer's goodness in predictions; 0: not used"
    )


class Recipe(Options):
    """All options of [network]: what is learned and how."""

    parts: tuple[str, ...] = Field((), description="Python modules that register parts of your own")
    image_shape: Annotated[Shape, Field(min_length=1, max_length=4)] = Field(
        (28, 28), description="shape of one image: [height, width], [height, width, channels] or [length]"
    )
    labels: int = Field(10, ge=2, le=65_535, description="number of labels; they are 0 to labels-1")
    batch_size: int = Field(128, ge=1, description="samples in a microbatch, which updates each layer once")
    warmup_batch_size: int = Field(
        32, ge=1, description="samples in a microbatch during warm-up, when many small steps learn faster"
    )
    warmup_samples: int = Field(8192, ge=0, description="length of the warm-up in samples; 0: no warm-up")
    replay: int = Field(128, ge=0, description="samples of the replay buffer that are learned with each microbatch")
    replay_jitter: int = Field(
        1, ge=0, description="pixels by which a replayed image is shifted, at most, in each direction"
    )
    replay_flip: bool = Field(False, description="mirror half of the replayed images, left to right")
    replay_edges: Literal["zero", "repeat"] = Field(
        "zero", description="what a shifted image has at the edge that it leaves: zeros, or its edge repeated"
    )
    replay_buffer: int = Field(
        10_000, ge=1, description="recent samples in the replay buffer, for replay and sleep phases"
    )
    wake: int = Field(
        0, ge=0, description="microbatches in a wake phase; 0: no phases, positive and negative rows are interleaved"
    )
    sleep: int = Field(0, ge=0, description="microbatches in a sleep phase")
    preprocessing: Annotated[Preprocessing, *field_of("preprocessing")] = Field(
        description="preprocessing of images before the first layer"
    )
    activities: Literal["label_free", "label_conditioned"] = Field(
        "label_free", description="what layers pass on: rows that hold no label, or rows that hold one each"
    )
    readout: Annotated[Readout, *field_of("readout")] = Field(
        description="what predictions come from: the layers' goodness, or a head that reads activities"
    )
    recurrence: Annotated[Recurrence, *field_of("recurrence")] = Field(
        description="what of the other layers a layer sees: the one below, or also the one above, in some rounds"
    )
    ema_samples: float = Field(
        50_000.0, ge=0, description="reach of the EMA weights that predict, in samples; 0: the newest weights predict"
    )
    drift: Annotated[Drift, *field_of("drift")] = Field(description="what a layer does when the concept has changed")
    seed: int = Field(
        0, ge=0, lt=2**31, description="random seed of the initial weights, random wrong labels and replay"
    )
    layers: tuple[LayerOptions, ...] = Field(min_length=1, description="the layers, first layer first")

    @model_validator(mode="after")
    def _check(self) -> Self:
        recipe_checks.check(self)
        return self

    def input_shapes(self) -> Iterator[Shape]:
        """The shape of the rows that each layer is connected to: what the layer below passes on, and fast weights."""
        shape = self.preprocessing.output_shape(self.image_shape)
        for layer in self.layers:
            if extra := layer.fast_weights.extra_inputs(self.labels):
                shape = (size_of(shape) + extra,)
            yield shape
            shape = layer.connection.output_shape(shape)

    def output_shapes(self) -> Iterator[Shape]:
        """The shape of the rows that each layer passes on."""
        for layer, shape in zip(self.layers, self.input_shapes(), strict=True):
            yield layer.connection.output_shape(shape)

    def change(self, **options: Any) -> "Recipe":
        """The recipe with `options` changed, which are written as in [network]. Raises OptionError.

        Options of layers change every layer. `layers` replaces all layers by new ones, which inherit nothing from
        those of this recipe: what they leave out has the default value.

        >>> recipe("stream").change(goodness="mean_squares", objective={"alpha": 10.0})
        """
        if "preset" in options:
            raise OptionError(
                wrong("preset", options["preset"], "cannot change an existing recipe; begin with a preset")
            )
        return make_recipe(options, self.model_dump())

    # --- sizes ---------------------------------------------------------------------------------------------------

    @property
    def inputs(self) -> int:
        """How many numbers an image has."""
        return size_of(self.image_shape)

    def units_above(self, index: int) -> int | None:
        """How many units the layer above that one has; None for the last layer."""
        shapes = list(self.output_shapes())
        return size_of(shapes[index + 1]) if index + 1 < len(shapes) else None

    def stage_sizes(self, given: Sequence[int] = ()) -> tuple[int, ...]:
        """How many layers each stage has: as `given` (`pipeline.stages`) says; otherwise one each, or, in a
        recurrent network, all in one."""
        count = len(self.layers)
        return tuple(given) or ((count,) if self.recurrence.is_recurrent else (1,) * count)

    @property
    def image_negatives(self) -> ImageNegatives | None:
        """What makes negative rows from images; None if negative rows are those with wrong labels."""
        found = (each.negatives for each in self.layers if isinstance(each.negatives, ImageNegatives))
        return next((each for each in found if not (each.takes_labels and self._has_labels)), None)

    @property
    def _has_labels(self) -> bool:
        """Whether labels enter the first layer."""
        return self.layers[0].label_scheme.kind != "none"

    @property
    def dreams(self) -> bool:
        """Whether the first layer dreams negative rows."""
        return isinstance(self.layers[0].negatives, Dreams)

    @property
    def sleeps_without_images(self) -> bool:
        """Whether the first layer dreams all rows of a sleep phase."""
        return self.dreams and self._has_labels

    @property
    def compares(self) -> tuple[Compares, ...]:
        """What each layer compares: the right and a wrong label of the same image, the groups of units that belong to
        these labels, or images and negative rows made from images."""
        found: list[Compares] = []
        for layer, shape in zip(self.layers, self.output_shapes(), strict=True):
            if self.image_negatives is not None:
                found.append("images")
            else:
                found.append("groups" if layer.label_scheme.group(0, self.labels, shape) else "labels")
        return tuple(found)

    @property
    def learns_unlabelled(self) -> bool:
        """Whether samples without a label can be learned: then only the readout needs labels."""
        return self.image_negatives is not None

    @property
    def read_layers(self) -> tuple[int, ...]:
        """The layers whose activities the readout reads."""
        return self.readout.reads(len(self.layers))

    @property
    def has_phases(self) -> bool:
        """Whether every layer can learn positive and negative rows in separate phases."""
        return all(layer.objective.has_phases for layer in self.layers)

    @property
    def draws_from_replay(self) -> bool:
        """Whether replayed samples are learned: beside those of the stream, or in a sleep phase."""
        return self.replay > 0 or (self.wake > 0 and not self.sleeps_without_images)

    @property
    def rows_of_sample(self) -> int:
        """The largest number of rows that a layer passes on for each sample."""
        if self.image_negatives is not None:
            return 3 if self.dreams else 2
        return 2 if self.activities == "label_conditioned" else 1

    @property
    def rows(self) -> int:
        """The largest number of samples in a microbatch, including replayed ones."""
        return self.batch_size + self.replay

    def replicas_after(self, seq: int, replicas: int) -> int:
        """How many of the replicas of a network learn different microbatches after sample `seq`: 1 if every one
        learns the microbatch that contains sample `seq` + 1. See `ff/merging.py`."""
        return 1 if seq < max(self.warmup_samples, self.preprocessing.fitted_samples) else replicas

    def whole_up_to(self, seq: int) -> int:
        """The last `seq` at or before `seq` at which a whole microbatch ends. Microbatches lie on a fixed grid."""
        return seq - seq % self.batch_size_after(seq)

    def batch_end(self, seq: int) -> int:
        """The `seq` of the last sample in the microbatch that contains sample `seq` + 1."""
        return self.whole_up_to(seq) + self.batch_size_after(seq)

    def batch_size_after(self, seq: int) -> int:
        """The size of the whole microbatch that contains sample `seq` + 1."""
        return self.warmup_batch_size if seq < self.warmup_samples else self.batch_size


def load_parts(modules: Any) -> None:
    """Imports the parts of entry points and of these modules, which registers them. Raises OptionError."""
    for point in entry_points(group="ffstream.parts"):
        try:
            point.load()
        except Exception as error:  # code from outside may raise anything
            raise OptionError(
                f"entry point {point.name} of the group ffstream.parts ({point.value}) cannot be loaded: {error!r}",
                hint="repair or uninstall the package that defines it",
            ) from error
    if not isinstance(modules, list | tuple) or not all(isinstance(module, str) for module in modules):
        raise OptionError(wrong("parts", modules, 'expected a list of modules, for example ["my_parts"]'))
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # code from outside may raise anything
            hint = "the daemon must be able to import it: install it, or set PYTHONPATH"
            raise OptionError(wrong("parts", modules, f"cannot import {module}: {error!r}"), hint=hint) from error


def stored_recipe(stored: Mapping[str, Any]) -> Recipe:
    """The recipe that `Recipe.model_dump(mode="json")` wrote.

    Does not import the modules in `parts`, because a stored recipe must not run code. Raises OptionError.
    """
    load_parts(())
    try:
        return make(Recipe, stored)
    except OptionError as error:
        if parts := stored.get("parts"):
            error.hint = f"import its parts before: {show(parts)}"
        raise


def make_recipe(given: Mapping[str, Any], preset: Mapping[str, Any]) -> Recipe:
    """The recipe for the options `given` in a [network] section, on top of a preset. Raises OptionError."""
    try:
        completed = complete(given, preset, LayerOptions.model_fields.keys())
        for index, layer in enumerate(completed["layers"]):
            check_numbers(LayerOptions, layer, f"layers[{index}].")
        return make(Recipe, completed)
    except OptionError as error:
        raise _as_written(error, given) from error


def _as_written(error: OptionError, given: Mapping[str, Any]) -> OptionError:
    """Takes `layers[0].` off the name of an option that was written for all layers."""
    layer, separator, rest = str(error).partition("].")
    key = re.split(r"\W", rest, maxsplit=1)[0]
    own = given.get("layers", ())
    if separator and layer.startswith("layers[") and key in given and not any(key in each for each in own):
        return OptionError(rest, hint=error.hint)
    return error
