"""Finds the data set in a folder or an archive, whatever its format."""

from pathlib import Path

from ffstream.data.collection import Collection
from ffstream.data.files import Files, files_in, is_archive
from ffstream.data.formats import FORMATS
from ffstream.errors import DataError

_LISTED_MAX = 6  # file names in an error message
_ARCHIVE_MAX_BYTES = 2 << 30  # of one that is found in a folder; one that is named may be larger
_UNREADABLE = (".7z", ".rar", ".tar.bz2", ".tar.xz")


def choose(place: Path, name: str | None = None) -> Collection:
    """Return the complete collection with that name in a folder or an archive, or without a name the only one.

    If nothing fits in or below a folder, the archives that are directly in it are searched, too. A collection without
    a name may be any data set that its format allows. Raises DataError that lists what was found instead.
    """
    every = _collections(files_in(place))
    if fitting := _fitting(every, name):
        return _nearest(place, fitting)
    damaged: list[DataError] = []
    for archive in _archives(place):
        try:
            every += _collections(files_in(archive))
        except DataError as error:
            damaged.append(error)
    if fitting := _fitting(every, name):
        return _nearest(place, fitting)
    raise damaged[0] if damaged else _not_found(place, every, name)


def _collections(files: Files) -> list[Collection]:
    found = [each for kind in FORMATS for each in kind.find(files)]
    return sorted(found, key=lambda each: (each.depth, each.location, each.name or ""))


def _archives(place: Path) -> list[Path]:
    paths = sorted(place.iterdir()) if place.is_dir() else []
    return [
        path for path in paths if is_archive(path) and path.is_file() and path.stat().st_size <= _ARCHIVE_MAX_BYTES
    ]


def _fitting(every: list[Collection], name: str | None) -> list[Collection]:
    complete = [each for each in every if not each.missing]
    if name is None:
        return complete
    named = [each for each in complete if each.name == name]
    return named or [each for each in complete if each.name is None and each.may_be(name)]


def _nearest(place: Path, fitting: list[Collection]) -> Collection:
    nearest = [each for each in fitting if each.depth == fitting[0].depth]
    if len(nearest) == 1:
        return nearest[0]
    names = sorted({each.name or "" for each in nearest})
    if "" in names or len(names) < len(nearest):
        found = ", ".join(sorted(each.location for each in nearest))
        raise DataError(f"{place}: contains several data sets: {found}", hint="give the path of one of them")
    raise DataError(
        f"{place}: contains several data sets: {', '.join(names)}", hint=f"choose one: {names[0]} --data {place}"
    )


def _not_found(place: Path, every: list[Collection], name: str | None) -> DataError:
    partial = [each for each in every if each.missing and (not name or each.name in (None, name))]
    if partial:
        first = partial[0]
        return DataError(
            f"{first.location}: no file {', '.join(first.missing)}; found {', '.join(first.found)}",
            hint=first.expected,
        )
    complete = [f"{each.name or 'an unnamed one'} in {each.location}" for each in every if not each.missing]
    if complete:
        return DataError(
            f"{place}: no files of {name}; found {', '.join(complete)}",
            hint="use one of these names, or give a path instead of a name",
        )
    return DataError(f"{place}: no {name or 'data set'} there; {_listing(place)}", hint=_hint(place))


def _listing(place: Path) -> str:
    names = _names(place)
    if not names:
        return "it is empty"
    more = f" and {len(names) - _LISTED_MAX} more" if len(names) > _LISTED_MAX else ""
    return f"found {', '.join(names[:_LISTED_MAX])}{more}"


def _hint(place: Path) -> str:
    expected = "; or ".join(kind.expected for kind in FORMATS)
    archives = [name for name in _names(place) if name.lower().endswith(_UNREADABLE)]
    return f"unpack {archives[0]} first; {expected}" if archives else expected


def _names(place: Path) -> list[str]:
    return sorted(
        {path.name for path in place.iterdir()}
        if place.is_dir()
        else {member.path.partition("/")[0] for member in files_in(place).members}
    )
