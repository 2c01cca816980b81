"""Copies of tensors into memory that is used again.

A copy into new memory costs five times what one into used memory costs: pages come one by one, and zeroed.
"""

import weakref
from collections import defaultdict

from torch import Tensor, empty_like


class Copies:
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
            buffer = empty_like(source)
        copy = buffer.view_as(buffer).copy_(source)
        weakref.finalize(copy, free.append, buffer).atexit = False
        return copy
