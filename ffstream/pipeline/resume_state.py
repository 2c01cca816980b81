"""Where a training run begins, and whether that state fits the network.

The checksums of a checkpoint say that its files are those that were written, not that they hold this network's
state. Everything is checked before any of it is used: with a missing tensor, a part of the network would start from
its random initialisation, and nobody would notice.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeGuard

import torch
from torch import Tensor

from ffstream.checkpoint.replicas import MERGER, further_replicas, is_of_first
from ffstream.errors import CheckpointIncompatible
from ffstream.ff.member import Member, below, joined
from ffstream.ff.merging import averaged
from ffstream.ff.network import Network
from ffstream.pipeline.members import StageMembers
from ffstream.util.labels import UNLABELLED

_POSITIONS = ("step", "version", "phase_position")
_LATER_POSITIONS = ("slept",)  # absent from earlier checkpoints, where they mean 0
_LARGEST = 2**62
# Numbers of samples or errors, which step sizes and decisions depend on.
_COUNTS = ("samples", "seen", "sum", "usual", "since_low", "since_change", "restarts")


class ResumeState(NamedTuple):
    """Nothing learned, or what a checkpoint holds: it has learned the samples up to `seq`.

    Within one process, versions of snapshots only increase; after a crash they may repeat.
    """

    seq: int = 0
    tensors: Mapping[str, Tensor] = {}
    progress: Mapping[str, Any] = {}
    version_at_least: int = 0

    @classmethod
    def of_network(cls, network: Network) -> Self:
        """The state of a network that has learned nothing from the stream."""
        return cls(0, network.state_dict(), dict.fromkeys((*_POSITIONS, *_LATER_POSITIONS), 0))

    @property
    def version(self) -> int:
        """Version of the snapshot with these weights."""
        saved: int = self.progress.get("version", 0)
        return max(self.version_at_least, saved)

    @property
    def is_fresh(self) -> bool:
        """Whether nothing is learned yet."""
        return not (self.seq or self.tensors or self.progress)

    def replicas(self, wanted: int) -> "list[ResumeState]":
        """The states of that many replicas. If they come from another number of replicas, all begin with the mean.

        Raises CheckpointIncompatible."""
        states = list(self._stored_replicas())
        if len(states) == wanted:
            return states
        first = states[0]
        if len(states) > 1:
            merges = below(MERGER, first.tensors)
            own = {name: value for name, value in first.tensors.items() if not name.startswith(f"{MERGER}.")}
            try:
                first = first._replace(tensors=averaged([own, *(each.tensors for each in states[1:])], merges))
            except (ValueError, RuntimeError) as error:  # other tensors, or other shapes
                raise self._misfit(str(error)) from error
        return [first] * wanted

    def _stored_replicas(self) -> "Iterator[ResumeState]":
        own = {name: value for name, value in self.tensors.items() if is_of_first(name) and not _is_replay(name)}
        common = {name: value for name, value in self.progress.items() if is_of_first(name)}
        yield self._replace(tensors=own, progress=common)
        for prefix, tensors in further_replicas(self.tensors):
            yield self._replace(tensors=tensors, progress=common | below(prefix, self.progress))

    def restore(self, stages: Sequence[StageMembers]) -> None:
        """Makes the members of all stages continue from this state. Raises CheckpointIncompatible."""
        if self.is_fresh:
            return
        self.check_network({name: member for stage in stages for name, member in stage.by_name.items()})
        for stage in stages:
            stage.load_state_dict(self.tensors)

    def check_network(self, members: Mapping[str, Member]) -> None:
        """Raises CheckpointIncompatible unless the tensors, those of the replay buffer aside, are the members'
        state, and the positions in the stream are counts."""
        expected = joined((name, member.state_dict()) for name, member in members.items())
        found = {name for name in self.tensors if not (_is_replay(name) or name.startswith(f"{MERGER}."))}
        odd = sorted(found ^ expected.keys())
        if odd:
            raise self._misfit(f"{odd[0]!r} is {'not expected' if odd[0] in found else 'missing'}")
        for name, like in expected.items():
            self._check_like(name, like.shape, like.dtype)
            if name.rpartition(".")[2] in _COUNTS and not 0 <= float(self.tensors[name]) < math.inf:
                raise self._misfit(f"{name!r} is {float(self.tensors[name])}")
        for name in _POSITIONS:
            if not _is_count(self.progress.get(name)):
                raise self._misfit(f"{name!r} is not a count")
        for name in _LATER_POSITIONS:
            if not _is_count(self.progress.get(name, 0)):
                raise self._misfit(f"{name!r} is not a count")

    def check_replay(self, *, capacity: int, inputs: int, labels: int, unlabelled: bool) -> None:
        """Raises CheckpointIncompatible unless the replay buffer is complete and holds samples of this network.
        `unlabelled`: they may have no label.

        A state without one comes from a run without replay.
        """
        added = self.progress.get("replay.added")
        present = [name for name in ("replay.images", "replay.labels") if name in self.tensors]
        if added is None and not present:
            return
        if not _is_count(added) or len(present) != 2:
            raise self._misfit("the replay buffer is incomplete")
        size = min(added, capacity)
        self._check_like("replay.images", (size, inputs), torch.uint8)
        self._check_like("replay.labels", (size,), torch.int64)
        kept = self.tensors["replay.labels"]
        kept = kept[kept != UNLABELLED] if unlabelled else kept
        if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < labels:
            raise self._misfit(f"the replay buffer holds a label outside 0 to {labels - 1}")

    def _check_like(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
        value = self.tensors[name]
        if tuple(value.shape) != tuple(shape) or value.dtype != dtype:
            raise self._misfit(f"{name!r} is {value.dtype} {tuple(value.shape)}, not {dtype} {tuple(shape)}")

    def _misfit(self, what: str) -> CheckpointIncompatible:
        return CheckpointIncompatible(
            f"checkpoint {self.seq} does not hold this network's state: {what}",
            hint="move its folder away: then the one before is used; or use another --state folder",
        )


def _is_replay(name: str) -> bool:
    return name.startswith("replay.")


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _LARGEST
