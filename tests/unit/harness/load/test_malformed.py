import random

import pytest

from tests.harness.load.malformed import KINDS, Kind, is_good
from tests.harness.load.peer import INPUTS, SHAPE, header, samples

# The codec takes these; it is the loop behind the socket that refuses them.
_FOR_THE_LOOP = {"a base above the number", "an unknown command", "a payload"} | {
    "a time that is a text",
    "a time below nothing",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.socket}-{kind.name}")
def test_each_kind_is_malformed(kind: Kind) -> None:
    chance = random.Random(1)
    for _ in range(20):
        assert is_good(kind.socket, kind.make(chance)) is (kind.name in _FOR_THE_LOOP)


def test_what_is_good_passes_for_good() -> None:
    assert is_good("learn", samples("somebody", 1, 1, 3))
    query = header("predict", id=1, count=1, dtype="uint8", shape=SHAPE)
    assert is_good("predict", (query, bytes(INPUTS)))
    assert is_good("control", (header("request", id=1, command="status"),))


def test_chance_has_it_the_same_way_again() -> None:
    kinds = [kind for kind in KINDS if kind.name in ("mutated", "noise", "truncated")]
    first, second = ([kind.make(random.Random(3)) for kind in kinds] for _ in range(2))
    assert first == second
    assert len({kind.make(random.Random(seed)) for kind in kinds for seed in range(20)}) > 3 * 10
