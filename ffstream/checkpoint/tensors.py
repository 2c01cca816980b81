"""Writes tensors to a safetensors file, and computes its checksum in the same pass.

The file is the length of the header (8 bytes, little-endian), the header (JSON: dtype, shape and offsets of each
tensor, and text metadata; padded with spaces to a multiple of 8) and the tensors, those of the widest dtype first.

The safetensors library reads these files. It could write them too, but only through the page cache, which costs more
CPU time than everything else, and the checksum would need a second pass. Learning would notice both.
"""

import errno
import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import xxhash
from torch import Tensor

DTYPE_NAMES = {
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
_BLOCK_BYTES = 4096  # writes that bypass the page cache must be multiples of this
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_DIRECT = getattr(os, "O_DIRECT", 0)


class Saved(NamedTuple):
    """The size and the checksum of a file that was written."""

    bytes: int
    xxh3_128: str


def save(
    tensors: Mapping[str, Tensor],
    path: Path,
    wrote: Callable[[int], object] = lambda size: None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Saved:
    """Writes a new file. The caller makes it durable. Calls `wrote` after every few million bytes. Raises OSError."""
    with _File(path, wrote) as file:
        for memory in pieces(tensors, metadata=metadata):
            file.append(memory)
    return Saved(file.size, file.checksum.hexdigest())


def pieces(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> Iterator[memoryview]:
    """The bytes of a file, in order: the header, then each tensor. A contiguous tensor on the CPU is not copied."""
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    yield _header(ordered, metadata)
    yield from map(bytes_of, ordered.values())


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> memoryview:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


class _Bytes(np.ndarray[Any, np.dtype[np.uint8]]):
    """Holds the tensor itself, because memory of a `BufferPool` is reused once that is gone."""

    tensor: Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as they are in a file. The tensor lives as long as they do."""
    held = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().view(_Bytes)
    held.tensor = tensor
    return held.data


class _File:
    """A new file that is written sequentially, bypassing the page cache if the file system supports that."""

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
            path.unlink(missing_ok=True)  # some file systems refuse only after they created the file
            self._descriptor = os.open(path, _NEW, 0o644)
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))

    def __enter__(self) -> Self:
        return self

    def append(self, memory: memoryview) -> None:
        """Writes these bytes at the end."""
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
            # The disk has other blocks, or a quota ends inside a block. Use the page cache from here on.
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
