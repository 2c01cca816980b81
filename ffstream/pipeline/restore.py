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
from ffstream.ff.member import Member, joined

_POSITIONS = ("step", "version", "phase_position")
_LARGEST = 2**62
_COUNTS = ("samples", "seen")  # of what was learned: no step has a size if one of them is below zero or no number


def check_network(seq: int, tensors: Mapping[str, Tensor], members: Mapping[str, Member]) -> None:
    """Raises CheckpointIncompatible unless the tensors that are not the replay buffer's are these members' state."""
    expected = joined((name, member.state_dict()) for name, member in members.items())
    found = {name for name in tensors if not name.startswith("replay.")}
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


def check_replay(
    seq: int, tensors: Mapping[str, Tensor], progress: Mapping[str, Any], *, capacity: int, inputs: int, labels: int
) -> None:
    """Raises CheckpointIncompatible unless the replay buffer is as full as it was, with samples of this network.

    A state without one is of a run that replayed nothing.
    """
    added = progress.get("replay.added")
    present = [name for name in ("replay.images", "replay.labels") if name in tensors]
    if added is None and not present:
        return
    if not _is_count(added) or len(present) != 2:
        raise _misfit(seq, "the replay buffer is incomplete")
    size = min(added, capacity)
    _check_like(seq, "replay.images", tensors["replay.images"], (size, inputs), torch.uint8)
    _check_like(seq, "replay.labels", tensors["replay.labels"], (size,), torch.int64)
    kept = tensors["replay.labels"]
    if size and not 0 <= int(kept.min()) <= int(kept.max()) < labels:
        raise _misfit(seq, f"the replay buffer holds a label beyond 0 to {labels - 1}")


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
