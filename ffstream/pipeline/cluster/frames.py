"""Messages between the daemon and its stages, and between stages, as frames.

A message is a header (msgpack: kind, fields, and name, dtype and shape of each tensor), then the bytes of the
tensors, each in pieces of 1 MiB: heartbeats pass between frames only, and without one for 3 s a connection counts as
lost. Both ends run the same version of ffstream, which is checked before anything else is sent.

Valid if and only if the header unpacks, there are as many frames as the tensors have pieces (at least one each), and
their sizes add up to those of the tensors.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgpack
import numpy as np
import torch
import zmq
from torch import Tensor

from ffstream.checkpoint.tensors import DTYPE_NAMES, bytes_of
from ffstream.errors import BadSize
from ffstream.ff.activities import Activities
from ffstream.pipeline.channel import Item
from ffstream.pipeline.messages import Barrier, Merge, MicroBatch, StageOutput

Frames = list[bytes | memoryview]
_DTYPES: Final = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_CARRIED: Final = "carried."
PIECE: Final = 1 << 20  # bytes


class Message(NamedTuple):
    """What was received."""

    kind: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def pack(kind: str, fields: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | None = None) -> Frames:
    """The frames of a message. Contiguous tensors on the CPU are not copied."""
    tensors = tensors or {}
    meta = [(name, DTYPE_NAMES[value.dtype], list(value.shape)) for name, value in tensors.items()]
    header = msgpack.packb([kind, fields or {}, meta])
    return [header, *(piece for value in tensors.values() for piece in _pieces(bytes_of(value)))]


def _pieces(memory: memoryview) -> list[memoryview]:
    return [memory[start : start + PIECE] for start in range(0, max(1, len(memory)), PIECE)]


def unpack(frames: Sequence[zmq.Frame]) -> Message:
    """The message, with tensors of its own. Raises BadSize."""
    kind, fields, meta = msgpack.unpackb(frames[0].buffer)
    tensors = {name: torch.empty(shape, dtype=_DTYPES[dtype]) for name, dtype, shape in meta}
    counts = [max(1, -(-value.nbytes // PIECE)) for value in tensors.values()]
    if sum(counts) != len(frames) - 1:
        raise BadSize(f"{len(frames) - 1} frames for {len(meta)} tensors")
    pieces = iter(frames[1:])
    for value, count in zip(tensors.values(), counts, strict=True):
        _fill(value, [piece.buffer for piece in islice(pieces, count)])
    return Message(kind, fields, tensors)


def _fill(value: Tensor, pieces: Sequence[memoryview]) -> None:
    """Copies: a tensor of its own begins where matrix products are fastest, and their results may depend on that."""
    size = sum(map(len, pieces))
    if value.nbytes != size:
        raise BadSize(f"{size} bytes for a tensor of {value.nbytes}")
    if not size:
        return
    into, start = value.view(-1).view(torch.uint8).numpy(), 0
    for piece in pieces:
        np.copyto(into[start : start + len(piece)], np.frombuffer(piece, np.uint8))
        start += len(piece)


# --- what travels from stage to stage -------------------------------------------------------------------------------


def pack_item(item: Item) -> Frames:
    """The frames of an item."""
    match item:
        case MicroBatch():
            tensors = {"images": item.images, "labels": item.labels}
            if item.ages is not None:
                tensors["ages"] = item.ages
            names = ("step", "seq", "phase", "fresh", "replicas")
            return pack("microbatch", {name: getattr(item, name) for name in names}, tensors)
        case StageOutput():
            return _pack_output(item)
        case Merge():
            return pack("merge", item._asdict())
        case Barrier():
            fields = {"step": item.step, "seq": item.seq, "version": item.version, "saves": item.saves}
            return pack("barrier", fields)


def _pack_output(item: StageOutput) -> Frames:
    activities = item.activities
    tensors = {"h": activities.h_NF, "labels": activities.labels_N}
    tensors |= {f"{_CARRIED}{index}": value for index, value in enumerate(activities.carried)}
    for name, value in (("ages", activities.ages_R), ("score", activities.score_BL)):
        if value is not None:
            tensors[name] = value
    fields = {
        "step": item.step,
        "seq": item.seq,
        "fresh": item.fresh,
        "phase": activities.phase,
        "positives": activities.positives,
        "replicas": activities.replicas,
        "read_only": activities.read_only,
    }
    return pack("output", fields, tensors)


def microbatch_of(message: Message) -> MicroBatch:
    """The reverse of `pack_item`."""
    fields, tensors = message.fields, message.tensors
    return MicroBatch(
        fields["step"],
        fields["seq"],
        fields["phase"],
        tensors["images"],
        tensors["labels"],
        fields["fresh"],
        tensors.get("ages"),
        fields["replicas"],
    )


def output_of(message: Message) -> StageOutput:
    """The reverse of `pack_item`."""
    fields, tensors = message.fields, message.tensors
    carried = tuple(value for name, value in tensors.items() if name.startswith(_CARRIED))
    activities = Activities(
        tensors["h"],
        tensors["labels"],
        fields["positives"],
        fields["step"],
        fields["phase"],
        carried,
        tensors.get("ages"),
        tensors.get("score"),
        fields["replicas"],
        read_only=fields["read_only"],
    )
    return StageOutput(fields["step"], fields["seq"], fields["fresh"], activities)
