import pytest

from ffstream.learning.learner import RolledBack
from ffstream.learning.mark_finder import Found, MarkFinder, Seen
from ffstream.learning.restarts import Interruption

QUIET = Seen(
    seq=100,
    checkpoint=50,
    rolled_back=None,
    paused=False,
    restarts=(0, 2),
    drift=None,
    phase="interleaved",
    interruption=None,
)


def finder(first: Seen = QUIET) -> MarkFinder:
    made = MarkFinder()
    assert made.find(first) == []
    return made


def kinds(found: list[Found]) -> list[tuple[str, int]]:
    return [(each.kind, each.seq) for each in found]


def test_nothing_is_found_when_nothing_happens() -> None:
    quiet = finder()
    for seq in range(100, 110):
        assert quiet.find(QUIET._replace(seq=seq)) == []


@pytest.mark.parametrize(
    ("changes", "kind", "seq"),
    [
        ({"checkpoint": 80}, "checkpoint", 80),
        ({"paused": True}, "pause", 100),
        ({"restarts": (0, 3)}, "drift", 100),
        ({"drift": 90}, "drift", 90),
    ],
)
def test_each_event_is_found_once(changes: dict[str, object], kind: str, seq: int) -> None:
    found = finder()
    after = QUIET._replace(**changes)  # type: ignore[arg-type]
    assert kinds(found.find(after)) == [(kind, seq)]
    assert found.find(after) == []


def test_learning_that_is_resumed_is_found() -> None:
    assert kinds(finder(QUIET._replace(paused=True)).find(QUIET)) == [("resume", 100)]


def test_the_first_checkpoint_is_found() -> None:
    assert kinds(finder(QUIET._replace(checkpoint=None)).find(QUIET)) == [("checkpoint", 50)]


@pytest.mark.parametrize(
    ("to", "last", "text"), [(40, 100, "samples 41 to 100 are skipped"), (100, 100, "sample 100")]
)
def test_a_rollback_is_one_mark_without_those_of_older_checkpoints_and_restarts(
    to: int, last: int, text: str
) -> None:
    found = finder()
    back = QUIET._replace(
        seq=to, checkpoint=40, restarts=(1, 0), rolled_back=RolledBack(to, 40, to + 1, last, "skipped")
    )
    (mark,) = found.find(back)
    assert (mark.kind, mark.seq) == ("rollback", to)
    assert mark.text.endswith(text)
    assert found.find(back) == []
    assert kinds(found.find(back._replace(checkpoint=45))) == [("checkpoint", 45)]
    again = RolledBack(to, 40, to + 1, last, "skipped")
    assert kinds(found.find(back._replace(rolled_back=again))) == [("rollback", to)]


def test_a_phase_is_marked_when_it_lasts_and_not_when_it_alternates() -> None:
    found = finder(QUIET._replace(phase="wake"))
    for phase in ("sleep", "wake", "sleep", "sleep", "wake") * 4:
        assert found.find(QUIET._replace(phase=phase)) == []
    marks = [mark for _ in range(20) for mark in found.find(QUIET._replace(phase="sleep"))]
    assert kinds(marks) == [("sleep", 100)]
    marks = [mark for _ in range(20) for mark in found.find(QUIET._replace(phase="wake"))]
    assert kinds(marks) == [("wake", 100)]


def test_an_interruption_has_a_begin_and_an_end() -> None:
    found = finder()
    lost = Interruption(1, "ff-stage-0 is lost")
    (mark,) = found.find(QUIET._replace(interruption=lost))
    assert mark == Found(100, "interruption", "learning is interrupted: ff-stage-0 is lost")
    assert found.find(QUIET._replace(interruption=lost)) == []
    over = QUIET._replace(interruption=lost._replace(lasted_s=3.21))
    assert found.find(over) == [Found(100, "continuation", "learning goes on after 3.2 s")]
    assert found.find(over) == []


def test_an_interruption_that_is_over_within_a_second_is_found() -> None:
    short = Interruption(1, "ff-stage-0 is lost", 0.4)
    found = finder()
    assert kinds(found.find(QUIET._replace(interruption=short))) == [("interruption", 100), ("continuation", 100)]
    second = QUIET._replace(interruption=short._replace(number=2))
    assert kinds(found.find(second)) == [("interruption", 100), ("continuation", 100)]


def test_an_interruption_before_the_first_second_is_not_found() -> None:
    before = QUIET._replace(interruption=Interruption(1, "the cluster is gone", 2.0))
    assert finder(before).find(before) == []
