"""Whether a daemon can take a data set. The whole split is checked before anything is sent."""

import math

import numpy as np

from ffstream.data import Split
from ffstream.errors import BadShape, DataError, LabelOutOfRange
from ffstream.wire.images import ImageChecker, shape_hint
from ffstream.wire.messages import Welcome

_SUSPICIOUS_MAX = 16  # the brightest pixel of scikit-learn's digits


def shifted(split: Split, offset: int) -> Split:
    """Returns `split` with `offset` added to every label. Raises DataError when one leaves 0 to 255."""
    if not offset:
        return split
    labels = split.labels.astype(np.int64) + offset
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 255:
        raise DataError(
            f"--label-offset {offset} turns the labels {low - offset} to {high - offset} into {low} to {high}",
            hint=f"labels are 0 to 255; --label-offset {offset - low} makes the lowest one 0",
        )
    return Split(split.images, labels.astype(np.uint8))


def fitted(split: Split, welcome: Welcome) -> Split:
    """Returns `split` with images of a shape that the daemon takes. Raises BadShape when they cannot have one.

    For a network whose images are flat the images are flattened: it has no layout that could be violated. Images are
    never transposed or cut into other rows.
    """
    shape, wanted = list(split.image_shape), welcome.image_shape
    inputs = math.prod(shape)
    if shape in (wanted, [welcome.inputs]):
        return split
    if wanted == [inputs]:
        return Split(split.images.reshape(len(split), inputs), split.labels)
    raise BadShape(
        f"the data set's images have the shape {shape}, the daemon takes {wanted}; nothing was sent",
        hint=f"{shape_hint(shape, wanted)}; or start a daemon on a new state folder with network.image_shape={shape}",
    )


def check_labels(split: Split, welcome: Welcome, offset: int = 0, fraction: float = 1.0) -> None:
    """Raises LabelOutOfRange, with the index of the first wrong label. `offset` was added to the labels before.

    Raises LabelRequired if less than the whole `fraction` is to have a label and the daemon needs all.
    """
    if fraction < 1:
        ImageChecker(
            welcome.image_shape, welcome.labels, welcome.max_samples, unlabelled=welcome.unlabelled
        ).check_unlabelled()
    low, high = int(split.labels.min()), int(split.labels.max())
    bad = np.flatnonzero(split.labels >= welcome.labels)
    if not len(bad):
        return
    first = int(bad[0])
    if high - low < welcome.labels:
        hint = f"--label-offset {offset - low} makes them 0 to {high - low}"
    else:
        hint = f"start the daemon on a new state folder with network.labels={high + 1}"
    raise LabelOutOfRange(
        f"the labels are {low} to {high}, the daemon takes 0 to {welcome.labels - 1}: {len(bad):,} of "
        f"{len(split):,} are out of range, first label {split.labels[first]} at index {first}; nothing was sent",
        hint=hint,
    )


def suspicions(split: Split, offset: int = 0) -> list[str]:
    """Returns what is probably wrong with a split that the daemon takes, for a warning each."""
    warnings = []
    low, high = int(split.labels.min()), int(split.labels.max())
    if low > 0:
        warnings.append(
            f"the labels are {low} to {high}, none is 0: --label-offset {offset - low} makes them 0 to {high - low}"
        )
    brightest = int(split.images.max())
    if brightest <= _SUSPICIOUS_MAX:
        warnings.append(
            f"no pixel exceeds {brightest}, though uint8 images go to 255: the network will see nearly black images"
        )
    return warnings
