"""The serial reference of replicas: N networks on one thread, merged as `ff/merging.py` says."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ffstream.ff.member import joined
from ffstream.ff.merging import Merger
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from tests.unit.pipeline.run import Serial, Stream


class Replicated(Serial):
    """`states[k]` is the state after k steps, a merge that is due then included.

    `replicas.R.` is before the names of the tensors of replica R, and `merger.` before those of the merger.
    """

    def __init__(
        self, recipe: Recipe, stream: Stream, *, replicas: int, merge_every: int = 8, **options: Any
    ) -> None:
        self.networks = [Network(recipe) for _ in range(replicas)]
        self.merger = Merger()
        self._merge_steps = replicas * merge_every
        super().__init__(recipe, stream, **options)

    def learn(self, micro: MicroBatch) -> None:
        """The microbatch is learned by the replica whose turn it is, or by all, and a merge follows if it is due."""
        count = len(self.networks)
        replicas = self.recipe.replicas_after(micro.seq - micro.fresh, count)
        for network in self.networks if replicas == 1 else [self.networks[micro.step % count]]:
            network.learn(micro.images, micro.labels, micro.step, micro.phase, micro.ages, replicas)
        if (micro.step + 1) % self._merge_steps == 0:
            self.merge()

    def merge(self) -> None:
        """Every replica goes on from the merged state."""
        merged = self.merger.merge([network.state_dict() for network in self.networks])
        for network in self.networks:
            network.load_state_dict(merged)

    def state(self) -> dict[str, Tensor]:
        """A copy of the states of all replicas and of the merger."""
        parts: list[tuple[str, Mapping[str, Tensor]]] = [
            (f"replicas.{index}", network.state_dict()) for index, network in enumerate(self.networks)
        ]
        return joined([*parts, ("merger", self.merger.state_dict())])
