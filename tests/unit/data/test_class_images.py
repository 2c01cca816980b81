"""Images in class folders, in folders and in archives."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ffstream.data import load
from ffstream.data.formats import class_images
from ffstream.data.formats.cifar10_binary import CLASSES
from ffstream.errors import DataError

Pixels = npt.NDArray[np.uint8]


def pixels(seed: int, shape: tuple[int, ...] = (4, 6, 3)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(image: Pixels | Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind)
    return out.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "images.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def by_class(per_class: int = 2, classes: tuple[str, ...] = ("cat", "ant", "bee")) -> dict[str, bytes]:
    """Files of two splits, in the order of `classes`."""
    return {
        f"{split}/{name}/{number}.png": encoded(pixels(100 * label + number + 50 * (split == "test")))
        for split in ("train", "test")
        for label, name in enumerate(sorted(classes))
        for number in range(per_class)
    }


@pytest.mark.parametrize("lay", [write, zipped, tarred])
@pytest.mark.parametrize("top", ["", "top/"])
def test_images_are_read_by_split_and_class(
    tmp_path: Path, lay: Callable[[Path, dict[str, bytes]], Path], top: str
) -> None:
    extra = {"README.md": b"x", "__MACOSX/train/cat/._0.png": b"x", "train/.hidden/0.png": b"x"}
    files = {**extra, **by_class()}
    dataset = load(str(lay(tmp_path, {top + name: content for name, content in files.items()})))
    assert dataset.class_names == ("ant", "bee", "cat")
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.train.image_shape == (4, 6, 3), "height, width, channels"
    assert np.array_equal(dataset.train.images[4], pixels(101))
    assert np.array_equal(dataset.test.images[2], pixels(250))


def test_class_folders_without_splits_are_for_training(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/{n}.png": encoded(pixels(n)) for name in ("b", "a") for n in range(10)})
    dataset = load(str(tmp_path))
    assert (len(dataset.train), dataset.class_names) == (20, ("a", "b"))
    with pytest.raises(DataError, match="has no folder test") as caught:
        dataset.split("test")
    assert "validation" in caught.value.hint


def test_numbers_in_names_are_ordered_by_value_and_the_last_ones_are_held_out(tmp_path: Path) -> None:
    write(
        tmp_path,
        {f"{name}/img{n}.png": encoded(np.full((2, 2), n, np.uint8)) for name in "ab" for n in range(12)},
    )
    dataset = load(str(tmp_path))
    assert dataset.train.images[:, 0, 0].tolist() == [n for n in range(12) for _ in "ab"]
    for name, numbers in (("validation", [10, 11]), ("train_without_validation", list(range(10)))):
        split = dataset.split(name)  # type: ignore[arg-type]
        assert split.images[:, 0, 0].tolist() == [n for n in numbers for _ in "ab"], "a fifth of each class"
        assert split.labels.tolist() == [0, 1] * len(numbers)


def test_at_most_1000_images_of_a_class_are_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert class_images.VALIDATION_MAX_OF_CLASS == 1000
    monkeypatch.setattr(class_images, "VALIDATION_MAX_OF_CLASS", 1)
    write(tmp_path, {f"{name}/{n}.png": encoded(np.full((2, 2), n, np.uint8)) for name in "ab" for n in range(12)})
    assert load(str(tmp_path)).split("validation").images[:, 0, 0].tolist() == [11, 11]


def test_too_few_images_for_validation_are_an_error(tmp_path: Path) -> None:
    dataset = load(str(write(tmp_path, by_class())))
    with pytest.raises(DataError, match="6 training samples are too few") as caught:
        dataset.split("validation")
    assert "train" in caught.value.hint


def test_jpeg_images_are_read_with_their_colours(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    write(tmp_path, {f"{name}/0.JPG": encoded(red, "JPEG") for name in "ab"})
    image = load(str(tmp_path)).train.images[0]
    assert image[..., 0].mean() > 190
    assert image[..., 1:].mean() < 10


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 3), (3, 2, 4)])
def test_grey_colour_and_transparent_images_have_a_shape_each(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write(tmp_path, {f"{name}/0.png": encoded(pixels(1, shape)) for name in "ab"})
    assert load(str(tmp_path)).train.image_shape == shape


@pytest.mark.parametrize(
    ("other", "words"), [((4, 5, 3), "4×5 with 3 channels"), ((4, 6), "4×6 with 1 channel,")], ids=["size", "mode"]
)
def test_the_first_image_that_differs_is_named(tmp_path: Path, other: tuple[int, ...], words: str) -> None:
    files = {**by_class(), "train/bee/1.png": encoded(pixels(1, other)), "train/cat/1.png": encoded(pixels(1, other))}
    dataset = load(str(write(tmp_path, files)))
    with pytest.raises(DataError, match=f"train/bee/1.png: {words}.* but .*ant/0.png is 4×6 with 3 channels"):
        dataset.split("train")


def test_training_and_test_images_of_two_sizes_are_an_error(tmp_path: Path) -> None:
    files = by_class() | {name: encoded(pixels(1, (5, 5, 3))) for name in by_class() if name.startswith("test")}
    dataset = load(str(write(tmp_path, files)))
    assert dataset.train.image_shape == (4, 6, 3)
    with pytest.raises(DataError, match=r"training images have the shape \(4, 6, 3\), test images \(5, 5, 3\)"):
        dataset.split("test")


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "LA"])
def test_other_modes_are_an_error_that_says_what_to_do(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (3, 2))
    dataset = load(str(write(tmp_path, {f"{name}/0.png": encoded(image) for name in "ab"})))
    with pytest.raises(DataError, match=f"a/0.png: the image has the mode {mode}") as caught:
        dataset.split("train")
    assert "convert" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"no image", encoded(pixels(1))[:40], encoded(pixels(1), "BMP")])
def test_a_damaged_image_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    dataset = load(str(zipped(tmp_path, {**by_class(), "train/bee/1.png": content})))
    with pytest.raises(DataError, match=r"images.zip/train/bee/1.png: not a whole JPEG or PNG image"):
        dataset.split("train")


def test_a_class_without_training_images_is_an_error(tmp_path: Path) -> None:
    dataset = load(str(write(tmp_path, {**by_class(), "test/dog/0.png": encoded(pixels(1))})))
    with pytest.raises(DataError, match="test images of dog, but no training images"):
        dataset.split("test")


def test_more_classes_than_labels_are_an_error(tmp_path: Path) -> None:
    dataset = load(str(zipped(tmp_path, {f"{n}/0.png": encoded(pixels(1)) for n in range(257)})))
    with pytest.raises(DataError, match="257 classes, at most 256"):
        dataset.split("train")


def test_images_that_need_too_much_memory_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_images, "IMAGES_MAX_BYTES", 6 * 72 - 1)
    with pytest.raises(DataError, match=r"6 images of 4×6 with 3 channels need 432 bytes, the limit is 431"):
        load(str(write(tmp_path, by_class()))).split("train")


@pytest.mark.parametrize("names", [["train/0.png", "test/0.png"], ["one/0.png", "one/1.png"], ["0.png"]])
def test_images_without_classes_are_not_a_data_set(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, {name: encoded(pixels(1)) for name in names})
    with pytest.raises(DataError, match="no data set there") as caught:
        load(str(tmp_path))
    assert "CLASS/*.jpg|png" in caught.value.hint


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write(tmp_path, {f"{name}/0.png": encoded(pixels(1)) for name in ("bus", "train")})
    assert load(str(tmp_path)).class_names == ("bus", "train")


def test_test_images_alone_are_incomplete(tmp_path: Path) -> None:
    write(tmp_path, {name: content for name, content in by_class().items() if name.startswith("test")})
    with pytest.raises(DataError, match=r"no file train/CLASS/\*.jpg\|png; found test/ant, test/bee, test/cat"):
        load(str(tmp_path))


def test_images_by_the_classes_of_cifar10_are_cifar10(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    zipped(tmp_path / "data", by_class(1, CLASSES))
    for dataset in (load("cifar-10", tmp_path / "data"), load(str(tmp_path / "data"))):
        assert dataset.name == "cifar-10"
        assert dataset.test.labels.tolist() == list(range(10))
    with pytest.raises(DataError, match=r"no files of mnist; found cifar-10 in .*images.zip"):
        load("mnist", tmp_path / "data")
    write(tmp_path / "other", by_class(1))
    with pytest.raises(DataError, match="no files of cifar-10; found an unnamed one"):
        load("cifar-10", tmp_path / "other")


def test_progress_is_reported_in_bytes(tmp_path: Path) -> None:
    files = by_class()
    steps: list[tuple[str, int, int | None]] = []
    load(str(zipped(tmp_path, files)), None, lambda *step: steps.append(step)).split("test")
    total = sum(len(content) for name, content in files.items() if name.startswith("test"))
    assert steps[-1] == ("reading images.zip", total, total)
    assert len(steps) == 6
