"""Which options of a recipe fit each other.

What a part needs of its layer is said by the part (`incompatibility`, or `output_shape`, which raises). Here it is
asked of every layer, and what concerns several layers or the whole network is checked.

What is asked for and does not happen, though nothing is wrong, is a warning (`without_effect`): many such options are
defaults, or come from a preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ffstream.ff.connection import Shape, size_of
from ffstream.ff.image_negatives import ImageNegatives
from ffstream.ff.label_scheme import VECTORS, LayerContext
from ffstream.ff.recurrence import TopDown
from ffstream.ff.tables import LAYER_DEFAULTS
from ffstream.util.option_errors import OptionError, show, wrong

if TYPE_CHECKING:
    from ffstream.ff.recipe import LayerOptions, Recipe


def check(recipe: Recipe) -> None:
    """Raises OptionError, which names an option that does not fit the others."""
    _check_microbatches(recipe)
    _check_images(recipe)
    if recipe.image_negatives is not None:
        _check_image_negatives(recipe, recipe.image_negatives)
    if any(layer.negatives.kind == "dreams" for layer in recipe.layers):
        _check_dreams(recipe)
    if isinstance(recipe.recurrence, TopDown):
        _check_recurrence(recipe, recipe.recurrence)
    for index, (layer, inputs) in enumerate(zip(recipe.layers, recipe.input_shapes(), strict=True)):
        _check_layer(recipe, index, layer, inputs)
    _check_augmentation(recipe)
    _check_readout(recipe)
    _check_phases(recipe)


def _check_microbatches(recipe: Recipe) -> None:
    batch = f"network.batch_size = {recipe.batch_size}"
    if recipe.warmup_samples % recipe.batch_size:
        raise OptionError(wrong("warmup_samples", recipe.warmup_samples, f"expected a multiple of {batch}, or 0"))
    if recipe.warmup_samples and recipe.batch_size % recipe.warmup_batch_size:
        raise OptionError(wrong("warmup_batch_size", recipe.warmup_batch_size, f"expected a divisor of {batch}"))
    if recipe.replay_buffer < recipe.batch_size:
        raise OptionError(wrong("replay_buffer", recipe.replay_buffer, f"must be at least {batch}"))


def _check_images(recipe: Recipe) -> None:
    if min(recipe.image_shape) < 1:
        raise OptionError(wrong("image_shape", recipe.image_shape, "each size must be at least 1"))
    try:
        recipe.preprocessing.output_shape(recipe.image_shape)
    except ValueError as error:
        raise OptionError(f"preprocessing: {error}") from error


def _check_augmentation(recipe: Recipe) -> None:
    """What is done to replayed images."""
    shape, jitter = recipe.image_shape, recipe.replay_jitter
    shown, is_picture = f"network.image_shape = {show(shape)}", len(shape) in (2, 3)
    if jitter and not is_picture and recipe.draws_from_replay:
        raise OptionError(wrong("replay_jitter", jitter, f"{shown} has no rows and columns; set this to 0"))
    if recipe.replay_flip and not is_picture:
        reason = f"only images [height, width] can be mirrored: {shown}"
        raise OptionError(wrong("replay_flip", recipe.replay_flip, reason))
    if is_picture and jitter >= min(shape[:2]):
        raise OptionError(wrong("replay_jitter", jitter, f"must be smaller than the image: {shown}"))


def _check_layer(recipe: Recipe, index: int, layer: LayerOptions, inputs: Shape) -> None:
    """What its parts need of the layer."""
    scheme, objective = layer.label_scheme, layer.objective
    at = f"layers[{index}]"
    try:
        outputs = layer.connection.output_shape(inputs)
    except ValueError as error:
        raise OptionError(f"{at}.connection: {error}") from error
    if reason := layer.goodness.incompatibility(outputs):
        hint = "give areas to single layers, in [[network.layers]], or leave it out"
        raise OptionError(wrong(f"{at}.goodness.areas", layer.goodness.areas, reason), hint=hint)
    conditioned, from_images = recipe.activities == "label_conditioned", recipe.image_negatives is not None
    reason = scheme.incompatibility(
        LayerContext(
            position=index,
            inputs=size_of(inputs),
            units=size_of(outputs),
            weight_shape=layer.connection.parameters(inputs)["weight"],
            labels=recipe.labels,
            label_free=not ((conditioned and index) or recipe.recurrence.is_recurrent),
            image_negatives=from_images,
            places=size_of(outputs[:-1]),
        )
    )
    if not reason and conditioned and not index and not scheme.conditions_rows:
        reason = "network.activities must be label_free, because this scheme does not add labels to rows"
    if reason:
        raise OptionError(wrong(f"{at}.label_scheme", scheme.kind, reason))
    adds_labels = scheme.conditions_rows and not from_images
    if reason := objective.incompatibility(label_conditioned=conditioned, adds_labels=adds_labels):
        hint = 'label_scheme = "vectors"' if objective.relative_to_label_free else ""
        raise OptionError(wrong(f"{at}.objective", objective.kind, reason), hint=hint)
    if reason := layer.fast_weights.incompatibility(index, label_free=not conditioned and not from_images):
        raise OptionError(wrong(f"{at}.fast_weights", layer.fast_weights.kind, reason))
    if reason := layer.opponent.incompatibility(objective):
        raise OptionError(wrong(f"{at}.opponent", layer.opponent.kind, reason), hint="leave opponent out")
    has_label_vectors = VECTORS in scheme.parameters(recipe.labels, size_of(outputs))
    if reason := layer.constraint.incompatibility(has_label_vectors=has_label_vectors):
        raise OptionError(wrong(f"{at}.constraint", layer.constraint.kind, reason))
    if layer.decoder.kind != "none" and conditioned:
        reason = "needs rows that hold no label, so network.activities must be label_free"
        raise OptionError(wrong(f"{at}.decoder", layer.decoder.kind, reason))
    if layer.decoder.kind != "none" and layer.fast_weights.kind != "none":
        reason = "cannot reconstruct what fast weights recall; give one of the two to another layer"
        raise OptionError(wrong(f"{at}.decoder", layer.decoder.kind, reason))
    if not objective.needs_wrong_labels and layer.negatives.kind != LAYER_DEFAULTS["negatives"]:
        reason = f'has no effect, because objective = "{objective.kind}" compares all labels of a sample'
        raise OptionError(wrong(f"{at}.negatives", layer.negatives.kind, reason), hint="leave negatives out")


def _check_image_negatives(recipe: Recipe, negatives: ImageNegatives) -> None:
    """All layers learn from the same rows."""
    at, kind = "layers[{}].{}".format, negatives.kind
    for index, layer in enumerate(recipe.layers):
        if layer.negatives != negatives:
            reason = f'negatives = "{kind}" must be the same in all layers'
            raise OptionError(wrong(at(index, "negatives"), layer.negatives.kind, reason))
        if layer.label_scheme.kind != "none":
            reason = f'must be "none", because negatives = "{kind}" needs no labels'
            raise OptionError(wrong(at(index, "label_scheme"), layer.label_scheme.kind, reason))
        if not layer.objective.needs_wrong_labels:
            reason = f'compares labels; negatives = "{kind}" needs "threshold" or "paired"'
            raise OptionError(wrong(at(index, "objective"), layer.objective.kind, reason))
    if reason := negatives.incompatibility(recipe.preprocessing.output_shape(recipe.image_shape)):
        raise OptionError(wrong("negatives", kind, reason))
    smallest = recipe.batch_size_after(0)
    if smallest + recipe.replay * smallest // recipe.batch_size < 2:
        name = "warmup_batch_size" if recipe.warmup_samples else "batch_size"
        reason = f'must be at least 2, because negatives = "{kind}" makes rows from two images of a microbatch'
        raise OptionError(wrong(name, smallest, reason))
    if recipe.activities != "label_free":
        reason = f'must be label_free, because negatives = "{kind}" needs no labels'
        raise OptionError(wrong("activities", recipe.activities, reason))
    if not recipe.read_layers:
        reason = f'must be "softmax", because with negatives = "{kind}" layers know no labels'
        raise OptionError(wrong("readout", recipe.readout.kind, reason))


def _check_dreams(recipe: Recipe) -> None:
    """Dreams come from the first layer's decoder, in sleep or in place of images of both signs."""
    wanted = next(layer.negatives for layer in recipe.layers if layer.negatives.kind == "dreams")
    for index, layer in enumerate(recipe.layers):
        if layer.negatives != wanted:
            reason = 'negatives = "dreams" must be the same in all layers'
            raise OptionError(wrong(f"layers[{index}].negatives", layer.negatives.kind, reason))
    if recipe.layers[0].decoder.kind == "none":
        reason = 'negatives = "dreams" needs one in the first layer'
        raise OptionError(wrong("layers[0].decoder", "none", reason), hint='decoder = "linear"')
    if recipe.wake and not recipe.sleeps_without_images:
        reason = 'layers without labels compare dreams with decoded memories: negatives = "dreams" needs no phases'
        raise OptionError(wrong("wake", recipe.wake, reason))


def _check_recurrence(recipe: Recipe, recurrence: TopDown) -> None:
    """Each layer has a row for every sample and label, and the label comes from the last layer."""
    count, shown = len(recipe.layers), f'recurrence = "{recurrence.kind}"'
    if count < 2:
        raise OptionError(wrong("recurrence", recurrence.kind, "needs two layers or more"), hint="add a layer")
    if recurrence.rounds < (needed := recurrence.rounds_needed(count)):
        reason = f"with {count} layers, the label reaches the first one after {needed}"
        raise OptionError(wrong("recurrence.rounds", recurrence.rounds, reason), hint=f"set it to {needed} or more")
    for name, value, wanted in (
        ("activities", recipe.activities, "label_free"),
        ("readout", recipe.readout.kind, "none"),
    ):
        if value != wanted:
            raise OptionError(wrong(name, value, f'must be "{wanted}" with {shown}'))
    for index, layer in enumerate(recipe.layers):
        kinds = ["vectors"] if index + 1 == count else ["none", "vectors"]
        if (scheme := layer.label_scheme.kind) not in kinds:
            where = "the last layer" if index + 1 == count else "a layer"
            reason = f"{where} of a network with {shown} needs {' or '.join(map(show, kinds))}"
            raise OptionError(wrong(f"layers[{index}].label_scheme", scheme, reason))
        if layer.goodness.areas > 1:
            reason = f"must be 1 with {shown}"
            raise OptionError(wrong(f"layers[{index}].goodness.areas", layer.goodness.areas, reason))
        for name in ("hardware", "fast_weights", "decoder"):
            kind = getattr(layer, name).kind
            if kind != LAYER_DEFAULTS[name]:
                raise OptionError(
                    wrong(f"layers[{index}].{name}", kind, f"must be {LAYER_DEFAULTS[name]} with {shown}")
                )
        if layer.objective.relative_to_label_free:
            reason = f"compares with a row without a label, and with {shown} all rows have one"
            raise OptionError(wrong(f"layers[{index}].objective", layer.objective.kind, reason))


def _check_readout(recipe: Recipe) -> None:
    """What predictions come from."""
    read, last = list(recipe.read_layers), len(recipe.layers) - 1
    if any(not 0 <= index <= last for index in read):
        raise OptionError(wrong("readout.layers", read, f"the layers are 0 to {last}"))
    if len(set(read)) < len(read):
        raise OptionError(wrong("readout.layers", read, "name each layer once"))
    if read and recipe.activities != "label_free":
        reason = "reads rows that hold no label, so network.activities must be label_free"
        raise OptionError(wrong("readout", recipe.readout.kind, reason))
    if not read and not any(layer.score_weight for layer in recipe.layers):
        raise OptionError(wrong("score_weight", 0, "at least one layer needs another score_weight than 0"))


def _check_phases(recipe: Recipe) -> None:
    if recipe.sleep and not recipe.wake:
        reason = "needs network.wake, too: set it to a number of microbatches"
        raise OptionError(wrong("sleep", recipe.sleep, reason))
    unfit = [layer.objective.kind for layer in recipe.layers if not layer.objective.has_phases]
    if recipe.wake and unfit:
        reason = f'objective = "{unfit[0]}" cannot learn the phases separately'
        raise OptionError(wrong("wake", recipe.wake, reason), hint='use network.preset = "wake-sleep"')


def without_effect(given: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The options in `given`, written as in [network], that have no effect in this recipe; and why, for each."""
    has_ema, has_phases = recipe.ema_samples > 0, recipe.wake > 0
    found = {"drift": recipe.drift.incompatibility(has_ema=has_ema, has_phases=has_phases)}
    found |= _unused_augmentation(recipe)
    if not has_phases and any(layer.opponent.kind != LAYER_DEFAULTS["opponent"] for layer in recipe.layers):
        found["opponent"] = "there is no other phase: network.wake = 0"
    if recipe.sleeps_without_images and not has_phases:
        found["negatives"] = "layers with labels dream in sleep phases only, and network.wake = 0"
    if recipe.read_layers:
        found["score_weight"] = f'readout = "{recipe.readout.kind}" predicts, not the layers'
    written = given.keys() | {key for layer in given.get("layers", ()) for key in layer}
    return {name: reason for name, reason in found.items() if reason and name in written}


def _unused_augmentation(recipe: Recipe) -> dict[str, str]:
    """What would be done to replayed images, and why it is not."""
    if not recipe.draws_from_replay:
        asked = {"replay_jitter": recipe.replay_jitter > 0, "replay_flip": recipe.replay_flip}
        return {name: "no image is replayed: network.replay = 0" for name, is_asked in asked.items() if is_asked}
    if recipe.replay_edges != "zero" and not recipe.replay_jitter:
        return {"replay_edges": "no image is shifted: network.replay_jitter = 0"}
    return {}
