"""Tensors to a safetensors file, from their memory to disk and checksum in one pass.

The file is the length of the header (8 bytes, little-endian), the header (JSON: dtype, shape and place of each
tensor, padded with spaces to a multiple of 8) and the tensors one after another, those of the widest numbers first.

The safetensors library reads it. It could write it as well, but through the page cache, whose pages cost more of the
processor's time than everything else, and the checksum would read them once more: time that learning would miss.
"""

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
import xxhash
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BUFFER_BYTES = 4 << 20
_BLOCK_BYTES = 4096  # what a disk takes past the page cache: whole blocks from whole pages
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_DIRECT = getattr(os, "O_DIRECT", 0)


class Saved(NamedTuple):
    """What vouches for the file."""

    bytes: int
    xxh3_128: str


def save(tensors: Mapping[str, Tensor], path: Path, wrote: Callable[[int], object]) -> Saved:
    """Writes a new file; the caller makes it durable. Calls `wrote` after each few million bytes. Raises OSError."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    with _File(path, wrote) as file:
        for memory in (_header(ordered), *map(_bytes_of, ordered.values())):
            file.append(memory)
    return Saved(file.size, file.checksum.hexdigest())


def _header(tensors: Mapping[str, Tensor]) -> memoryview:
    header, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _File:
    """A new file that is written from its beginning to its end, past the page cache where the file system can."""

    def __init__(self, path: Path, wrote: Callable[[int], object]) -> None:
        self._wrote = wrote
        self.size = 0
        self.checksum = xxhash.xxh3_128()
        self._held = 0
        try:
            self._descriptor = os.open(path, _NEW | _DIRECT, 0o644)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            path.unlink(missing_ok=True)  # some file systems refuse only when the file is there
            self._descriptor = os.open(path, _NEW, 0o644)
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    def __enter__(self) -> Self:
        return self

    def append(self, memory: memoryview) -> None:
        """Adds bytes."""
        while memory:
            taken = min(len(memory), _BUFFER_BYTES - self._held)
            self._buffer[self._held : self._held + taken] = memory[:taken]
            self._held += taken
            memory = memory[taken:]
            if self._held == _BUFFER_BYTES:
                self._flush()

    def _flush(self) -> None:
        self.checksum.update(self._buffer[: self._held])
        self.size += self._held
        try:
            self._put(self._buffer[: self._held + -self._held % _BLOCK_BYTES])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # Other blocks than we think, or a quota that ends inside one: through the page cache, then.
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, 0)
            os.lseek(self._descriptor, self.size - self._held, os.SEEK_SET)  # a part may have been written
            self._put(self._buffer[: self._held])
        self._wrote(self._held)
        self._held = 0

    def _put(self, rest: memoryview) -> None:
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._flush()
                os.ftruncate(self._descriptor, self.size)
        finally:
            os.close(self._descriptor)
