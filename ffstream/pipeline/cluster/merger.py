"""The replicas of a stage merge their states: the first gathers them, merges them in the order of the replicas, and
sends the result to the others. So all replicas continue from the same bits.

The stages of a replica merge one after the other, while microbatches before and behind the merge are on their way.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import zmq
from torch import Tensor

from ffstream.errors import StagesLost
from ffstream.ff.merging import Merger
from ffstream.pipeline.cluster.frames import pack, unpack
from ffstream.pipeline.cluster.sockets import Opened, Socket, poller_of
from ffstream.pipeline.members import StageMembers

_POLL_MS: Final = 100  # after which `check` is called again

State = Mapping[str, Tensor]
Wait = Callable[[Opened], State]
Exchange = Callable[[State, Wait], State]


def lead(merger: Merger, followers: Sequence[Opened]) -> Exchange:
    """For the first replica: `followers` are the connections to the others, in order."""

    def exchange(own: State, wait: Wait) -> State:
        result = merger.merge([own, *(wait(each) for each in followers)])
        for each in followers:
            _send(each, result)
        for each in followers:
            wait(each)  # for its confirmation: what it has not read when this process ends would be lost
        return result

    return exchange


def follow(leader: Opened) -> Exchange:
    """For any other replica."""

    def exchange(own: State, wait: Wait) -> State:
        _send(leader, own)
        result = wait(leader)
        _send(leader, {})
        return result

    return exchange


def _send(line: Opened, state: State) -> None:
    try:
        line.socket.send_multipart(pack("state", {}, state), zmq.NOBLOCK, copy=False)
    except zmq.Again:
        raise _lost() from None


def _lost() -> StagesLost:
    return StagesLost("its connection to another replica is gone", hint="see the network")


class StateMerger:
    """The merger of a stage. `check` is called while it waits, and raises Closed when that must end; `also` are
    sockets that it reads."""

    def __init__(
        self, merger: Merger, exchange: Exchange, check: Callable[[], None], also: Sequence[Socket] = ()
    ) -> None:
        self._exchange = exchange
        self._merger = merger
        self._check = check
        self._also = also
        self.merge_s = 0.0

    def merge(self, members: StageMembers) -> None:
        """Returns when the members have the merged state. Raises Closed, StagesLost."""
        start = time.perf_counter()
        own = {name: value.cpu() for name, value in members.state_dict().items()}
        members.load_state_dict(self._exchange(own, self._wait))
        self.merge_s += time.perf_counter() - start

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of what later merges depend on. Empty in replicas that do not compute them."""
        return self._merger.state_dict()

    def _wait(self, line: Opened) -> State:
        poller = poller_of(line.socket, *self._also)
        while (frames := line.receive()) is None:
            self._check()
            if line.is_cut:
                raise _lost()
            poller.poll(_POLL_MS)
        return unpack(frames).tensors
