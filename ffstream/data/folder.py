"""Finds the IDX files of data sets in and below a folder, in the places where people and libraries usually put them.

A file is recognised if and only if its name, in upper or lower case, is

    [NAME-](train|t10k|test)(-|.)(images|labels)(-|.)idxN(-|.)TYPE[.gz]

and it is at most four folders deep. Files in one folder and with one NAME belong together. A folder that itself has
such a name is ignored as a level, because some archives unpack each file into a folder of its own. A collection
without a NAME gets its name from the folders above it (torchvision's `FashionMNIST/raw`), if one of them has the
name of a known data set.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ffstream.errors import DataError

PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
HINT = (
    "a data set's folder contains train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte "
    "and t10k-labels-idx1-ubyte, each gzipped (.gz) or not"
)

_MAX_DEPTH = 4
_MAX_FILES = 20_000
_LISTED_MAX = 6  # file names in an error message
_FILE = re.compile(
    r"(?:(?P<name>.+?)[-_.])?(?P<split>train|t10k|test)(?P<separator>[-.])(?P<what>images|labels)"
    r"[-.]idx(?P<dimensions>\d)[-.][a-z0-9]+(?P<gz>\.gz)?",
    re.IGNORECASE,
)
_BY_FOLDER = {"mnist": "mnist", "fashionmnist": "fashion-mnist", "fashion": "fashion-mnist", "kmnist": "kmnist"}
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")


@dataclass
class Collection:
    """Files that belong together. `files` maps each of `PARTS` that was found to its path."""

    folder: Path
    name: str | None
    depth: int
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        """The parts that were not found."""
        return [part for part in PARTS if part not in self.files]


def collections(folder: Path) -> list[Collection]:
    """Return the collections in and below a folder, the least deep first."""
    found: dict[tuple[Path, str], list[tuple[tuple[bool, ...], str, Path]]] = {}
    for path in _files(folder):
        match = _FILE.fullmatch(path.name)
        if match is None:
            continue
        is_t10k = match["split"].lower() == "t10k"
        part = f"{'train' if match['split'].lower() == 'train' else 't10k'}-{match['what'].lower()}"
        name = (match["name"] or "").lower().replace("_", "-")
        # If a file exists in several forms, the first one in this order is used.
        order = (not is_t10k, match["separator"] == ".", bool(match["gz"]))
        found.setdefault((_folder_of(path), name), []).append((order, part, path))
    result = []
    for (parent, name), files in found.items():
        relative = parent.relative_to(folder)
        collection = Collection(parent, name or _name_of(folder, relative), len(relative.parts))
        for _, part, path in sorted(files):
            collection.files.setdefault(part, path)
        result.append(collection)
    return sorted(result, key=lambda each: (each.depth, str(each.folder), each.name or ""))


def choose(folder: Path, name: str | None = None) -> Collection:
    """Return the complete collection with that name in or below a folder, or without a name the only one.

    A collection without a name may be any data set whose files have no NAME. Raises DataError that lists what was
    found instead.
    """
    every = collections(folder)
    complete = [each for each in every if not each.missing]
    fitting = [each for each in complete if each.name == name] if name else complete
    if not fitting and name in _BY_FOLDER.values():  # the other data sets have a NAME in their files
        fitting = [each for each in complete if each.name is None]
    nearest = [each for each in fitting if each.depth == fitting[0].depth]
    if len(nearest) == 1:
        return nearest[0]
    if nearest:
        names = sorted({each.name or str(each.folder) for each in nearest})
        raise DataError(
            f"{folder}: contains several data sets: {', '.join(names)}",
            hint=f"choose one: {names[0]} --data {folder}" if nearest[0].name else "give the folder of one of them",
        )
    raise _not_found(folder, every, name)


def _not_found(folder: Path, every: list[Collection], name: str | None) -> DataError:
    partial = [each for each in every if each.missing and (not name or each.name in (None, name))]
    if partial:
        incomplete, missing = partial[0], partial[0].missing
        files = [f"{part}-idx{3 if part.endswith('images') else 1}-ubyte[.gz]" for part in missing]
        found = ", ".join(sorted(path.name for path in incomplete.files.values()))
        return DataError(f"{incomplete.folder}: no file {', '.join(files)}; found {found}", hint=HINT)
    complete = [f"{each.name or 'an unnamed one'} in {each.folder}" for each in every if not each.missing]
    if complete:
        return DataError(
            f"{folder}: no files of {name}; found {', '.join(complete)}",
            hint="use one of these names, or give a folder instead of a name",
        )
    prefix = f"{name}-" if name and name not in _BY_FOLDER.values() else ""
    return DataError(f"{folder}: no file {prefix}{PARTS[0]}-idx3-ubyte[.gz]; {_listing(folder)}", hint=_hint(folder))


def _listing(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder"
    names = _names(folder)
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - _LISTED_MAX} more" if len(names) > _LISTED_MAX else ""
    return f"found {', '.join(names[:_LISTED_MAX])}{more}"


def _hint(folder: Path) -> str:
    archives = [name for name in _names(folder) if name.lower().endswith(_ARCHIVES)]
    return f"unpack {archives[0]} first; {HINT}" if archives else HINT


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, not deeper than `_MAX_DEPTH` and not more than `_MAX_FILES`."""

    def walk() -> Iterator[Path]:
        for root, folders, files in os.walk(folder):
            here = Path(root)
            if len(here.relative_to(folder).parts) >= _MAX_DEPTH:
                folders.clear()
            folders[:] = sorted(each for each in folders if not each.startswith("."))
            yield from (here / each for each in sorted(files))

    return islice(walk(), _MAX_FILES)


def _folder_of(path: Path) -> Path:
    """The folder of a file, without one that was unpacked for this file alone."""
    return path.parent.parent if _FILE.fullmatch(path.parent.name) else path.parent


def _name_of(folder: Path, relative: Path) -> str | None:
    for part in (*reversed(relative.parts), folder.resolve().name):
        name = _BY_FOLDER.get(re.sub(r"[-_. ]", "", part.lower()))
        if name:
            return name
    return None
