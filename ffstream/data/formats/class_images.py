"""Images in folders that are named after their class: train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png.

Labels are the positions of the class names in alphabetical order. Within a class images are ordered by name, numbers
in it by value (9.png before 10.png). The split begins with the first image of each class, then come the second ones,
and so on, so that its first samples are of all classes. All images of a data set have one size and one mode. For
validation the last 1,000 images of each class are held out, but not more than a fifth.
"""

import io
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from PIL.Image import DecompressionBombError
from PIL.Image import open as open_image

from ffstream.data.collection import Collection
from ffstream.data.dataset import Mask, Part, Split, UInt8Array, last_of
from ffstream.data.files import Files, Member, Progress
from ffstream.data.formats import cifar10_binary
from ffstream.errors import DataError

VALIDATION_MAX_OF_CLASS = 1_000
IMAGES_MAX_BYTES = 4 << 30

_SUFFIXES = (".jpg", ".jpeg", ".png")
_PARTS: Mapping[str, Part] = {"train": "train", "test": "test"}
_MODES = ("L", "RGB", "RGBA")  # whose pixels are bytes, and mean brightness or colour
_DAMAGED = (OSError, SyntaxError, ValueError, TypeError, struct.error, DecompressionBombError)
_CLASSES_MAX = 256

Classes = dict[str, list[Member]]


class ClassImages(Collection):
    """JPEG and PNG images by class. Grey images are (H, W), colour images (H, W, 3), with transparency (H, W, 4)."""

    expected = "images lie in train/CLASS/*.jpg|png and test/CLASS/*.jpg|png, or in CLASS/*.jpg|png"

    def __init__(self, files: Files, folder: str, parts: dict[Part, Classes]) -> None:
        classes = tuple(sorted(parts.get("train", ())))
        super().__init__(files, folder, cifar10_binary.NAME if classes == cifar10_binary.CLASSES else None)
        self._parts = parts
        self.class_names = classes

    @classmethod
    def find(cls, files: Files) -> Sequence[Self]:
        """Return a collection for each folder with class folders of images, if there are two or more."""
        folders: dict[str, dict[Part | None, Classes]] = {}
        for member in files.members:
            if not member.name.lower().endswith(_SUFFIXES) or not member.folder:
                continue
            above, _, name = member.folder.rpartition("/")
            root, _, last = above.rpartition("/")
            part = _PARTS.get(last.lower())
            classes = folders.setdefault(root if part else above, {}).setdefault(part, {})
            classes.setdefault(name, []).append(member)
        return [cls(files, root, parts) for root, every in folders.items() if (parts := _parts_of(every))]

    @property
    def missing(self) -> Sequence[str]:
        """Training images, if there are test images only."""
        return [] if "train" in self._parts else ["train/CLASS/*.jpg|png"]

    @property
    def found(self) -> Sequence[str]:
        """The class folders."""
        return [f"{part}/{name}" for part, classes in self._parts.items() for name in classes]

    def read(self, part: Part, progress: Progress | None = None) -> Split:
        """Decode the images of one part.

        Raises DataError for a part that is not there, a damaged image, the first image of another size or mode,
        classes without training images, and more than 256 classes.
        """
        classes = self._parts.get(part)
        if classes is None:
            raise DataError(
                f"{self.location}: has no folder {part}, so it has no {part} split",
                hint="use one of the splits train, train_without_validation and validation",
            )
        self._check_classes(classes)
        places = sorted(
            (at, label, member)
            for label, name in enumerate(self.class_names)
            for at, member in enumerate(_in_order(classes.get(name, [])))
        )
        images = self._decode([member for _, _, member in places], progress)
        return Split(images, np.array([label for _, label, _ in places], np.uint8))

    def held_out(self, train: Split) -> Mask:
        """Mask (N,) of the last images of each class."""
        mask = np.zeros(len(train), bool)
        for label in range(len(self.class_names)):
            own = np.flatnonzero(train.labels == label)
            mask[own[len(own) - last_of(len(own), VALIDATION_MAX_OF_CLASS) :]] = True
        return mask

    def _check_classes(self, classes: Classes) -> None:
        if len(self.class_names) > _CLASSES_MAX:
            raise DataError(
                f"{self.location}: {len(self.class_names)} classes, at most {_CLASSES_MAX} are possible",
                hint="remove folders",
            )
        if unknown := sorted(set(classes) - set(self.class_names)):
            raise DataError(
                f"{self.location}: test images of {', '.join(unknown)}, but no training images",
                hint="the folders of a class have the same name in train and test",
            )

    def _decode(self, ordered: list[Member], progress: Progress | None) -> UInt8Array:
        """All images (N, …) in that order. Files are read in the order in which they are stored."""
        index = {member: i for i, member in enumerate(ordered)}
        images: UInt8Array | None = None
        first = ""
        for member, content in self.files.contents(ordered, progress):
            where = self.files.label(member.path)
            pixels = _pixels(content, where)
            if images is None:
                first, images = where, _room(len(ordered), pixels.shape, where)
            elif pixels.shape != images.shape[1:]:
                raise DataError(
                    f"{where}: {_words(pixels.shape)}, but {first} is {_words(images.shape[1:])}",
                    hint="all images must have one size and one mode: scale or convert them",
                )
            images[index[member]] = pixels
        assert images is not None, "a part has images"
        return images


def _parts_of(every: dict[Part | None, Classes]) -> dict[Part, Classes]:
    """Training and test images; without such folders, all are for training. Empty if there is only one class."""
    named: dict[Part, Classes] = {part: classes for part, classes in every.items() if part is not None}
    parts = named or {"train": every[None]}
    names = {name for classes in parts.values() for name in classes}
    is_without_classes = not named and names <= _PARTS.keys()  # train/1.png
    return {} if len(names) < 2 or is_without_classes else parts


def _in_order(members: list[Member]) -> list[Member]:
    def key(member: Member) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", member.name)]

    return sorted(members, key=key)


def _pixels(content: bytes, where: str) -> UInt8Array:
    try:
        with open_image(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            if image.mode not in _MODES:
                raise DataError(
                    f"{where}: the image has the mode {image.mode}, expected {', '.join(_MODES)}",
                    hint="convert the images to RGB, or to L for grey ones",
                )
            return np.asarray(image)
    except _DAMAGED as error:
        raise DataError(f"{where}: not a whole JPEG or PNG image: {error}", hint="get the file again") from error


def _room(count: int, shape: tuple[int, ...], where: str) -> UInt8Array:
    size = count * int(np.prod(shape))
    if size > IMAGES_MAX_BYTES:
        raise DataError(
            f"{where}: {count:,} images of {_words(shape)} need {size} bytes, the limit is {IMAGES_MAX_BYTES}",
            hint="scale the images, or use fewer",
        )
    return np.empty((count, *shape), np.uint8)


def _words(shape: tuple[int, ...]) -> str:
    channels = shape[2] if len(shape) > 2 else 1
    return f"{shape[0]}×{shape[1]} with {channels} channel{'s' if channels > 1 else ''}"
