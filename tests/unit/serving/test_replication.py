"""A snapshot that is sent as bytes predicts the same, bit for bit, and bytes that are wrong are rejected."""

import pytest
import torch
from safetensors.torch import load, save

from ffstream.errors import CheckpointDamaged, CheckpointIncompatible
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.presets import PRESETS
from ffstream.ff.presets import recipe as make_recipe
from ffstream.serving import replication
from ffstream.serving.replication import Decoder, Encoded, encode
from ffstream.serving.snapshot import Snapshot
from tests.harness.crashing.presets import small_recipe
from tests.unit.ff.formulas import SMALL, learn, random_images
from tests.unit.serving.answers import RECIPE, always


def received(encoded: Encoded) -> list[bytes]:
    return [bytes(frame) for frame in encoded.frames]


def changed(encoded: Encoded, **tensors: torch.Tensor | None) -> tuple[list[bytes], str]:
    """The frames with other tensors, and their checksum."""
    weights = load(b"".join(encoded.frames)) | tensors
    frames = [save({name: value for name, value in weights.items() if value is not None})]
    return frames, replication.checksum(frames)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_received_predicts_bit_for_bit_as_what_was_sent(preset: str, dtype: torch.dtype) -> None:
    recipe = small_recipe(preset)
    network = Network(recipe, Placement(product_dtype=dtype))
    images = torch.randint(0, 256, (33, recipe.inputs), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    sent = network.classifier()
    encoded = encode(Snapshot(sent, 4, 40))
    snapshot = Decoder(recipe).decode(received(encoded), encoded.checksum, 4, 40)
    assert (snapshot.version, snapshot.seq) == (4, 40)
    assert torch.equal(snapshot.classifier.predict(images).goodness_BL, sent.predict(images).goodness_BL)
    for name, value in sent.weights.items():
        other = snapshot.classifier.weights[name]
        assert other.dtype == value.dtype
        assert torch.equal(other, value)


def test_a_replica_predicts_through_the_device_on_which_was_learned() -> None:
    """As it was when the snapshot was taken."""
    hardware = {"kind": "analog", "mismatch": 0.5, "noise": 0.1, "bits": 3, "changes_at": [SMALL.batch_size * 4]}
    recipe = SMALL.change(hardware=hardware)
    network, decoder, images = Network(recipe), Decoder(recipe), random_images(33, recipe.inputs)
    for step in range(1, 7):
        learn(network, step, step)
        sent = network.classifier()
        encoded = encode(Snapshot(sent, step, step))
        snapshot = decoder.decode(received(encoded), encoded.checksum, step, step)
        assert torch.equal(snapshot.classifier.predict(images).goodness_BL, sent.predict(images).goodness_BL)


def test_frames_are_the_memory_of_the_snapshot_and_limited_in_size() -> None:
    """Encoding for one follower or for many takes no memory of its own."""
    recipe = make_recipe("fast", image_shape=[28, 28], widths=[700], labels=10)
    snapshot = Snapshot(Network(recipe).classifier(), 1, 1)
    encoded = encode(snapshot)
    assert max(map(len, encoded.frames)) == replication.FRAME_BYTES
    assert encoded.bytes == sum(map(len, encoded.frames)) > 2 * replication.FRAME_BYTES
    before = received(encoded)
    snapshot.classifier.weights["layers.0.weight"].zero_()
    assert received(encoded) != before


def test_wrong_bytes_are_rejected() -> None:
    encoded = encode(Snapshot(always(3), 1, 1))
    decoder, frames = Decoder(RECIPE), received(encoded)
    flipped = [*frames[:-1], frames[-1][:-1] + bytes([frames[-1][-1] ^ 1])]
    for wrong in (flipped, frames[:-1], [*frames, b"x"], []):
        with pytest.raises(CheckpointDamaged, match="wrong checksum"):
            decoder.decode(wrong, encoded.checksum, 1, 1)
    for nonsense in ([b""], [b"x" * 100], [(1 << 62).to_bytes(8, "little") + b"{}"]):
        with pytest.raises(CheckpointDamaged, match="not a safetensors file"):
            decoder.decode(nonsense, replication.checksum(nonsense), 1, 1)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"layers.0.weight": None}, r"layers\.0\.weight is missing"),
        ({"layers.0.weight": torch.zeros(3, 5)}, r"layers\.0\.weight has the shape \(3, 5\)"),
        ({"layers.9.weight": torch.zeros(1)}, r"layers\.9\.weight has the shape"),
        ({"layers.0.weight": torch.zeros(4, 16, dtype=torch.int64)}, "dtype torch.int64"),
    ],
)
def test_tensors_of_another_network_are_rejected(tensors: dict[str, torch.Tensor | None], message: str) -> None:
    encoded = encode(Snapshot(always(3), 1, 1))
    frames, checksum = changed(encoded, **tensors)
    with pytest.raises(CheckpointIncompatible, match=message):
        Decoder(RECIPE).decode(frames, checksum, 1, 1)
