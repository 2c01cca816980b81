"""What the feeder sends to: the first stages of all replicas.

The microbatch `step` goes to the replica `step` mod N; at the start of the stream to all of them. After every
`merge_every` microbatches of each replica all merge. Both depend on the microbatch and its number only, so a run that
was killed and resumed does the same.
"""

from collections.abc import Sequence

from ffstream.ff.recipe import Recipe
from ffstream.pipeline.channel import Closed, Item
from ffstream.pipeline.cluster.hops import HopOut
from ffstream.pipeline.messages import Barrier, Merge, MicroBatch


class Inbox:
    """Made before the stages are placed, so that it can be closed at any time. Then it gets its `hops`."""

    def __init__(self, recipe: Recipe, merge_every: int = 1) -> None:
        self.hops: Sequence[HopOut] = ()
        self.barriers: dict[int, Barrier] = {}  # on their way, by version
        self._recipe = recipe
        self._merge_every = merge_every
        self._closed = self._dropped = False

    def put(self, item: Item) -> None:
        """For the feeder's thread. Raises Closed."""
        if self._closed or not self.hops:
            raise Closed
        if isinstance(item, MicroBatch):
            self._divide(item)
            return
        if isinstance(item, Barrier):
            self.barriers[item.version] = item
        self._put_all(item)

    def _divide(self, item: MicroBatch) -> None:
        count = len(self.hops)
        if self._recipe.replicas_after(item.seq - item.fresh, count) == 1:
            for number, hop in enumerate(self.hops):
                hop.put(item._replace(fresh=0) if number else item)  # its samples are counted once
        else:
            self.hops[item.step % count].put(item._replace(replicas=count))
        if count > 1 and (item.step + 1) % (self._merge_every * count) == 0:
            self._put_all(Merge(item.step))

    def _put_all(self, item: Item) -> None:
        for hop in self.hops:
            hop.put(item)

    def close(self, *, drop: bool = False) -> None:
        """Nothing follows. With `drop`, from any thread: `put` raises Closed from now on.

        The feeder closes it at its end in any case, on the thread to which the sockets belong.
        """
        self._closed = True
        self._dropped |= drop
        if not drop:
            for hop in self.hops:
                hop.close(drop=self._dropped)
            for hop in self.hops:
                hop.release()

    @property
    def is_closed(self) -> bool:
        """Whether nothing follows."""
        return self._closed

    def check(self) -> None:
        """For the hops, while they wait."""
        if self._dropped:
            raise Closed
