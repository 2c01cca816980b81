"""Answers questions of people who look at the network: what it gets wrong, and what its layers do.

Every answer is a record that can be written as JSON, computed from one snapshot with the formulas of prediction.
Nothing is computed unless somebody asks, and what all viewers ask for is computed once for all of them.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ffstream.errors import BadSize, LabelOutOfRange, NoSamples, NotShown
from ffstream.ff import inspection
from ffstream.ff.recipe import Recipe
from ffstream.serving import explanations
from ffstream.serving.cached import Cached, Record
from ffstream.serving.mistakes import Mistake, Mistakes
from ffstream.serving.pictures import image_png, picture_shape, to_bytes, weights_png
from ffstream.serving.predictor import Predictor
from ffstream.serving.recent import RecentSamples, Samples
from ffstream.serving.reduction import Reduction
from ffstream.serving.snapshot import Snapshot, Snapshots

BINS = 40
GOODNESS_REFRESH_S = 2.0
MISTAKES_REFRESH_S = 1.0
_CLASSES_MAX = 100  # with more labels: the errors of the worst ones, the dreams of the first ones


class Evaluation(Protocol):
    """What is kept of predictions before learning."""

    @property
    def mistakes(self) -> Mistakes:
        """What they got wrong."""

    @property
    def recent(self) -> RecentSamples:
        """The samples."""


class Inspector:
    """For threads that may wait. `evaluation` returns that of the current training run, `threshold` that of a layer
    which keeps a running one."""

    def __init__(
        self,
        recipe: Recipe,
        snapshots: Snapshots,
        evaluation: Callable[[], Evaluation],
        threshold: Callable[[int], float | None] = lambda index: None,
    ) -> None:
        self._recipe = recipe
        self._snapshots = snapshots
        self._evaluation = evaluation
        self._threshold = threshold
        self._predictor = Predictor(snapshots)
        self._goodness = Cached(self._histograms, GOODNESS_REFRESH_S)
        self._mistakes = Cached(self._summary, MISTAKES_REFRESH_S)
        self._reductions = [
            Reduction(shape, self._groups(index)) for index, shape in enumerate(recipe.output_shapes())
        ]

    @property
    def image_shape(self) -> Sequence[int]:
        """The shape of the network's images."""
        return self._recipe.image_shape

    # --- the stream ------------------------------------------------------------------------------------------------

    def mistakes(self) -> Record:
        """The confusion matrix over the prequential window, the error of each class, and the latest mistakes."""
        return self._mistakes.get()

    def _summary(self) -> Record:
        mistakes = self._evaluation().mistakes
        samples, wrong, matrix = mistakes.confusion()
        by_errors = sorted(range(len(samples)), key=lambda label: -int(wrong[label]))[:_CLASSES_MAX]
        return {
            "window_samples": int(samples.sum()),
            "window_wrong": int(wrong.sum()),
            "classes": sorted(by_errors),
            "confusion": None if matrix is None else matrix.tolist(),
            "per_class": [
                {
                    "label": label,
                    "samples": int(samples[label]),
                    "wrong": int(wrong[label]),
                    "error": int(wrong[label]) / int(samples[label]) if samples[label] else None,
                }
                for label in sorted(by_errors)
            ],
            "latest": [self._mistake(each) for each in mistakes.latest()],
        }

    def _mistake(self, mistake: Mistake) -> Record:
        return {
            "seq": mistake.seq,
            "time": mistake.time,
            "image": _base64(image_png(mistake.image_I, self._recipe.image_shape)),
            "label": mistake.label,
            "predicted": mistake.predicted,
            "scores": mistake.scores_L.tolist(),
        }

    def sample(self, label: int | None) -> Record:
        """The latest sample that was evaluated, or the latest with that label. Raises NoSamples, LabelOutOfRange."""
        if label is not None:
            self._check_label(label)
        images_BI, labels_B = self._recent()
        at = range(len(labels_B)) if label is None else (labels_B == label).nonzero()[:, 0].tolist()
        if not at:
            raise NoSamples(f"no recent sample has the label {label}", hint="ask again later, or for another label")
        return {"image": to_bytes(images_BI[at[-1]]).tolist(), "label": int(labels_B[at[-1]])}

    def _recent(self) -> Samples:
        recent = self._evaluation().recent.latest()
        if recent is None:
            raise NoSamples(
                "no sample was evaluated since learning began", hint="send samples; see also prequential.fraction"
            )
        return recent

    # --- one image -------------------------------------------------------------------------------------------------

    def scores(self, image: Sequence[int]) -> Record:
        """The answer of the predict socket, and what makes it up: scores = Σ score_weights · layers, plus the bias.

        `layers`: the goodness of every label, or with a readout what each layer contributes to its logits; None for
        layers without such a number. Raises BadSize.
        """
        image_I = self.image(image)
        (answer,) = self._predictor.answer([image_I.numpy()[None]])
        classifier = answer.snapshot.classifier
        with torch.inference_mode():
            layers: list[list[float | None] | None]
            if self._recipe.read_layers:
                parts = classifier.logit_parts(image_I[None])
                layers = [_floats(parts[index][0]) if index in parts else None for index in self._indices]
                bias = classifier.readout_bias
                weights = [float(index in parts) for index in self._indices]
            else:
                layers = [_floats(G_BL[0]) for G_BL in classifier.goodness(image_I[None])]
                bias = None
                weights = [layer.score_weight for layer in self._recipe.layers]
        return {
            "label": int(answer.labels[0]),
            "scores": _floats(torch.from_numpy(answer.goodness[0])),
            "layers": layers,
            "score_weights": weights,
            "bias": None if bias is None else _floats(bias),
            **_of(answer.snapshot),
        }

    def activities(self, image: Sequence[int], label: int | None = None, wrong: int | None = None) -> Record:
        """The activities of each layer for one image under two labels.

        `label`: by default the predicted one. `wrong`: by default, or if it is the same, the one with the highest
        score of the others. Raises BadSize, LabelOutOfRange, and NoSamples if a negative image is needed and there is
        no second image.
        """
        image_I = self.image(image)
        snapshot = self._snapshots.current
        classifier, recipe = snapshot.classifier, self._recipe
        prediction = classifier.predict(image_I[None])
        label = int(prediction.labels_B[0]) if label is None else self._check_label(label)
        if wrong is None or self._check_label(wrong) == label:
            wrong = _strongest(prediction.goodness_BL[0], label)
        other_I = self._other(image_I, label) if recipe.image_negatives else None
        shown = inspection.show(classifier, image_I, label, wrong, other_I)
        negative_I = None if other_I is None else inspection.negative_image(classifier, image_I, other_I)
        return {
            **_of(snapshot),
            "label": label,
            "wrong": wrong,
            "negative": None if negative_I is None else to_bytes(negative_I).tolist(),
            "layers": [self._activities(index, each, label, wrong) for index, each in enumerate(shown)],
        }

    def _activities(self, index: int, shown: inspection.Shown, label: int, wrong: int) -> Record:
        reduction, groups = self._reductions[index], self._groups(index)
        return {
            "index": index,
            "compares": self._recipe.compares[index],
            "shape": list(reduction.reduced),
            "units": list(list(self._recipe.output_shapes())[index]),
            "right": reduction(shown.right_F).tolist(),
            "wrong": reduction(shown.wrong_F).tolist(),
            "groups": [list(reduction.group(groups[each])) for each in (label, wrong)] if groups else None,
            "goodness_right": shown.goodness_right,
            "goodness_wrong": shown.goodness_wrong,
            "text": explanations.of_activities(self._recipe, index),
        }

    def _other(self, image_I: Tensor, label: int) -> Tensor:
        """The latest sample with another label; if there is none, the latest that is another image."""
        recent = self._recent()
        images_BI = to_bytes(recent.images_BI)
        other_B = recent.labels_B != label
        if not other_B.any():
            other_B = (images_BI != image_I).any(1)
        if not other_B.any():
            raise NoSamples("a negative image needs another image", hint="send samples of other images")
        return images_BI[other_B][-1]

    def image(self, values: Sequence[int]) -> Tensor:
        """An image of the network (I; uint8). Raises BadSize."""
        if len(values) != self._recipe.inputs:
            raise BadSize(
                f"an image of {len(values)} numbers",
                hint=f"images of this network have {self._recipe.inputs}: {list(self._recipe.image_shape)}, flat",
            )
        return torch.tensor(values, dtype=torch.uint8)

    def _check_label(self, label: int) -> int:
        if not 0 <= label < self._recipe.labels:
            raise LabelOutOfRange(f"label {label}", hint=f"labels are 0 to {self._recipe.labels - 1}")
        return label

    # --- layers ----------------------------------------------------------------------------------------------------

    def goodness(self) -> Record:
        """For each layer, histograms of the goodness of the right and of the wrong side of what it compares, over the
        samples that were evaluated last. Raises NoSamples."""
        return self._goodness.get()

    def _histograms(self) -> Record:
        snapshot = self._snapshots.current
        images_BI, labels_B = self._recent()
        if self._recipe.image_negatives and len(labels_B) < 2:
            raise NoSamples("a negative image is made from two images", hint="send more samples")
        layers = inspection.compare(snapshot.classifier, images_BI, labels_B)
        return {
            **_of(snapshot),
            "samples": len(labels_B),
            "layers": [self._histogram(index, *compared) for index, compared in enumerate(layers)],
        }

    def _histogram(self, index: int, right_B: Tensor, wrong_B: Tensor) -> Record:
        threshold = self._recipe.layers[index].objective.threshold
        if threshold is None:
            threshold = self._threshold(index)
        both = torch.cat((right_B, wrong_B))
        both = both[both.isfinite()]  # all values are, unless learning diverges
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 0.0)
        if low == high:
            low, high = low - 0.5, high + 0.5
        return {
            "index": index,
            "compares": self._recipe.compares[index],
            "edges": torch.linspace(low, high, BINS + 1).tolist(),
            "right": torch.histc(right_B, BINS, low, high).int().tolist(),
            "wrong": torch.histc(wrong_B, BINS, low, high).int().tolist(),
            "threshold": threshold,
            "text": explanations.of_goodness(self._recipe, index, threshold),
        }

    def filters(self, index: int, limit: int) -> Record:
        """The weights of the units of a layer with the largest norms, as images. Raises NotShown."""
        if not 0 <= index < len(self._recipe.layers):
            raise NotShown(f"there is no layer {index}", hint=f"the layers are 0 to {len(self._recipe.layers) - 1}")
        snapshot = self._snapshots.current
        try:
            fields_NHWC = inspection.filters(snapshot.classifier, index, limit)
        except ValueError as error:
            raise NotShown(str(error), hint="ask for another layer; the first one is connected to pixels") from error
        if not index and len(self._recipe.image_shape) not in (2, 3):
            fields_NHWC = fields_NHWC.view(len(fields_NHWC), *picture_shape(self._recipe.image_shape))
        drawn = [weights_png(each) for each in fields_NHWC]
        return {
            **_of(snapshot),
            "index": index,
            "shape": list(fields_NHWC.shape[1:]),
            "images": [_base64(png) for png, _ in drawn],
            "scale": [scale for _, scale in drawn],
        }

    def dreams(self, limit: int) -> Record:
        """Images that the layers dream: for each layer that, like all layers below it, has a decoder: `limit`
        images of each label. Raises NotShown, NoSamples."""
        if self._recipe.layers[0].decoder.kind == "none":
            hint = 'set network.decoder to "linear", and begin with a new state folder'
            raise NotShown("the first layer of this network has no decoder, so it does not dream", hint=hint)
        snapshot, shape = self._snapshots.current, self._recipe.image_shape
        labels = None if self._recipe.learns_unlabelled else list(range(min(self._recipe.labels, _CLASSES_MAX)))
        layers = inspection.dreams(snapshot.classifier, len(labels or [0]), limit)
        if not layers:
            raise NoSamples("nothing is remembered yet, so nothing is dreamt", hint="send samples")
        return {
            **_of(snapshot),
            "labels": labels,
            "layers": [
                [[_base64(image_png(image_I, shape)) for image_I in images] for images in label_images]
                for label_images in layers
            ],
        }

    @property
    def _indices(self) -> range:
        return range(len(self._recipe.layers))

    def _groups(self, index: int) -> tuple[tuple[int, int], ...]:
        """The units of each label, if the layer divides them."""
        recipe, shape = self._recipe, list(self._recipe.output_shapes())[index]
        scheme = recipe.layers[index].label_scheme
        found = (scheme.group(label, recipe.labels, shape) for label in range(recipe.labels))
        return tuple(group for group in found if group is not None)


def _of(snapshot: Snapshot) -> Record:
    return {"version": snapshot.version, "seq": snapshot.seq}


def _strongest(scores_L: Tensor, label: int) -> int:
    """The label with the highest score, except for that one."""
    others = scores_L.clone()
    others[label] = -torch.inf
    return int(others.argmax())


def _floats(values: Tensor) -> list[float | None]:
    """The shortest decimal numbers that are read as the same float32. None for NaN and infinity."""
    return [float(str(each)) if np.isfinite(each) else None for each in values.float().cpu().numpy()]


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
