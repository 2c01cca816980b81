"""Downloads one file from the first mirror that delivers it completely.

A file has its own name in the folder if and only if it is complete, its checksum is right and its bytes are on disk:
it is written under a temporary name, verified, fsynced and renamed.
"""

import hashlib
import secrets
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from ffstream.errors import DataError
from ffstream.util.durable import fsync

Progress = Callable[[str, int, int | None], None]
"""Called with (file name, bytes so far, bytes in total or None). With the next mirror, a file starts again at 0."""

FILE_MAX_BYTES = 32 << 20
READ_TIMEOUT_S = 20.0
FILE_TIMEOUT_S = 900.0

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """A file name and the checksums it may have, each as `sha256:<hex>` or `md5:<hex>`."""

    name: str
    checksums: tuple[str, ...]

    def matches(self, path: Path) -> bool:
        """Return whether the file at `path` has one of the checksums. Raises OSError when it cannot be read."""
        return any(_checksum(path, known.partition(":")[0]) == known for known in self.checksums)


class _MirrorFailed(Exception):
    """One mirror failed; the next one may succeed."""


def fetch(
    remote: RemoteFile,
    mirrors: Sequence[str],
    folder: Path,
    progress: Progress | None = None,
    *,
    max_bytes: int = FILE_MAX_BYTES,
    read_timeout_s: float = READ_TIMEOUT_S,
    file_timeout_s: float = FILE_TIMEOUT_S,
) -> Path:
    """Download `folder / remote.name` from the first of `mirrors` (base URLs) that has it, and return its path.

    `read_timeout_s` limits the wait for the next bytes, `file_timeout_s` the time for a whole file from one mirror.
    Raises DataError when every mirror fails, with the reason of each, or when the folder cannot be written.
    """
    failures = []
    for mirror in mirrors:
        url = f"{mirror.rstrip('/')}/{remote.name}"
        chunks = _receive(url, max_bytes, read_timeout_s, file_timeout_s)
        try:
            return _store(chunks, remote, folder, progress)
        except _MirrorFailed as failure:
            failures.append(f"{url}: {failure}")
        except OSError as error:
            raise DataError(
                f"{folder}: cannot be written: {error}", hint="set FFSTREAM_CACHE to a folder with free space"
            ) from error
    raise DataError(
        f"{remote.name}: download failed from every mirror ({'; '.join(failures)})",
        hint="give a folder with the four IDX files (--data DIR), or use the data set `embedded`",
    )


def _receive(
    url: str, max_bytes: int, read_timeout_s: float, file_timeout_s: float
) -> Iterator[tuple[bytes, int | None]]:
    """Yield chunks, each with the total length that the server announced. Raises _MirrorFailed and nothing else."""
    deadline = time.monotonic() + file_timeout_s
    try:
        with urllib.request.urlopen(url, timeout=read_timeout_s) as response:
            announced = response.headers["Content-Length"]
            total = None if announced is None else int(announced)
            if total is not None and total > max_bytes:
                raise _MirrorFailed(f"announces {total} bytes, more than the limit of {max_bytes}")
            done = 0
            # read1 returns what has arrived, so the deadline is checked even if bytes arrive one by one.
            while (total is None or done < total) and (chunk := response.read1(_CHUNK_BYTES)):
                done += len(chunk)
                if done > max_bytes:
                    raise _MirrorFailed(f"sends more than the limit of {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise _MirrorFailed(f"not finished after {file_timeout_s:g} s")
                yield chunk, total
            if total is not None and done < total:
                raise _MirrorFailed(f"ends after {done} of {total} bytes")
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorFailed(str(error) or type(error).__name__) from error


def _store(
    chunks: Iterator[tuple[bytes, int | None]], remote: RemoteFile, folder: Path, progress: Progress | None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # A unique name, because two processes may fill one cache at the same time.
    part = folder / f".{remote.name}.{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            for chunk, total in chunks:
                file.write(chunk)
                if progress:
                    progress(remote.name, file.tell(), total)
        fsync(part)
        if not remote.matches(part):
            raise _MirrorFailed("checksum differs")
        target = part.replace(folder / remote.name)
        fsync(folder)
        return target
    finally:
        part.unlink(missing_ok=True)


def _checksum(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"
