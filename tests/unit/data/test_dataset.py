import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ffstream.data.catalog import load
from ffstream.data.dataset import Dataset, Split
from ffstream.data.idx import read_idx, write_idx
from ffstream.data.streams import batches
from ffstream.errors import DataError


def assert_same(read: Dataset, expected: Dataset) -> None:
    for split, other in (read.train, expected.train), (read.test, expected.test):
        assert np.array_equal(split.images, other.images)
        assert np.array_equal(split.labels, other.labels)


def test_four_gzipped_files_are_read_as_a_data_set(tiny_folder: Path, tiny: Dataset) -> None:
    read = load(str(tiny_folder))
    assert read.name == "tiny"
    assert (len(read.train), len(read.test)) == (7, 4)
    assert_same(read, tiny)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_file_names_with_dashes_and_with_dots_are_recognised(
    tiny_folder: Path, tiny: Dataset, separator: str, suffix: str
) -> None:
    for path in list(tiny_folder.iterdir()):
        stem, kind = path.name.removesuffix(".gz").split("-idx")
        array = read_idx(path).astype(np.uint8)
        path.unlink()
        write_idx(tiny_folder / f"{stem}{separator}idx{kind}{suffix}", array)
    assert_same(load(str(tiny_folder)), tiny)


@pytest.mark.parametrize("name", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
def test_the_error_names_a_missing_file(tiny_folder: Path, name: str) -> None:
    (tiny_folder / f"{name}-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"tiny: no file {name}-ubyte") as caught:
        load(str(tiny_folder))
    assert "t10k-labels-idx1-ubyte" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "array", "what"),
    [
        (
            "train-labels-idx1",
            np.zeros(6, np.uint8),
            "train-images.* and train-labels.*7 images but 6 labels",
        ),
        ("train-labels-idx1", np.zeros((7, 1), np.uint8), "labels have 2 dimensions"),
        ("t10k-images-idx3", np.zeros(4, np.uint8), "images have 1 dimensions"),
        ("t10k-images-idx3", np.zeros((4, 6), np.uint8), r"training images .* \(3, 2\).*test images \(6,\)"),
        ("t10k-images-idx3", np.zeros((4, 3, 2, 1), np.uint8), r"\(3, 2\), test images \(3, 2, 1\)"),
        (
            "t10k-images-idx3",
            np.zeros((4, 2, 3), np.uint8),
            r"training images have the shape \(3, 2\), test images \(2, 3\)",
        ),
        ("t10k-images-idx3", np.zeros((4, 3, 0), np.uint8), "contains no pixels"),
    ],
)
def test_files_that_do_not_belong_together_are_rejected(
    tiny_folder: Path, name: str, array: npt.NDArray[np.uint8], what: str
) -> None:
    write_idx(tiny_folder / f"{name}-ubyte.gz", array)
    read = load(str(tiny_folder))
    with pytest.raises(DataError, match=what):
        read.train, read.test  # noqa: B018


def test_a_data_set_without_samples_is_rejected(tiny_folder: Path) -> None:
    write_idx(tiny_folder / "train-images-idx3-ubyte.gz", np.zeros((0, 3, 2), np.uint8))
    write_idx(tiny_folder / "train-labels-idx1-ubyte.gz", np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="contains no pixels"):
        load(str(tiny_folder)).split("train")


def test_a_split_has_uint8_images_and_labels_only() -> None:
    with pytest.raises(DataError, match="int64, expected uint8"):
        Split(np.zeros((2, 3, 2), np.uint8), np.zeros(2, np.int64))


@pytest.mark.parametrize("shape", [(3, 2), (3, 2, 4), (6,)], ids=["grey", "colour", "flat"])
def test_images_keep_the_shape_that_they_have_in_the_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.arange(5 * math.prod(shape), dtype=np.uint8).reshape(5, *shape)
    for prefix in "train", "t10k":
        write_idx(tmp_path / f"{prefix}-images-idx{images.ndim}-ubyte", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(5, dtype=np.uint8))
    read = load(str(tmp_path))
    assert read.train.image_shape == shape
    assert np.array_equal(read.train.images, images)
    sent, _ = next(batches(read.test, 5, order="as_is"))
    assert np.array_equal(sent, images)
