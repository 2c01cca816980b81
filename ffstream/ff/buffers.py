"""Memory that is used again from step to step.

A result in new memory costs several times what one in used memory costs: pages come one by one, and zeroed.
"""

import weakref
from collections import defaultdict

import torch
from torch import Tensor


class Buffers:
    """Gives memory by name. This one gives new memory each time: for predictions, which any thread may ask for."""

    def get(self, name: str, like: Tensor, rows: int, *shape: int) -> Tensor:
        """An uninitialised tensor (rows, *shape) of the type and on the device of `like`."""
        return torch.empty(rows, *shape, dtype=like.dtype, device=like.device)


class KeptBuffers(Buffers):
    """Gives the same memory for the same name: what was in it is lost. For one thread."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor, rows: int, *shape: int) -> Tensor:
        """The first `rows` rows of the buffer of that name, which grows when it must."""
        held = self._held.get(name)
        if held is None or len(held) < rows or held.shape[1:] != shape or held.dtype != like.dtype:
            held = self._held[name] = torch.empty(rows, *shape, dtype=like.dtype, device=like.device)
        return held[:rows]


class CopyPool:
    """Copies of one owner's tensors, by name. As many buffers are kept as copies were ever held at once."""

    def __init__(self) -> None:
        self._free: defaultdict[str, list[Tensor]] = defaultdict(list)

    def copy(self, name: str, source: Tensor) -> Tensor:
        """A copy of `source`; when nobody holds it any more, its memory serves the next one of that name.

        For one thread at a time; copies may be let go on any. Keep what this returns, not a view of it.
        """
        free = self._free[name]
        try:
            buffer = free.pop()
        except IndexError:
            buffer = torch.empty_like(source)
        copy = buffer.view_as(buffer).copy_(source)
        weakref.finalize(copy, free.append, buffer).atexit = False
        return copy
