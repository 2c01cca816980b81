"""The data sets that are known by name: where they are downloaded from, and where they are cached."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from ffstream.data import folder as folders
from ffstream.data.dataset import Dataset, load_folder, read_collection
from ffstream.data.download import Progress, RemoteFile, fetch
from ffstream.data.embedded import load_embedded
from ffstream.errors import DataError


@dataclass(frozen=True)
class Source:
    """The mirrors (base URLs, tried in order) and the four files of a data set.

    `first_labels`: the first labels of the two splits. They tell files of different data sets apart, whatever the
    files are called and however they are compressed.
    """

    mirrors: tuple[str, ...]
    files: tuple[RemoteFile, ...]
    first_labels: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def matches(self, dataset: Dataset) -> tuple[bool, bool]:
        """Return for each split whether its first labels are those of this source; True if they are not known."""
        train, test = self.first_labels
        return (
            tuple(dataset.train.labels[: len(train)].tolist()) == train,
            tuple(dataset.test.labels[: len(test)].tolist()) == test,
        )


# Two checksums each: the file as the mirrors publish it, and a copy of the same IDX content that was gzipped again.
MNIST = Source(
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    first_labels=((5, 0, 4, 1, 9, 2, 1, 3, 1, 4), (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)),
    files=(
        RemoteFile(
            "train-images-idx3-ubyte.gz",
            (
                "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "sha256:0b367032e93c5d0cea0925647cfdb18614af8ee15f83e6f2fc2ad904a6835971",
            ),
        ),
        RemoteFile(
            "train-labels-idx1-ubyte.gz",
            (
                "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "sha256:1787548bbe0bff1ec2ecdc0ef292b02df999e2d1a6002d27500982c652b17203",
            ),
        ),
        RemoteFile(
            "t10k-images-idx3-ubyte.gz",
            (
                "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "sha256:1a1a05eab793c14bb050b398624a11b0ffd1a2953baed553b1b9bd079e2a20be",
            ),
        ),
        RemoteFile(
            "t10k-labels-idx1-ubyte.gz",
            (
                "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "sha256:b91679a0acfe4ba0e50a2437a903084cba1f5f92592b016a25a7dfd00455798b",
            ),
        ),
    ),
)

# Its authors publish MD5 sums only.
FASHION_MNIST = Source(
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    first_labels=((9, 0, 0, 3, 0, 2, 7, 2, 5, 5), (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)),
    files=(
        RemoteFile("train-images-idx3-ubyte.gz", ("md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",)),
        RemoteFile("train-labels-idx1-ubyte.gz", ("md5:25c81989df183df01b3e8a0aad5dffbe",)),
        RemoteFile("t10k-images-idx3-ubyte.gz", ("md5:bef4ecab320f06d8554ea6380940ec79",)),
        RemoteFile("t10k-labels-idx1-ubyte.gz", ("md5:bb300cfdad3c16e7a12a480ee83cd310",)),
    ),
)

SOURCES: Mapping[str, Source] = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST}

# Read from a folder and never downloaded: their publishers offer them in large archives only.
ONLY_IN_FOLDERS = (
    *(f"emnist-{split}" for split in ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")),
    "kmnist",
    "qmnist",
)


def load(
    name_or_dir: str,
    data: Path | None = None,
    progress: Progress | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """Return the data set `mnist`, `fashion-mnist` or `embedded`, or the one in a folder of four IDX files.

    With `data`, files of that name are searched in and below this folder (see `ffstream.data.folder`) and nothing is
    downloaded. Otherwise `mnist` and `fashion-mnist` are read from the cache, which is filled from the mirrors.
    FFSTREAM_CACHE moves the cache (`$FFSTREAM_CACHE/<name>/`), FFSTREAM_MIRROR replaces the mirrors
    (`$FFSTREAM_MIRROR/<name>/<file>`).
    Raises DataError for an unknown name, missing or damaged files, files of another data set, a failed download, and
    for `data` where it would be ignored.
    """
    source = sources.get(name_or_dir)
    if data is not None:
        if name_or_dir == "embedded":
            raise DataError(
                "`embedded` is part of the package and is not read from a folder",
                hint=f"leave out --data {data}, or give the name of the data set in that folder",
            )
        if source is None and Path(name_or_dir).is_dir():
            raise DataError(
                f"{name_or_dir} is a folder itself, so --data {data} would be ignored", hint="give one of the two"
            )
        return _load_named(name_or_dir, data, sources)
    if name_or_dir == "embedded":
        return load_embedded()
    if source is None:
        return _load_dir(name_or_dir, sources)
    folder = cache_folder(name_or_dir)
    _fill(folder, name_or_dir, source, progress)
    return load_folder(folder, name_or_dir)


def cache_folder(name: str) -> Path:
    """Return the folder in which the files of a downloaded data set are cached."""
    root = os.environ.get("FFSTREAM_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("ffstream")) / name


def _load_named(name: str, data: Path, sources: Mapping[str, Source]) -> Dataset:
    collection = folders.choose(data, name)
    dataset = read_collection(collection, name)
    source = sources.get(name)
    if source is None and collection.name == name:
        return dataset  # QMNIST has the first labels of MNIST
    if source is not None and all(source.matches(dataset)):
        return dataset
    for other, its_source in sources.items():
        if other != name and any(its_source.matches(dataset)):
            raise DataError(
                f"{dataset.folder}: the files are those of {other}, not of {name}",
                hint=f"use the name {other}, or give the folder that contains {name}",
            )
    if source is None:
        return dataset
    note = f"the first labels in {dataset.folder} are not those of the published {name}"
    return replace(dataset, notes=(*dataset.notes, note))


def _load_dir(directory: str, sources: Mapping[str, Source]) -> Dataset:
    folder = Path(directory)
    if directory in ONLY_IN_FOLDERS and not folder.is_dir():
        raise DataError(f"{directory} cannot be downloaded", hint="give a folder with its IDX files: --data DIR")
    if not folder.is_dir():
        names = ", ".join([*sources, "embedded"])
        raise DataError(
            f"{directory!r}: no such data set and no such folder",
            hint=f"choose one of {names}, or a folder of four IDX files; "
            f"with --data, also one of {', '.join(ONLY_IN_FOLDERS)}",
        )
    collection = folders.choose(folder)
    return read_collection(collection, collection.name or folder.resolve().name)


def _fill(folder: Path, name: str, source: Source, progress: Progress | None) -> None:
    mirror = os.environ.get("FFSTREAM_MIRROR")
    mirrors = (f"{mirror.rstrip('/')}/{name}",) if mirror else source.mirrors
    for remote in source.files:
        if not _is_cached(folder, remote):
            fetch(remote, mirrors, folder, progress)


def _is_cached(folder: Path, remote: RemoteFile) -> bool:
    # Verified at each use: a file that was damaged on disk is downloaded again.
    try:
        return remote.matches(folder / remote.name)
    except OSError:
        return False
