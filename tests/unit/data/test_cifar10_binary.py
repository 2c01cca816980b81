"""CIFAR-10's binary files."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ffstream.data import load
from ffstream.errors import DataError

TRAIN = [f"data_batch_{n}.bin" for n in range(1, 6)]
RECORDS = 3


def image(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def record(seed: int) -> bytes:
    """The label, then the red, the green and the blue plane, row by row."""
    planes = (image(seed)[:, :, channel].tobytes() for channel in range(3))
    return bytes([seed % 10]) + b"".join(planes)


def batches() -> dict[str, bytes]:
    """The six files, in the order of the published archive. The seeds rise from file to file."""
    first = {name: RECORDS * at for at, name in enumerate([*TRAIN, "test_batch.bin"])}
    shuffled = [TRAIN[0], TRAIN[2], TRAIN[3], "test_batch.bin", TRAIN[4], TRAIN[1]]
    return {name: b"".join(record(first[name] + n) for n in range(RECORDS)) for name in shuffled}


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    (folder / "cifar-10-batches-bin").mkdir()
    for name, content in files.items():
        (folder / "cifar-10-batches-bin" / name).write_bytes(content)
    return folder


def packed(folder: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder / "cifar-10-binary.tar.gz"


@pytest.mark.parametrize("lay", [unpacked, packed])
def test_files_in_a_folder_and_in_the_archive_are_read(
    tmp_path: Path, lay: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    place = lay(tmp_path, batches())
    for dataset in (load(str(place)), load("cifar-10", tmp_path)):
        assert dataset.name == "cifar-10"
        assert dataset.class_names[:2] == ("airplane", "automobile")
        assert dataset.train.labels.tolist() == [n % 10 for n in range(5 * RECORDS)]
        assert dataset.test.labels.tolist() == [5, 6, 7]
        for n in range(5 * RECORDS):
            assert np.array_equal(dataset.train.images[n], image(n))
        assert np.array_equal(dataset.test.images[1], image(5 * RECORDS + 1))
        assert dataset.split("validation").labels.tolist() == [2, 3, 4], "the last fifth, data_batch_5"


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "0 bytes, expected records of 3073 bytes"),
        (record(1)[:-1], "3072 bytes, expected records of 3073 bytes"),
        (b"\x0a" + record(1)[1:], "contains the label 10, expected 0 to 9"),
    ],
)
def test_a_file_that_is_not_valid_is_an_error_that_names_it(tmp_path: Path, content: bytes, error: str) -> None:
    dataset = load(str(packed(tmp_path, {**batches(), TRAIN[3]: content})))
    with pytest.raises(DataError, match=rf"tar.gz/cifar-10-batches-bin/data_batch_4.bin: {error}"):
        dataset.split("train")


def test_missing_files_are_named(tmp_path: Path) -> None:
    files = batches()
    del files[TRAIN[1]], files["test_batch.bin"]
    with pytest.raises(DataError, match=r"no file data_batch_2.bin, test_batch.bin; found data_batch_1.bin"):
        load(str(unpacked(tmp_path, files)))
