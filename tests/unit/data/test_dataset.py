from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ffstream.data.dataset import Dataset, Split, load_folder
from ffstream.data.idx import read_idx, write_idx
from ffstream.errors import DataError


def assert_same(read: Dataset, expected: Dataset) -> None:
    for split, other in (read.train, expected.train), (read.test, expected.test):
        assert np.array_equal(split.images, other.images)
        assert np.array_equal(split.labels, other.labels)


def test_four_gzipped_files_are_a_dataset(tiny_folder: Path, tiny: Dataset) -> None:
    read = load_folder(tiny_folder, "some name")
    assert read.name == "some name"
    assert (len(read.train), len(read.test)) == (7, 4)
    assert_same(read, tiny)


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_plain_and_dotted_names_are_taken(tiny_folder: Path, tiny: Dataset, separator: str, suffix: str) -> None:
    for path in list(tiny_folder.iterdir()):
        stem, kind = path.name.removesuffix(".gz").split("-idx")
        array = read_idx(path).astype(np.uint8)
        path.unlink()
        write_idx(tiny_folder / f"{stem}{separator}idx{kind}{suffix}", array)
    assert_same(load_folder(tiny_folder, "tiny"), tiny)


@pytest.mark.parametrize("name", ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"])
def test_a_missing_file_is_named(tiny_folder: Path, name: str) -> None:
    (tiny_folder / f"{name}-ubyte.gz").unlink()
    with pytest.raises(DataError, match=f"tiny: no file {name}-ubyte") as caught:
        load_folder(tiny_folder, "tiny")
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
        ("t10k-images-idx3", np.zeros((4, 6), np.uint8), "images have 2 dimensions"),
        (
            "t10k-images-idx3",
            np.zeros((4, 2, 3), np.uint8),
            r"training images are \(3, 2\).*test images \(2, 3\)",
        ),
        ("t10k-images-idx3", np.zeros((4, 3, 0), np.uint8), "holds no pixels"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    tiny_folder: Path, name: str, array: npt.NDArray[np.uint8], what: str
) -> None:
    write_idx(tiny_folder / f"{name}-ubyte.gz", array)
    with pytest.raises(DataError, match=what):
        load_folder(tiny_folder, "tiny")


def test_a_dataset_without_samples_is_refused(tiny_folder: Path) -> None:
    write_idx(tiny_folder / "train-images-idx3-ubyte.gz", np.zeros((0, 3, 2), np.uint8))
    write_idx(tiny_folder / "train-labels-idx1-ubyte.gz", np.zeros(0, np.uint8))
    with pytest.raises(DataError, match="holds no pixels"):
        load_folder(tiny_folder, "tiny")


def test_a_split_holds_bytes_only() -> None:
    with pytest.raises(DataError, match="int64, expected uint8"):
        Split(np.zeros((2, 3, 2), np.uint8), np.zeros(2, np.int64))
