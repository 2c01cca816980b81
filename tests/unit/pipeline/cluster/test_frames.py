"""Messages are the same after they were packed, sent and unpacked."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import pytest
import torch
import zmq
from torch import Tensor

from ffstream.errors import BadSize
from ffstream.ff.activities import Activities
from ffstream.ff.health import HealthFigures
from ffstream.ff.layer_monitor import LayerFigures
from ffstream.ff.objective import Balance
from ffstream.pipeline.cluster.figures import packed, unpacked
from ffstream.pipeline.cluster.frames import PIECE, microbatch_of, output_of, pack, pack_item, unpack
from ffstream.pipeline.messages import Barrier, MicroBatch, StageOutput
from ffstream.pipeline.stage_gauges import BarrierFigures

LABELS = torch.tensor([3, 0, 1])
DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


def received(frames: Iterable[Any]) -> list[zmq.Frame]:
    return [zmq.Frame(bytes(each)) for each in frames]


def assert_equal(one: Any, other: Any) -> None:
    """Tensors are compared bit for bit."""
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    elif isinstance(one, tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for each, its in zip(one, other, strict=True):
            assert_equal(each, its)
    else:
        assert one == other


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (4, 0, 2), (5, 1, 2)], ids=str)
def test_tensors_of_every_type_and_shape(dtype: torch.dtype, shape: Sequence[int]) -> None:
    value = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    found = unpack(received(pack("kind", {"a": [1, None, "x"]}, {"value": value, "again": value})))
    assert (found.kind, found.fields) == ("kind", {"a": [1, None, "x"]})
    assert list(found.tensors) == ["value", "again"]
    for each in found.tensors.values():
        assert_equal(each, value)


def test_special_values_keep_their_bits() -> None:
    value = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45])
    assert_equal(unpack(received(pack("kind", {}, {"value": value}))).tensors["value"], value)


@pytest.mark.parametrize("values", [PIECE // 4, PIECE // 4 + 1, 3 * PIECE // 4 - 1])
def test_no_frame_of_a_large_tensor_takes_long(values: int) -> None:
    """Over a slow network, a connection counts as lost when a single frame takes longer than the heartbeat."""
    sent = {"a": torch.arange(float(values)), "empty": torch.zeros(0, 3), "b": torch.arange(5)}
    frames = received(pack("kind", {}, sent))
    assert max(len(frame.buffer) for frame in frames) <= PIECE
    found = unpack(frames).tensors
    for name, value in sent.items():
        assert_equal(found[name], value)


def test_a_tensor_that_is_not_contiguous() -> None:
    value = torch.arange(12.0).view(3, 4).T[1:]
    assert_equal(unpack(received(pack("kind", {}, {"value": value}))).tensors["value"], value.contiguous())


def test_what_was_received_is_not_shared_with_the_frame() -> None:
    frames = received(pack("kind", {}, {"value": torch.zeros(3)}))
    unpack(frames).tensors["value"].fill_(1.0)
    assert not any(frames[1].bytes)


@pytest.mark.parametrize("ages", [None, torch.tensor([7, 0])])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_microbatch(dtype: torch.dtype, ages: Tensor | None) -> None:
    images = torch.arange(12).view(3, 4).to(dtype)
    item = MicroBatch(5, 2**40, "wake", images, LABELS, 1, ages)
    message = unpack(received(pack_item(item)))
    assert message.kind == "microbatch"
    assert_equal(microbatch_of(message), item)


@pytest.mark.parametrize(
    "activities",
    [
        Activities(torch.randn(3, 4), LABELS, None, 5, "interleaved"),
        Activities(torch.randn(3, 4, dtype=torch.bfloat16), LABELS, 2, 5, "sleep"),
        Activities(torch.randn(3, 2, 2, 2), LABELS, 1, 5, "interleaved", (torch.randn(3, 4), torch.randn(3, 1))),
        Activities(
            torch.randn(3, 4), LABELS, 3, 5, "wake", tuple(torch.full((1,), float(n)) for n in range(12)), LABELS
        ),
        Activities(torch.randn(3, 4), LABELS, None, 5, "interleaved", (), None, torch.randn(3, 10)),
    ],
    ids=["plain", "bf16", "carried", "many", "score"],
)
def test_an_output(activities: Activities) -> None:
    item = StageOutput(5, 2**40, 2, activities)
    message = unpack(received(pack_item(item)))
    assert message.kind == "output"
    assert_equal(output_of(message), item)


@pytest.mark.parametrize("saves", [False, True])
def test_a_barrier(saves: bool) -> None:
    barrier = Barrier(step=7, seq=9, version=3, saves=saves, contributors=["x"], on_complete=lambda barrier: None)
    message = unpack(received(pack_item(barrier)))
    assert message.kind == "barrier"
    fields = {name: message.fields[name] for name in ("step", "seq", "version", "saves")}
    assert fields == {"step": 7, "seq": 9, "version": 3, "saves": saves}


@pytest.mark.parametrize("size", [0, 11, 13, 24])
def test_a_frame_of_the_wrong_size(size: int) -> None:
    header, _ = pack("kind", {}, {"value": torch.zeros(3)})
    with pytest.raises(BadSize, match=f"{size} bytes for a tensor of 12"):
        unpack(received([header, bytes(size)]))


@pytest.mark.parametrize("frames", [0, 2])
def test_a_missing_frame_or_one_too_many(frames: int) -> None:
    header, value = pack("kind", {}, {"value": torch.zeros(3)})
    with pytest.raises(BadSize, match=f"{frames} frames for 1 tensors"):
        unpack(received([header, *[value] * frames]))


@pytest.mark.parametrize("balance", [None, Balance(1.0, 2.0, 1.5)])
def test_figures(balance: Balance | None) -> None:
    health = HealthFigures()
    layer = LayerFigures(1.0, 2.0, 3.0, 0.5, 4, health, balance, 0.25)
    for figures in (BarrierFigures(8, {0: layer, 2: layer}, 0.25, 0.5), BarrierFigures(8, {}, None, None)):
        sent = msgpack.unpackb(msgpack.packb(packed(figures)))
        assert repr(unpacked(sent)) == repr(figures)  # of NaN, too
