"""IDX files, the format in which MNIST is published.

    offset      bytes  content
    0           2      zero
    2           1      element type, one of `ELEMENT_TYPES`
    3           1      number of dimensions D
    4           4·D    the dimensions, big-endian unsigned 32-bit
    4 + 4·D     n·s    the elements, row-major and big-endian; n = product of the dimensions, s = bytes per element

A file is valid if and only if its content (gunzipped if it starts with 1f 8b) is such a header with 1 ≤ D ≤ 4,
followed by exactly n elements, and the header announces at most `max_bytes` of elements.
"""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ffstream.errors import DataError

MAX_BYTES = 1 << 30
MAX_DIMENSIONS = 4

ELEMENT_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_UNSIGNED_BYTE = 0x08
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20
_DOWNLOAD_AGAIN = "the file is damaged or not an IDX file: download it again"

IdxArray = npt.NDArray[np.integer[Any] | np.floating[Any]]


def read_idx(path: Path, *, max_bytes: int = MAX_BYTES) -> IdxArray:
    """Return the array in an IDX file, gzipped or not, in the machine's byte order. The file's name does not matter.

    Never allocates more than `max_bytes` for the content, whatever the header announces or the gzip stream expands
    to. Raises DataError for a file that cannot be read or is not valid.
    """
    try:
        with path.open("rb") as file:
            return parse_idx(file, str(path), max_bytes=max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise DataError(f"{path}: cannot be read: {error}", hint="check the path and its permissions") from error


def parse_idx(file: BinaryIO, where: str, *, max_bytes: int = MAX_BYTES) -> IdxArray:
    """Return the array in the content of an IDX file, as `read_idx` does. `where`: what errors call the file."""
    zipped = file.read(2) == _GZIP_MAGIC
    file.seek(0)
    try:
        return _read(cast(BinaryIO, gzip.GzipFile(fileobj=file)) if zipped else file, where, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{where}: gzip stream is damaged: {error}", hint=_DOWNLOAD_AGAIN) from error


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    """Write an array of 1 to 4 dimensions; gzipped if the name ends in `.gz`.

    The same array always gives the same bytes (the gzip header contains no time and no name).
    Raises ValueError for an array that the format cannot hold, OSError when writing fails.
    """
    if array.dtype != np.uint8 or not 1 <= array.ndim <= MAX_DIMENSIONS:
        raise ValueError(
            f"write_idx writes uint8 arrays of 1 to {MAX_DIMENSIONS} dimensions, not {array.dtype} {array.shape}"
        )
    content = struct.pack(f">HBB{array.ndim}I", 0, _UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(_gzip(content) if path.name.endswith(".gz") else content)


def _gzip(content: bytes) -> bytes:
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
        stream.write(content)
    return packed.getvalue()


def _read(stream: BinaryIO, where: str, max_bytes: int) -> IdxArray:
    dtype, shape = _read_header(stream, where)
    # Count zeros as ones: numpy rejects a shape like (0, 2**32), too.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize > max_bytes:
        raise DataError(
            f"{where}: header announces {shape}, more than the limit of {max_bytes} bytes", hint=_DOWNLOAD_AGAIN
        )
    size = math.prod(shape)
    content = _read_up_to(stream, size * dtype.itemsize)
    if len(content) < size * dtype.itemsize:
        raise DataError(
            f"{where}: ends after {len(content) // dtype.itemsize} of {size} elements", hint=_DOWNLOAD_AGAIN
        )
    # This read also reaches the end of a gzip stream, where its checksum is verified.
    if stream.read(1):
        raise DataError(f"{where}: more bytes after the {size} elements", hint=_DOWNLOAD_AGAIN)
    array: IdxArray = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(stream: BinaryIO, where: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{where}: does not start with an IDX magic number", hint=_DOWNLOAD_AGAIN)
    element_type, dimensions = magic[2], magic[3]
    if element_type not in ELEMENT_TYPES:
        known = ", ".join(f"0x{each:02x}" for each in ELEMENT_TYPES)
        raise DataError(
            f"{where}: unknown element type 0x{element_type:02x}, expected one of {known}", hint=_DOWNLOAD_AGAIN
        )
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise DataError(f"{where}: {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}", hint=_DOWNLOAD_AGAIN)
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{where}: ends within the header", hint=_DOWNLOAD_AGAIN)
    return np.dtype(ELEMENT_TYPES[element_type]), struct.unpack(f">{dimensions}I", sizes)


def _read_up_to(stream: BinaryIO, size: int) -> bytearray:
    """Read `size` bytes, or fewer at the end of the file. Allocates for what is read, not for what was announced."""
    content = bytearray()
    while len(content) < size:
        chunk = stream.read(min(_CHUNK_BYTES, size - len(content)))
        if not chunk:
            break
        content += chunk
    return content
