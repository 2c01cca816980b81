"""The members of a network that have weights and state, and the names of their tensors.

input.mean                 layers.0.weight                   what predicts
input.mean, input.seen     layers.0.parameters, …            what a checkpoint holds
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol

from torch import Tensor

INPUT: Final = "input"


class Member(Protocol):
    """A part of a network with state: the input, or a layer."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of what predicts."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all that later updates depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state."""
        ...


def layer_name(index: int) -> str:
    """What the names of that layer's tensors begin with."""
    return f"layers.{index}"


def joined(parts: Iterable[tuple[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The tensors of all members, each with its member's name before its own."""
    return {f"{prefix}.{name}": value for prefix, tensors in parts for name, value in tensors.items()}


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors that `joined` gave that prefix, under their own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
