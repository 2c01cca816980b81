"""The parts of barriers, as they arrive from the stages of all replicas.

The weights that predict are the mean of the replicas' weights. The state of each replica is kept as it is: a
checkpoint does not merge anything, so it changes nothing.
"""

from collections.abc import Sequence

from torch import Tensor

from ffstream.checkpoint.replicas import of_replica
from ffstream.ff.merging import averaged
from ffstream.pipeline.cluster.frames import Message
from ffstream.pipeline.messages import Barrier, Part


class Parts:
    """`names` (replica, stage): the contributors. `barriers` are those on their way, by version."""

    def __init__(self, names: Sequence[Sequence[str]], barriers: dict[int, Barrier]) -> None:
        self._names = names
        self._barriers = barriers
        self._arrived: dict[tuple[int, int], dict[int, Part]] = {}  # by version and stage
        self._stages_left: dict[int, int] = {}

    def add(self, replica: int, stage: int, message: Message) -> None:
        """A part. Once the same stage of all replicas has sent its own, they contribute to the barrier."""
        version = message.fields["version"]
        arrived = self._arrived.setdefault((version, stage), {})
        arrived[replica] = _part(message)
        if len(arrived) < len(self._names):
            return
        del self._arrived[version, stage]
        barrier = self._barriers[version]
        self._stages_left.setdefault(version, len(self._names[0]))
        self._stages_left[version] -= 1
        if not self._stages_left[version]:
            del self._stages_left[version], self._barriers[version]
        weights = arrived[0].weights  # of one replica they are the mean, and are not computed again at each barrier
        if len(arrived) > 1:
            weights = averaged([arrived[each].weights for each in range(len(arrived))])
        for each, names in enumerate(self._names):
            part = arrived[each]
            own = Part({} if each else weights, of_replica(each, part.tensors), of_replica(each, part.progress))
            barrier.contribute(names[stage], own)


def _part(message: Message) -> Part:
    tensors: dict[str, dict[str, Tensor]] = {"weights": {}, "tensors": {}}
    for name, value in message.tensors.items():
        kind, _, rest = name.partition("/")
        tensors[kind][rest] = value
    return Part(tensors["weights"], tensors["tensors"], message.fields["progress"])
