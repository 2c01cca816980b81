"""Data sets in the usual places, and the errors if they are missing or are different ones."""

import shutil
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ffstream.data import Dataset, load
from ffstream.data.idx import write_idx
from ffstream.data.sources import FASHION_MNIST, MNIST, Source
from ffstream.errors import DataError

PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def _nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FFSTREAM_MIRROR", "http://127.0.0.1:1")


def images(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 2), np.uint8)


def write_typed(path: Path, code: int, array: npt.NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def first_labels(source: Source) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert source.first_labels
    return source.first_labels


def make(folder: Path, layout: str = "{}", prefix: str = "", *, test: str = "t10k", labels: Source = MNIST) -> None:
    """Four files of 10 samples each, with the labels that `labels` begins with. `layout`: path below `folder`."""
    for part in PARTS:
        which = first_labels(labels)[part.startswith("t10k")]
        array = images(10, len(part)) if "images" in part else np.array(which, np.uint8)
        path = folder / layout.format(prefix + part.replace("t10k", test))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_idx(path, array)


def labels_of(dataset: Dataset) -> list[int]:
    return [int(label) for label in dataset.train.labels]


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("layout", ["MNIST/raw/{}", "mnist/{}", "archive/{}", "{0}/{0}", "raw/{}"])
def test_files_are_found_in_the_usual_places(tmp_path: Path, layout: str, packed: str) -> None:
    make(tmp_path, layout + packed)
    read = load("mnist", tmp_path)
    assert labels_of(read) == list(first_labels(MNIST)[0])
    assert read.test.labels.tolist() == list(first_labels(MNIST)[1])
    assert np.array_equal(load(str(tmp_path)).train.images, read.train.images)


def test_names_with_dots_and_folders_with_such_names_are_found(tmp_path: Path) -> None:
    for part in PARTS:
        name = part.replace("-idx", ".idx")
        make(tmp_path / "all")
        (tmp_path / "kaggle" / name).mkdir(parents=True)
        shutil.copy(tmp_path / "all" / part, tmp_path / "kaggle" / name / name)
    assert labels_of(load("mnist", tmp_path / "kaggle")) == list(first_labels(MNIST)[0])


def test_a_folder_with_several_data_sets_needs_a_name(tmp_path: Path) -> None:
    make(tmp_path, "MNIST/raw/{}")
    make(tmp_path, "FashionMNIST/raw/{}", labels=FASHION_MNIST)
    assert labels_of(load("mnist", tmp_path)) == list(first_labels(MNIST)[0])
    assert labels_of(load("fashion-mnist", tmp_path)) == list(first_labels(FASHION_MNIST)[0])
    with pytest.raises(DataError, match="contains several data sets: fashion-mnist, mnist") as caught:
        load(str(tmp_path))
    assert caught.value.hint == f"choose one: fashion-mnist --data {tmp_path}"


def test_emnist_is_transposed_back_and_keeps_its_labels(tmp_path: Path) -> None:
    for name in ("emnist-letters", "emnist-digits"):
        make(tmp_path, "EMNIST/raw/{}", f"{name}-", test="test")
    write_idx(tmp_path / "EMNIST/raw/emnist-letters-train-labels-idx1-ubyte", np.arange(1, 11, dtype=np.uint8))
    read = load("emnist-letters", tmp_path)
    assert read.train.images.shape == (10, 2, 3)
    assert np.array_equal(read.train.images[4], images(10, len(PARTS[0]))[4].T)
    assert labels_of(read) == list(range(1, 11))
    assert "transposed back" in read.notes[0]
    with pytest.raises(DataError, match=r"no files of emnist-balanced; found emnist-digits in .*EMNIST/raw"):
        load("emnist-balanced", tmp_path)


def test_qmnist_has_eight_columns_of_labels(tmp_path: Path) -> None:
    make(tmp_path, "QMNIST/raw/{}", "qmnist-", test="test")
    raw = tmp_path / "QMNIST/raw"
    for split in ("train", "test"):
        (raw / f"qmnist-{split}-labels-idx1-ubyte").unlink()
        columns = np.arange(80, dtype=np.int32).reshape(10, 8) % 60
        write_typed(raw / f"qmnist-{split}-labels-idx2-int", 0x0C, columns)
    assert labels_of(load("qmnist", tmp_path)) == [0, 8, 16, 24, 32, 40, 48, 56, 4, 12]


@pytest.mark.parametrize(
    ("name", "other", "files"), [("fashion-mnist", "mnist", MNIST), ("mnist", "fashion-mnist", FASHION_MNIST)]
)
def test_files_of_another_data_set_are_rejected(tmp_path: Path, name: str, other: str, files: Source) -> None:
    make(tmp_path, labels=files)
    with pytest.raises(DataError, match=f"are those of {other}, not of {name}"):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("emnist-letters", "no files of emnist-letters; found an unnamed one"),
        ("kmnist", "are those of mnist, not of kmnist"),
    ],
)
def test_files_without_a_name_do_not_match_every_data_set(tmp_path: Path, name: str, error: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=error):
        load(name, tmp_path)


def test_a_folder_with_another_name_is_not_used(tmp_path: Path) -> None:
    make(tmp_path, "MNIST/raw/{}")
    with pytest.raises(DataError, match=r"no files of fashion-mnist; found mnist in .*MNIST/raw"):
        load("fashion-mnist", tmp_path)


def test_files_that_differ_from_the_published_ones_are_read_with_a_note(tmp_path: Path) -> None:
    make(tmp_path)
    write_idx(tmp_path / PARTS[1], np.zeros(10, np.uint8))
    assert "are not those of the published mnist" in load("mnist", tmp_path).notes[0]


def test_a_data_folder_that_would_be_ignored_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match="`embedded` is part of the package") as caught:
        load("embedded", tmp_path)
    assert "--data" in caught.value.hint
    with pytest.raises(DataError, match=r"so --data .* would be ignored"):
        load(str(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("there", "found"),
    [([], "it is empty"), (["b.txt", "a.7z"], r"found a\.7z, b\.txt"), (list("abcdefgh"), "and 2 more")],
)
def test_the_error_lists_what_was_found(tmp_path: Path, there: list[str], found: str) -> None:
    for name in there:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=found) as caught:
        load("mnist", tmp_path)
    assert caught.value.hint.startswith("unpack a.7z first; ") == ("a.7z" in there)
    assert "a data set's folder contains train-images-idx3-ubyte" in caught.value.hint
    assert "train/CLASS/" in caught.value.hint


def test_the_error_names_missing_files_and_those_that_were_found(tmp_path: Path) -> None:
    make(tmp_path, "MNIST/raw/{}")
    (tmp_path / "MNIST/raw" / PARTS[3]).unlink()
    with pytest.raises(DataError, match=r"raw: no file t10k-labels-idx1-ubyte\[\.gz\]; found t10k-images"):
        load("mnist", tmp_path)


INTEGERS = {0x08: np.uint8, 0x0B: np.int16, 0x0C: np.int32}


@pytest.mark.parametrize("code", [0x08, 0x0B, 0x0C, 0x0D, 0x0E])
def test_every_element_type_becomes_pixels_and_labels(tmp_path: Path, code: int) -> None:
    dtype = np.dtype(INTEGERS.get(code, np.float32 if code == 0x0D else np.float64))
    make(tmp_path)
    write_typed(tmp_path / PARTS[0], code, images(10).astype(dtype))
    write_typed(tmp_path / PARTS[1], code, np.arange(10).astype(dtype))
    read = load(str(tmp_path))
    assert np.array_equal(read.train.images, images(10))
    assert labels_of(read) == list(range(10))


def test_floats_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    make(tmp_path)
    write_typed(tmp_path / PARTS[0], 0x0D, images(10).astype(np.float32) / 255)
    assert np.array_equal(load(str(tmp_path)).train.images, images(10))


@pytest.mark.parametrize(
    ("part", "code", "array", "what"),
    [
        (0, 0x0C, np.full((10, 3, 2), 256, np.int32), "pixels are 256 to 256, expected 0 to 255"),
        (0, 0x09, np.full((10, 3, 2), -1, np.int8), "pixels are -1 to -1, expected 0 to 255"),
        (0, 0x0D, np.full((10, 3, 2), np.nan, np.float32), "pixels are nan to nan, expected 0.0 to 1.0"),
        (1, 0x0C, np.arange(-1, 9, dtype=np.int32), "labels are -1 to 8, expected whole numbers from 0 to 255"),
        (1, 0x0C, np.arange(300, 310, dtype=np.int32), "labels are 300 to 309"),
        (1, 0x0D, np.full(10, 0.5, np.float32), "labels are 0.5 to 0.5, expected whole"),
    ],
)
def test_numbers_out_of_range_are_an_error_that_shows_them(
    tmp_path: Path, part: int, code: int, array: npt.NDArray[np.generic], what: str
) -> None:
    make(tmp_path)
    write_typed(tmp_path / PARTS[part], code, array)
    with pytest.raises(DataError, match=f"{PARTS[part]}: {what}") as caught:
        load(str(tmp_path)).split("train")
    assert caught.value.hint
