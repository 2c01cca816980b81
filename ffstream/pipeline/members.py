"""The members of a network, divided among stages."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ffstream.ff.head import Head
from ffstream.ff.input import Input
from ffstream.ff.layer import Layer
from ffstream.ff.member import INPUT, READOUT, Member, below, joined, layer_name
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from ffstream.ff.recurrent import make_layer
from ffstream.pipeline.live_error import LIVE, LiveError
from ffstream.pipeline.stage_gauges import BarrierFigures


class StageMembers(NamedTuple):
    """What one stage has: some consecutive layers; the first stage also the input, and the last one the readout, if
    there is one, and the live error."""

    layers: Sequence[Layer]
    input: Input | None = None
    readout: Head | None = None
    live: LiveError | None = None

    @property
    def by_name(self) -> dict[str, Member]:
        """Those with weights and state, by the prefix of their tensors."""
        own: dict[str, Member] = {} if self.input is None else {INPUT: self.input}
        own |= {layer_name(layer.index): layer for layer in self.layers}
        return own if self.readout is None else own | {READOUT: self.readout}

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights."""
        return joined((name, member.weights()) for name, member in self.by_name.items())

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on."""
        return joined((name, member.state_dict()) for name, member in self.by_name.items())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state; tensors of other members are ignored."""
        for name, member in self.by_name.items():
            member.load_state_dict(below(name, state))

    def figures(self, seq: int) -> BarrierFigures:
        """What is reported at a barrier behind the sample `seq`."""
        if self.live is not None:
            self.live.count()
        return BarrierFigures(
            seq,
            {layer.index: layer.figures() for layer in self.layers},
            None if self.readout is None else self.readout.loss(),
            None if self.live is None else self.live.record.recent,
        )

    def progress(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        return {} if self.live is None else {LIVE: self.live.record.state()}


def members_of(
    recipe: Recipe,
    placement: Placement,
    sizes: Sequence[int],
    index: int,
    live: Mapping[str, Any] | None = None,
) -> StageMembers:
    """The members of one stage, initialised from the recipe's seed. Those of other stages are not made.

    `live` is the state of the live error. Raises CheckpointIncompatible for an invalid one.
    """
    first, shapes = sum(sizes[:index]), list(recipe.input_shapes())
    is_last = index == len(sizes) - 1
    layers = [make_layer(recipe, each, shapes[each], placement) for each in range(first, first + sizes[index])]
    return StageMembers(
        layers,
        None if index else Input(recipe, placement, layers[0].decoding),
        recipe.readout.build(recipe, placement) if is_last else None,
        LiveError(None if live is None else dict(live)) if is_last else None,
    )
