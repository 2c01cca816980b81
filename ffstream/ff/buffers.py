"""Memory that is reused from step to step.

Writing into fresh memory costs several times as much as writing into memory that was used before: the operating
system maps the pages one by one and clears them first.
"""

import weakref
from collections import defaultdict

import torch
from torch import Tensor


class Buffers:
    """Allocates a new tensor for every call. Safe from several threads at once, so predictions use it."""

    def get(self, name: str, like: Tensor, rows: int, *shape: int) -> Tensor:
        """An uninitialised tensor (rows, *shape) with the dtype and the device of `like`."""
        return torch.empty(rows, *shape, dtype=like.dtype, device=like.device)


class ReusedBuffers(Buffers):
    """Returns the same memory whenever the same name is requested, so earlier contents are lost. For one thread."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor, rows: int, *shape: int) -> Tensor:
        """The first `rows` rows of the buffer with that name. The buffer grows when it has fewer rows."""
        held = self._held.get(name)
        if held is None or held.shape[0] < rows or held.shape[1:] != shape or held.dtype != like.dtype:
            held = self._held[name] = torch.empty(rows, *shape, dtype=like.dtype, device=like.device)
        return held[:rows]


class BufferPool:
    """Copies tensors, by name, into memory that returns to the pool when a copy is garbage-collected.

    The pool keeps as many buffers of a name as there were copies in use at the same time.
    """

    def __init__(self) -> None:
        self._free: defaultdict[str, list[Tensor]] = defaultdict(list)

    def copy(self, name: str, source: Tensor) -> Tensor:
        """A copy of `source`. Its memory is reused once the returned tensor is gone, so keep the tensor itself: a
        view of it does not count.

        Call this from one thread at a time. The copies may be released on any thread.
        """
        free = self._free[name]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = torch.empty_like(source)
        copy = buffer.view_as(buffer).copy_(source)
        weakref.finalize(copy, free.append, buffer).atexit = False
        return copy
