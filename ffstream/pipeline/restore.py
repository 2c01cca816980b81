"""A checkpoint's content, held against what the network needs, before anything of it is used.

Its checksums say that the files are those that were written, not that they hold this network's state. A state that
lacks a tensor would be a model of which a part begins anew, and nobody would notice.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ffstream.errors import CheckpointIncompatible
from ffstream.ff.input_layer import InputLayer
from ffstream.ff.network import LaterLayer

_POSITIONS = ("step", "version", "phase_position")
_LARGEST = 2**62
_COUNTS = ("samples", "seen")  # of what was learned: no step has a size if one of them is below zero or no number


def check_layers(seq: int, tensors: Mapping[str, Tensor], layers: Sequence[InputLayer | LaterLayer]) -> None:
    """Raises CheckpointIncompatible unless the tensors named `layers.…` are just the state of these layers."""
    expected = {f"layers.{layer.index}.{name}": value for layer in layers for name, value in layer.state().items()}
    found = {name for name in tensors if name.startswith("layers.")}
    odd = sorted(found ^ expected.keys())
    if odd:
        raise _misfit(seq, f"{odd[0]!r} is {'not wanted' if odd[0] in found else 'missing'}")
    for name, like in expected.items():
        _check_like(seq, name, tensors[name], like.shape, like.dtype)
        if name.rpartition(".")[2] in _COUNTS and not 0 <= float(tensors[name]) < math.inf:
            raise _misfit(seq, f"{name!r} is {float(tensors[name])}")


def check_positions(seq: int, progress: Mapping[str, Any]) -> None:
    """Raises CheckpointIncompatible unless all that says where the stream stands is there and a count."""
    for name in _POSITIONS:
        if not _is_count(progress.get(name)):
            raise _misfit(seq, f"{name!r} is no count")


def check_memory(
    seq: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], *, capacity: int, inputs: int, labels: int
) -> None:
    """Raises CheckpointIncompatible unless the remembered samples are as many as they were, and of this network.

    A state without any is one of a learner that remembered nothing.
    """
    added = progress.get("memory.added")
    present = [name for name in ("memory.images", "memory.labels") if name in tensors]
    if added is None and not present:
        return
    if not _is_count(added) or len(present) != 2:
        raise _misfit(seq, "the memory is not whole")
    size = min(added, capacity)
    _check_like(seq, "memory.images", tensors["memory.images"], (size, inputs), torch.uint8)
    _check_like(seq, "memory.labels", tensors["memory.labels"], (size,), torch.int64)
    remembered = tensors["memory.labels"]
    if size and not 0 <= int(remembered.min()) <= int(remembered.max()) < labels:
        raise _misfit(seq, "a remembered label is none")


def _check_like(seq: int, name: str, value: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    if tuple(value.shape) != tuple(shape) or value.dtype != dtype:
        raise _misfit(seq, f"{name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {tuple(shape)}")


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LARGEST


def _misfit(seq: int, what: str) -> CheckpointIncompatible:
    return CheckpointIncompatible(
        f"checkpoint {seq} does not hold this network's state: {what}",
        hint="move its folder away: then the one before is used; or use another --state folder",
    )
