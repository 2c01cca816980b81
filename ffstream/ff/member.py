"""The members of a network, which are its input, its layers and its readout, and the names of their tensors.

                   input                     layer 0
weights            input.mean                layers.0.weight, layers.0.bias, …      used by predictions
state              input.mean, input.seen    layers.0.parameters, layers.0.ema,     saved in checkpoints
                                             layers.0.drift.sum, …

A decoder has tensors of the same names below those of its layer (`layers.0.decoder.weight`,
`layers.0.decoder.parameters`, …), and so has the readout (`readout.weight`, `readout.parameters`, …).
"""

from collections.abc import Iterable, Mapping
from typing import Final, Protocol, TypeVar

from torch import Tensor

_Value = TypeVar("_Value")

INPUT: Final = "input"
READOUT: Final = "readout"
DRIFT: Final = "drift"
FAST_WEIGHTS: Final = "fast_weights"
HARDWARE: Final = "hardware"
DECODER: Final = "decoder"


class Member(Protocol):
    """The input of a network, one of its layers, or its readout."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that predict: the EMA weights."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over from weights that `weights` returned. Everything else is as in a new network."""
        ...


def layer_name(index: int) -> str:
    """The prefix of the names of that layer's tensors."""
    return f"layers.{index}"


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clones, by name."""
    return {name: value.clone() for name, value in tensors.items()}


def joined(parts: Iterable[tuple[str, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The tensors of all members, named `member.tensor`."""
    return {f"{prefix}.{name}": value for prefix, tensors in parts for name, value in tensors.items()}


def below(prefix: str, tensors: Mapping[str, _Value]) -> dict[str, _Value]:
    """The tensors, or other values, whose names begin with `prefix.`, without it. The reverse of `joined`."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
