"""How a checkpoint names what belongs to the replicas of a network.

layers.0.parameters, …              the first replica, or the only network
replica.1.layers.0.parameters, …    the second one, and so on
merger.layers.0.last, …             what the next merge of the replicas depends on (`ff/merging.py`)
"""

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Final, TypeVar

from torch import Tensor

from ffstream.ff.member import below

MERGER: Final = "merger"
_REPLICA: Final = "replica."

_Value = TypeVar("_Value")


def of_replica(number: int, values: Mapping[str, _Value]) -> dict[str, _Value]:
    """Tensors or other values of a replica, with the names that they have in a checkpoint."""
    return {f"{_REPLICA}{number}.{name}" if number else name: value for name, value in values.items()}


def is_of_first(name: str) -> bool:
    """Whether a name belongs to the first replica, or to none."""
    return not name.startswith(_REPLICA)


def further_replicas(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The prefix and the tensors of the second replica, the third, and so on."""
    for number in count(1):
        prefix = f"{_REPLICA}{number}"
        own = below(prefix, tensors)
        if not own:
            return
        yield prefix, own
