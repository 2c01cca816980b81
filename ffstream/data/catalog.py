"""Loads a data set by its name, from the cache or a folder, or from a path."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import platformdirs

from ffstream.data.collection import Collection
from ffstream.data.dataset import Dataset
from ffstream.data.download import RemoteFile, fetch
from ffstream.data.embedded import load_embedded
from ffstream.data.files import Progress
from ffstream.data.places import choose
from ffstream.data.sources import SOURCES, Source
from ffstream.errors import DataError

EMBEDDED = "embedded"


def load(
    name_or_path: str,
    data: Path | None = None,
    progress: Progress | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
) -> Dataset:
    """Return the data set of a name (`mnist`, `cifar-10`, `embedded`, …), or the one in a folder or an archive.

    Its splits are read when they are asked for, such as `load("mnist").split("validation")`. With `data`, a folder or
    an archive, it is searched there (see `ffstream.data.places`) and nothing is downloaded. Otherwise a name is read
    from the cache, which is filled from the mirrors. FFSTREAM_CACHE moves the cache (`$FFSTREAM_CACHE/<name>/`),
    FFSTREAM_MIRROR replaces the mirrors (`$FFSTREAM_MIRROR/<name>/<file>`).
    Raises DataError for an unknown name, missing or damaged files, files of another data set, a failed download, and
    for `data` where it would be ignored.
    """
    source = sources.get(name_or_path)
    if data is not None:
        return _load_from(name_or_path, data, progress, sources)
    if name_or_path == EMBEDDED:
        return load_embedded()
    if source is None:
        return _load_path(name_or_path, progress, sources)
    folder = cache_folder(source.folder or name_or_path)
    _fill(folder, source, progress)
    return choose(folder, name_or_path).dataset(name_or_path, progress)


def cache_folder(name: str) -> Path:
    """Return the folder in which the files of a downloaded data set are cached."""
    root = os.environ.get("FFSTREAM_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("ffstream")) / name


def _load_from(name: str, data: Path, progress: Progress | None, sources: Mapping[str, Source]) -> Dataset:
    if name == EMBEDDED:
        raise DataError(
            f"`{EMBEDDED}` is part of the package and is not read from a folder",
            hint=f"leave out --data {data}, or give the name of the data set in that folder",
        )
    if name not in sources:
        if Path(name).exists():
            raise DataError(f"{name} is a path itself, so --data {data} would be ignored", hint="give one of the two")
        raise _unknown(name, sources)
    collection = choose(data, name)
    dataset = collection.dataset(name, progress)
    dataset.notes += _doubts(dataset, collection, name, sources)
    return dataset


def _doubts(dataset: Dataset, collection: Collection, name: str, sources: Mapping[str, Source]) -> tuple[str, ...]:
    """What is odd about the first labels. Raises DataError if they are those of another data set."""
    expected = sources[name].first_labels
    if expected is None and collection.name == name:
        return ()  # QMNIST has the first labels of MNIST
    if expected is not None and all(_begin_with(dataset, expected)):
        return ()
    for other, source in sources.items():
        if other != name and source.first_labels and any(_begin_with(dataset, source.first_labels)):
            raise DataError(
                f"{dataset.folder}: the files are those of {other}, not of {name}",
                hint=f"use the name {other}, or give the folder that contains {name}",
            )
    return (f"the first labels in {dataset.folder} are not those of the published {name}",) if expected else ()


def _begin_with(dataset: Dataset, labels: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[bool, bool]:
    train, test = labels
    return (
        tuple(dataset.train.labels[: len(train)].tolist()) == train,
        tuple(dataset.test.labels[: len(test)].tolist()) == test,
    )


def _load_path(path: str, progress: Progress | None, sources: Mapping[str, Source]) -> Dataset:
    place = Path(path)
    if not place.exists():
        raise _unknown(path, sources)
    collection = choose(place)
    return collection.dataset(collection.name or place.resolve().name, progress)


def _unknown(name: str, sources: Mapping[str, Source]) -> DataError:
    known = [*sources, EMBEDDED]
    meant = [each for each in known if each.startswith(f"{name.lower()}-")] or get_close_matches(
        name.lower(), known, 2
    )
    hint = f"choose one of {', '.join(known)}, or a folder or archive with a data set"
    return DataError(
        f"{name!r}: no such data set, and no such folder or file",
        hint=f"did you mean {' or '.join(meant)}? Otherwise {hint}" if meant else hint,
    )


def _fill(folder: Path, source: Source, progress: Progress | None) -> None:
    mirror = os.environ.get("FFSTREAM_MIRROR")
    mirrors = (f"{mirror.rstrip('/')}/{folder.name}",) if mirror else source.mirrors
    for remote in source.files:
        if not _is_cached(folder, remote):
            fetch(remote, mirrors, folder, progress)


def _is_cached(folder: Path, remote: RemoteFile) -> bool:
    # Verified at each use: a file that was damaged on disk is downloaded again.
    try:
        return remote.matches(folder / remote.name)
    except OSError:
        return False
