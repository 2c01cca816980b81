"""Downloads one file from the first mirror that delivers it completely.

A file has its own name in the folder if and only if it is complete, its checksum is right and its bytes are on disk:
it is written under a temporary name, verified, fsynced and renamed. After an interruption the temporary file stays,
and the next download continues it (HTTP Range), from any mirror: the checksum decides. If that fails, the file is
downloaded once more from its beginning.
"""

import fcntl
import hashlib
import os
import secrets
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.error import HTTPError

from ffstream.data.files import Progress
from ffstream.errors import DataError
from ffstream.util.durable import fsync

FILE_MAX_BYTES = 32 << 20
READ_TIMEOUT_S = 20.0
FILE_TIMEOUT_S = 3_600.0

_CHUNK_BYTES = 1 << 16
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True)
class RemoteFile:
    """A file name, the checksums it may have (each `sha256:<hex>` or `md5:<hex>`), and the largest accepted size."""

    name: str
    checksums: tuple[str, ...]
    max_bytes: int = FILE_MAX_BYTES

    def matches(self, path: Path) -> bool:
        """Return whether the file at `path` has one of the checksums. Raises OSError when it cannot be read."""
        return any(_checksum(path, known.partition(":")[0]) == known for known in self.checksums)


class Limits(NamedTuple):
    """`read_s` limits the wait for the next bytes, `file_s` the time for a whole file from one mirror."""

    read_s: float = READ_TIMEOUT_S
    file_s: float = FILE_TIMEOUT_S


LIMITS = Limits()


class _MirrorFailed(Exception):
    """One mirror failed; the next one may succeed."""


class _CannotContinue(_MirrorFailed):
    """What was received so far does not fit the file of this mirror."""


@dataclass(frozen=True)
class _Part:
    """The beginning of a file, under a temporary name."""

    path: Path
    file: BinaryIO

    @property
    def size(self) -> int:
        """Bytes received so far."""
        self.file.flush()
        return os.fstat(self.file.fileno()).st_size

    def clear(self) -> None:
        """Forgets what was received."""
        self.file.flush()
        self.file.truncate(0)

    def publish(self, remote: RemoteFile) -> Path:
        """Gives the file its name. Raises _CannotContinue if its checksum differs."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if not remote.matches(self.path):
            raise _CannotContinue("checksum differs")
        target = self.path.replace(self.path.parent / remote.name)
        fsync(target.parent)
        return target


def fetch(
    remote: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    progress: Progress | None = None,
    limits: Limits = LIMITS,
) -> Path:
    """Download `folder / remote.name` from the first of `mirrors` (base URLs) that has it, and return its path.

    Raises DataError when every mirror fails, with the reason of each, or when the folder cannot be written.
    """
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _open_part(folder, remote.name) as part:
            if part.size and remote.matches(part.path):
                return part.publish(remote)
            for mirror in mirrors:
                url = f"{mirror.rstrip('/')}/{remote.name}"
                try:
                    return _download(url, part, remote, progress, limits)
                except _MirrorFailed as failure:
                    failures.append(f"{url}: {failure}")
            received = part.size
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error}", hint="set FFSTREAM_CACHE to a folder with free space"
        ) from error
    again = f"run the command again to continue after {received:,} bytes; or " if received else ""
    raise DataError(
        f"{remote.name}: download failed from every mirror ({'; '.join(failures)})",
        hint=f"{again}give a folder that has it (--data DIR), or use the data set `embedded`",
    )


def _download(url: str, part: _Part, remote: RemoteFile, progress: Progress | None, limits: Limits) -> Path:
    """Complete the part and give it its name. Raises _MirrorFailed, and OSError when writing fails."""
    is_continued = part.size > 0
    try:
        _append(url, part, remote, progress, limits)
        return part.publish(remote)
    except _CannotContinue:
        part.clear()
        if not is_continued:
            raise
    return _download(url, part, remote, progress, limits)


def _append(url: str, part: _Part, remote: RemoteFile, progress: Progress | None, limits: Limits) -> None:
    for chunk, position, total in _receive(url, part.size, remote.max_bytes, limits):
        if position == 0:
            part.clear()
        part.file.write(chunk)  # opened for appending
        if progress:
            progress(f"downloading {remote.name}", position + len(chunk), total)


def _receive(url: str, offset: int, max_bytes: int, limits: Limits) -> Iterator[tuple[bytes, int, int | None]]:
    """Yield chunks from `offset` on, each with its position and the total length that the server announced.

    A server that does not know ranges sends the file from its beginning, at position 0. Raises _MirrorFailed and
    nothing else.
    """
    deadline = time.monotonic() + limits.file_s
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        with urllib.request.urlopen(request, timeout=limits.read_s) as response:
            position, total = _extent(response, offset)
            if total is not None and total > max_bytes:
                raise _MirrorFailed(f"announces {total} bytes, more than the limit of {max_bytes}")
            # read1 returns what has arrived, so the deadline is checked even if bytes arrive one by one.
            while (total is None or position < total) and (chunk := response.read1(_CHUNK_BYTES)):
                if position + len(chunk) > max_bytes:
                    raise _CannotContinue(f"sends more than the limit of {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise _MirrorFailed(f"not finished after {limits.file_s:g} s")
                yield chunk, position, total
                position += len(chunk)
            if total is not None and position < total:
                raise _MirrorFailed(f"ends after {position} of {total} bytes")
    except HTTPError as error:
        failure = _CannotContinue if error.code == _RANGE_NOT_SATISFIABLE else _MirrorFailed
        raise failure(str(error)) from error
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorFailed(str(error) or type(error).__name__) from error


def _extent(response: HTTPResponse, offset: int) -> tuple[int, int | None]:
    """Return the position of the first byte, and the length of the whole file if the server announced it."""
    announced = response.headers["Content-Length"]
    if response.status != 206:
        return 0, None if announced is None else int(announced)
    span, _, length = response.headers["Content-Range"].removeprefix("bytes ").partition("/")
    if int(span.partition("-")[0]) != offset:
        raise _CannotContinue(f"sends bytes {span} when asked for those from {offset} on")
    return offset, None if length == "*" else int(length)


@contextmanager
def _open_part(folder: Path, name: str) -> Iterator[_Part]:
    """Open the temporary file for appending, and remove it afterwards if it is empty.

    It has the same name each time, so that it is found again. While another process downloads the same file, a file
    of a unique name is used, and removed in any case.
    """
    shared = folder / f".{name}.part"
    with shared.open("ab") as file:
        if _lock(file, shared):
            part = _Part(shared, file)
            try:
                yield part
            finally:
                if not part.size:
                    shared.unlink(missing_ok=True)
            return
    own = folder / f".{name}.{secrets.token_hex(8)}.part"
    try:
        with own.open("xb") as file:
            yield _Part(own, file)
    finally:
        own.unlink(missing_ok=True)


def _lock(file: BinaryIO, path: Path) -> bool:
    """Whether this process alone has the file, and it still has that name: the process that had it may be done."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"
