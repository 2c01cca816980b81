"""Snapshots as bytes, for replicas that predict elsewhere.

The bytes are a safetensors file with the tensors of the classifier in the dtypes in which it predicts, so a replica
computes what the daemon computes, bit for bit. The file is cut into frames, because a client's heartbeat waits for at
most one frame. A snapshot never changes, so the frames are its own memory where it is on the CPU.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ffstream.checkpoint.tensors import pieces
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible
from ffstream.ff.classifier import Classifier
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.serving.snapshot import Snapshot

FRAME_BYTES = 1 << 20


class Encoded(NamedTuple):
    """A snapshot and its bytes."""

    snapshot: Snapshot
    frames: list[memoryview]
    bytes: int
    checksum: str


def encode(snapshot: Snapshot) -> Encoded:
    """The bytes of a snapshot."""
    frames = [frame for piece in pieces(snapshot.classifier.weights) for frame in _cut(piece)]
    return Encoded(snapshot, frames, sum(map(len, frames)), checksum(frames))


def _cut(piece: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(piece), FRAME_BYTES):
        yield piece[start : start + FRAME_BYTES]


def checksum(frames: Sequence[bytes | memoryview]) -> str:
    """XXH3-128 of all frames, in hexadecimal digits."""
    digest = xxhash.xxh3_128()
    for frame in frames:
        digest.update(frame)
    return digest.hexdigest()


class Decoder:
    """Makes snapshots of one network from their bytes."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        weights = Network(recipe).weights()
        self._expected = {name: (value.shape, value.is_floating_point()) for name, value in weights.items()}

    def decode(self, frames: Sequence[bytes], expected_checksum: str, version: int, seq: int) -> Snapshot:
        """The snapshot, which has predicted an image already. Raises CheckpointDamaged, CheckpointIncompatible."""
        if checksum(frames) != expected_checksum:
            raise CheckpointDamaged(f"snapshot {version} has a wrong checksum", hint="it is requested again")
        try:
            # A copy begins where matrix products are fastest, as the daemon's tensors do.
            weights = {name: value.clone() for name, value in load(b"".join(frames)).items()}
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointDamaged(
                f"snapshot {version} is not a safetensors file: {error}",
                hint="are the daemon and this program of the same version?",
            ) from error
        self._check(weights, version)
        try:
            classifier = Classifier(self.recipe, weights)
            classifier.predict(torch.zeros(1, self.recipe.inputs, dtype=torch.uint8))
        except (ValueError, KeyError, RuntimeError, TypeError) as error:
            raise CheckpointIncompatible(
                f"snapshot {version} cannot predict: {error}",
                hint="are the daemon and this program of the same version?",
            ) from error
        return Snapshot(classifier, version, seq)

    def _check(self, weights: dict[str, Tensor], version: int) -> None:
        for name in sorted(self._expected.keys() | weights.keys()):
            found = weights.get(name)
            if found is not None and (found.shape, found.is_floating_point()) == self._expected.get(name):
                continue
            has = "is missing" if found is None else f"has the shape {tuple(found.shape)} and dtype {found.dtype}"
            raise CheckpointIncompatible(
                f"snapshot {version} does not fit its network: the tensor {name} {has}",
                hint="are the daemon and this program of the same version?",
            )
