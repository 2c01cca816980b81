"""The messages of the flood are malformed, and the same in every run with the same seed."""

import random

import pytest

from tests.harness.load.malformed import KINDS, Kind, is_valid
from tests.harness.raw_client import INPUTS, SHAPE, header, samples

# The codec accepts these; the code behind the socket rejects them.
_ACCEPTED_BY_THE_CODEC = {
    "a base above the number",
    "an unknown command",
    "a payload",
    "a timeout that is a string",
    "a negative timeout",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.socket}-{kind.name}")
def test_the_codec_rejects_each_kind(kind: Kind) -> None:
    rng = random.Random(1)
    for _ in range(20):
        is_accepted = kind.name in _ACCEPTED_BY_THE_CODEC or kind.name.startswith("a snapshot ")
        assert is_valid(kind.socket, kind.make(rng)) is is_accepted


def test_the_codec_accepts_valid_messages() -> None:
    assert is_valid("learn", samples("client", 1, 1, 3))
    query = header("predict", id=1, count=1, dtype="uint8", shape=SHAPE)
    assert is_valid("predict", (query, bytes(INPUTS)))
    assert is_valid("control", (header("request", id=1, command="status"),))


def test_the_same_seed_makes_the_same_messages() -> None:
    kinds = [kind for kind in KINDS if kind.name in ("mutated", "noise", "truncated")]
    first, second = ([kind.make(random.Random(3)) for kind in kinds] for _ in range(2))
    assert first == second
    assert len({kind.make(random.Random(seed)) for kind in kinds for seed in range(20)}) > 3 * 10
