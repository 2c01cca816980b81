"""What a layer compares, in a sentence for people: it depends on the parts of the layer."""

from ffstream.ff.recipe import Compares, LayerOptions, Recipe

_RIGHT_AND_WRONG: dict[Compares, tuple[str, str]] = {
    "labels": ("goodness with the right label", "with the strongest wrong label"),
    "groups": ("goodness of the units of the right label", "of the units of the strongest wrong label"),
    "images": ("goodness of images", "of negative images made from them"),
}
_ACTIVITIES: dict[Compares, str] = {
    "labels": "the activities with the right label, and with the wrong one",
    "groups": "the label is not an input, so the activities are the same for all: each label has a group of units",
    "images": "the layer knows no label: the activities for the image, and for a negative image made from it",
}


def of_goodness(recipe: Recipe, index: int, threshold: float | None) -> str:
    """Of the histogram of a layer: what its two sides are."""
    layer = recipe.layers[index]
    right, wrong = _RIGHT_AND_WRONG[recipe.compares[index]]
    if recipe.image_negatives is not None and recipe.dreams:
        wrong = "of images that the first layer dreams"
    parts = [f"{right}, and {wrong}", *_notes(layer), _learns(layer, threshold)]
    if index in recipe.read_layers:
        parts.append("labels come from a readout that reads this layer")
    elif recipe.read_layers or not layer.score_weight:
        parts.append("predictions leave this layer out")
    return _sentence(parts)


def of_activities(recipe: Recipe, index: int) -> str:
    """Of the activities of a layer for one image: what its two rows are."""
    shown = _ACTIVITIES[recipe.compares[index]]
    if recipe.image_negatives is not None and recipe.dreams:
        shown = "the layer knows no label: the activities for the image, and for one that the first layer dreams"
    return _sentence([shown, *_notes(recipe.layers[index])])


def _notes(layer: LayerOptions) -> list[str]:
    notes = []
    if layer.objective.relative_to_label_free:
        notes.append("goodness counts from that of the same image without a label")
    if layer.goodness.negative:
        notes.append("goodness is negative: less activity is more goodness")
    return notes


def _learns(layer: LayerOptions, threshold: float | None) -> str:
    objective = layer.objective
    if threshold is not None:
        return f"the layer learns to have right above and wrong below the threshold {threshold:.4g}"
    if objective.needs_wrong_labels:
        return "the layer has no threshold: it learns to have more goodness for right than for wrong"
    return "the layer has no threshold: it learns from the goodness of all labels together"


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."
