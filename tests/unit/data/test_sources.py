"""Each data set that is known by name: downloaded from a server on loopback, in the format of the published files."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ffstream.data import load
from ffstream.data.sources import SOURCES, Source
from ffstream.errors import DataError

N = 10
EMNIST = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")
CODES = {np.dtype(np.uint8): 0x08, np.dtype(np.int32): 0x0C}


def idx_gz(array: npt.NDArray[Any]) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, CODES[array.dtype], array.ndim, *array.shape)
    return gzip.compress(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def images(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (N, 28, 28), np.uint8)


def labels(first: int = 0) -> npt.NDArray[np.uint8]:
    return (np.arange(N) % 10 + first).astype(np.uint8)


def four_files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte.gz": idx_gz(images(0)),
        "train-labels-idx1-ubyte.gz": idx_gz(labels()),
        "t10k-images-idx3-ubyte.gz": idx_gz(images(1)),
        "t10k-labels-idx1-ubyte.gz": idx_gz(labels()),
    }


def qmnist() -> dict[str, bytes]:
    columns = np.zeros((N, 8), np.int32)
    columns[:, 0], columns[:, 1:] = labels(), np.arange(1000, 1007)
    return {
        "qmnist-train-images-idx3-ubyte.gz": idx_gz(images(0)),
        "qmnist-train-labels-idx2-int.gz": idx_gz(columns),
        "qmnist-test-images-idx3-ubyte.gz": idx_gz(images(1)),
        "qmnist-test-labels-idx2-int.gz": idx_gz(columns),
    }


def emnist() -> dict[str, bytes]:
    """One zip: `gzip/emnist-SPLIT-train-images-idx3-ubyte.gz` and so on, with each image transposed."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for split in EMNIST:
            for seed, part in enumerate(("train", "test")):
                name = f"gzip/emnist-{split}-{part}"
                archive.writestr(f"{name}-images-idx3-ubyte.gz", idx_gz(images(seed).swapaxes(1, 2)))
                archive.writestr(f"{name}-labels-idx1-ubyte.gz", idx_gz(labels(split == "letters")))
            archive.writestr(f"gzip/emnist-{split}-mapping.txt", "0 48\n")
    return {"gzip.zip": out.getvalue()}


def cifar10() -> dict[str, bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for seed, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
            pixels = np.random.default_rng(seed).integers(0, 256, (2, 3072), np.uint8)
            content = np.concatenate([np.array([[seed], [9]], np.uint8), pixels], 1).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return {"cifar-10-binary.tar.gz": out.getvalue()}


PUBLISHED = {"qmnist": qmnist, "cifar-10": cifar10}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FFSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def served(mirror: Any, monkeypatch: pytest.MonkeyPatch, name: str, files: Mapping[str, bytes]) -> dict[str, Source]:
    """The catalog with the checksums of small files, which the mirror has."""
    source = SOURCES[name]
    assert {remote.name for remote in source.files} == set(files), "the published names"
    monkeypatch.setenv("FFSTREAM_MIRROR", mirror.url)
    for file, content in files.items():
        mirror.serve(f"/{source.folder or name}/{file}", content)
    known = [
        replace(remote, checksums=(f"sha256:{hashlib.sha256(files[remote.name]).hexdigest()}",))
        for remote in source.files
    ]
    return {**SOURCES, name: replace(source, files=tuple(known))}


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "qmnist"])
def test_digits_garments_and_characters_are_downloaded(
    name: str, mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = served(mirror, monkeypatch, name, PUBLISHED.get(name, four_files)())
    dataset = load(name, sources=sources)
    assert dataset.name == name
    for split, seed in ((dataset.train, 0), (dataset.test, 1)):
        assert np.array_equal(split.images, images(seed))
        assert np.array_equal(split.labels, labels())
    assert len(mirror.requests) == 4


def test_one_download_of_emnist_serves_all_its_splits(mirror: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = emnist()
    for split in EMNIST:
        name = f"emnist-{split}"
        dataset = load(name, sources=served(mirror, monkeypatch, name, files))
        assert dataset.name == name
        assert np.array_equal(dataset.train.images, images(0)), "transposed back"
        assert np.array_equal(dataset.test.images, images(1))
        assert np.array_equal(dataset.train.labels, labels(split == "letters")), "letters are numbered from 1"
        assert "transposed back" in dataset.notes[0]
    assert mirror.requests == ["/emnist/gzip.zip"]


def test_cifar10_is_downloaded_and_its_archive_is_not_unpacked(
    mirror: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    dataset = load("cifar-10", sources=served(mirror, monkeypatch, "cifar-10", cifar10()))
    assert dataset.train.images.shape == (10, 32, 32, 3)
    assert dataset.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert dataset.test.labels.tolist() == [5, 9]
    assert [path.name for path in (cache / "cifar-10").iterdir()] == ["cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("name", SOURCES)
def test_other_files_than_the_published_ones_are_rejected(
    name: str, mirror: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SOURCES[name]
    monkeypatch.setenv("FFSTREAM_MIRROR", mirror.url)
    for remote in source.files:
        mirror.serve(f"/{source.folder or name}/{remote.name}", b"other")
    with pytest.raises(DataError, match="checksum differs") as caught:
        load(name)
    assert "--data" in caught.value.hint
