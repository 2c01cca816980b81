"""A taught sample waits for the thread of the journal, and gets one answer."""

import pytest

from ffstream.errors import Busy, Draining
from ffstream.server.lessons import LESSONS_MAX, Lessons


def test_lessons_are_taken_in_order() -> None:
    lessons = Lessons()
    assert lessons.take() is None
    waiting = [lessons.submit(bytes([label]), label) for label in range(3)]
    for label, result in enumerate(waiting):
        lesson = lessons.take()
        assert lesson is not None
        assert (lesson.image, lesson.label) == (bytes([label]), label)
        lesson.result.set_result(100 + label)
        assert result.result(0) == 100 + label
    assert lessons.take() is None


def test_a_lesson_that_was_given_up_is_not_taken_and_one_that_was_taken_cannot_be_given_up() -> None:
    lessons = Lessons()
    first, second = lessons.submit(b"1", 1), lessons.submit(b"2", 2)
    assert first.cancel()
    lesson = lessons.take()
    assert lesson is not None
    assert lesson.label == 2
    assert not second.cancel()


def test_only_so_many_wait() -> None:
    lessons = Lessons()
    for _ in range(LESSONS_MAX):
        lessons.submit(b"", 0)
    with pytest.raises(Busy) as caught:
        lessons.submit(b"", 0)
    assert caught.value.hint
    lessons.take()
    lessons.submit(b"", 0)


def test_closing_rejects_what_waits_and_what_comes_later() -> None:
    lessons = Lessons()
    waiting = lessons.submit(b"", 0)
    lessons.close()
    assert isinstance(waiting.exception(0), Draining)
    with pytest.raises(Draining):
        lessons.submit(b"", 0)
