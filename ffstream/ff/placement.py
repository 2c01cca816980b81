"""Where a network computes."""

from typing import NamedTuple

import torch


class Placement(NamedTuple):
    """Where a layer computes, and in which dtype it computes matrix products.

    `buffers` is how many activities of a layer may be in use at once: those in the queue behind it, one that the next
    layer reads and one that is being written. A layer that the readout reads has more, for the layers between them.
    0 allocates new memory each time. CUDA ignores it: its caching allocator is faster than such a ring of buffers.
    """

    device: torch.device = torch.device("cpu")
    product_dtype: torch.dtype = torch.float32
    buffers: int = 1
