"""A follower takes good snapshots, and bad answers change nothing. The daemon's answers are written by the test."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ffstream.client import Control
from ffstream.daemon import follower as follower_module
from ffstream.daemon.follower import Follower
from ffstream.errors import CheckpointIncompatible, ConfigError, RequestRefused
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from ffstream.serving.replication import encode
from ffstream.serving.snapshot import Snapshot
from tests.support import wait_until
from tests.unit.client.scripted import Scripted
from tests.unit.serving.answers import DEADLINE_S, LABELS, RECIPE, always

SHAPE: dict[str, Any] = {"socket": "control", "image_shape": [4, 4], "inputs": 16, "labels": LABELS}


class ScriptedDaemon:
    """Answers requests for snapshots. `spoil` changes an answer before it is sent; `error` is sent instead."""

    def __init__(self) -> None:
        self.boot = "boot-1"
        self.version = 1
        self.recipe: Recipe = RECIPE
        self.spoil: Callable[[dict[str, Any], list[bytes]], None] = lambda result, payload: None
        self.error = ""
        self.asked: list[dict[str, Any]] = []
        self.scripted = Scripted(self._answer, **SHAPE, boot=self.boot)

    def restart(self, boot: str, version: int, **welcome: Any) -> None:
        self.boot, self.version = boot, version
        self.scripted.welcome |= {"boot": boot, **welcome}

    def _answer(self, scripted: Scripted, fields: dict[str, Any]) -> None:
        arguments = fields["arguments"]
        self.asked.append(arguments)
        if self.error:
            scripted.error(None, self.error, id=fields["id"], retry=self.error == "busy")
            return
        encoded = encode(Snapshot(always(self.version % LABELS, self.recipe), self.version, 100 * self.version))
        result = {
            "boot": self.boot,
            "version": self.version,
            "seq": 100 * self.version,
            "applied_seq": 100 * self.version + 50,
            "as_of_s": 0.0,
            "bytes": encoded.bytes,
            "checksum": encoded.checksum,
            "recipe": self.recipe.model_dump(mode="json") if arguments["recipe"] else None,
        }
        payload = [bytes(each) for each in encoded.frames]
        if arguments.get("boot") == self.boot and arguments["after"] == self.version:
            result |= {"bytes": 0, "checksum": ""}
            payload = []
        self.spoil(result, payload)
        scripted.say("reply", *payload, id=fields["id"], result=result)


class Followed:
    """A follower of a scripted daemon."""

    def __init__(self, daemon: ScriptedDaemon, every_s: float = 0.0) -> None:
        self.metrics = Metrics()
        self.failures: list[Exception] = []
        self.boots: list[str] = []
        self.follower = Follower(
            daemon.scripted.endpoint,
            keys=None,
            every_s=every_s,
            metrics=self.metrics,
            on_failure=self.failures.append,
            on_boot=self.boots.append,
        )
        self.follower.start()

    def holds(self, boot: str, version: int) -> bool:
        follower = self.follower
        return follower.has_snapshot() and (follower.boot, follower.snapshots.current.version) == (boot, version)

    def await_holds(self, boot: str, version: int) -> None:
        wait_until(lambda: self.holds(boot, version), DEADLINE_S, f"it holds version {version} of {boot}")

    def failed(self, reason: str) -> float:
        name = "ffstream_replica_failures_total"
        return self.metrics.registry.get_sample_value(name, {"reason": reason}) or 0.0

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"ffstream_replica_{name}")


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    daemon = ScriptedDaemon()
    yield daemon
    daemon.scripted.close()


@pytest.fixture
def follow(daemon: ScriptedDaemon) -> Iterator[Callable[..., Followed]]:
    """Makes followers of the daemon."""
    made: list[Followed] = []

    def make(**options: Any) -> Followed:
        made.append(followed := Followed(daemon, **options))
        return followed

    yield make
    for each in made:
        assert each.follower.stop(DEADLINE_S)
        assert each.failures == []


def test_it_takes_each_newer_snapshot_and_asks_for_the_recipe_once(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    followed = follow()
    for version in (1, 2, 5):
        daemon.version = version
        followed.await_holds("boot-1", version)
    assert followed.boots == ["boot-1"]
    assert [each["recipe"] for each in daemon.asked].count(True) == 1
    assert "after" not in daemon.asked[0]
    assert daemon.asked[-1]["boot"] == "boot-1"
    assert followed.value("snapshots_total") == 3


def test_a_restarted_daemon_is_taken_up_with_a_lower_version_and_another_network(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    daemon.version = 7
    followed = follow()
    followed.await_holds("boot-1", 7)
    daemon.recipe = make_recipe("fast", image_shape=[4, 4], widths=[6], labels=LABELS)
    daemon.restart("boot-2", 2)
    followed.await_holds("boot-2", 2)
    assert followed.boots == ["boot-1", "boot-2"]
    assert followed.follower.recipe == daemon.recipe


def test_what_is_known_about_the_daemon_is_measured(daemon: ScriptedDaemon, follow: Callable[..., Followed]) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)
    wait_until(lambda: followed.value("behind_samples") == 50, DEADLINE_S, "it knows what the daemon has learned")
    assert followed.value("connected") == 1
    staleness_s = followed.value("staleness_seconds")
    assert staleness_s is not None
    assert staleness_s >= 0


def test_the_staleness_counts_from_when_the_request_was_sent(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    def spoil(result: dict[str, Any], payload: list[bytes]) -> None:
        result["as_of_s"] = -100.0  # the snapshot was the newest long before the request

    daemon.spoil = spoil
    followed = follow()
    followed.await_holds("boot-1", 1)
    wait_until(lambda: followed.follower.staleness_s() is not None, DEADLINE_S, "it is known")
    assert 100 <= (followed.follower.staleness_s() or 0) < 100 + DEADLINE_S


def test_an_answer_without_weights_about_a_newer_snapshot_confirms_nothing(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)

    def withhold(result: dict[str, Any], payload: list[bytes]) -> None:
        result |= {"bytes": 0, "checksum": "", "version": 9, "seq": 900, "applied_seq": 900}
        payload.clear()

    daemon.spoil = withhold
    wait_until(lambda: followed.value("behind_samples") == 800, DEADLINE_S, "it knows of the newer one")
    since = followed.follower.staleness_s() or 0.0
    asked = len(daemon.asked)
    wait_until(lambda: len(daemon.asked) > asked + 5, DEADLINE_S, "it asks again and again")
    assert (followed.follower.staleness_s() or 0.0) > since


def wrong_checksum(result: dict[str, Any], payload: list[bytes]) -> None:
    result["checksum"] = "0" * 32


def wrong_size(result: dict[str, Any], payload: list[bytes]) -> None:
    payload.append(b"x")


def no_version(result: dict[str, Any], payload: list[bytes]) -> None:
    del result["version"]


def wrong_boot(result: dict[str, Any], payload: list[bytes]) -> None:
    result["boot"] = "unheard of"
    result["recipe"] = None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_checksum, "checkpoint_damaged"),
        (wrong_size, "bad_size"),
        (no_version, "bad_header"),
        (wrong_boot, "unreachable"),
    ],
)
def test_a_bad_answer_is_counted_and_the_last_snapshot_stays(
    daemon: ScriptedDaemon,
    follow: Callable[..., Followed],
    spoil: Callable[[dict[str, Any], list[bytes]], None],
    reason: str,
) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)
    daemon.spoil = spoil
    daemon.version = 2
    wait_until(lambda: followed.failed(reason) >= 1, DEADLINE_S, "it is counted")
    assert followed.holds("boot-1", 1)
    daemon.spoil = lambda result, payload: None
    followed.await_holds("boot-1", 2)
    wait_until(lambda: followed.follower.trouble is None, DEADLINE_S, "the trouble is over")


def test_a_daemon_with_other_images_is_refused_with_a_clear_error(
    daemon: ScriptedDaemon, follow: Callable[..., Followed], caplog: pytest.LogCaptureFixture
) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)
    other = make_recipe("fast", image_shape=[5, 5], widths=[4], labels=LABELS)
    daemon.recipe = other
    with caplog.at_level(logging.ERROR):
        daemon.restart("boot-2", 1)  # the welcome that it has is of the daemon before
        daemon.spoil = lambda result, payload: result.update(recipe=other.model_dump(mode="json"))
        wait_until(lambda: followed.failed("checkpoint_incompatible") >= 2, DEADLINE_S, "it is refused")
    assert "has images of shape [5, 5] and 10 labels, and this replica serves [4, 4] and 10" in caplog.text
    assert len(caplog.records) == 1, "it is logged once"
    assert followed.holds("boot-1", 1)
    assert isinstance(followed.follower.trouble, CheckpointIncompatible)


@pytest.mark.parametrize("code", ["busy", "unavailable"])
def test_a_daemon_that_is_busy_or_stops_is_asked_again(
    daemon: ScriptedDaemon, follow: Callable[..., Followed], code: str
) -> None:
    daemon.error = code
    followed = follow()
    wait_until(lambda: followed.failed(code) >= 2, DEADLINE_S, "it asks again")
    daemon.error = ""
    followed.await_holds("boot-1", 1)


def test_codes_that_a_daemon_invents_share_one_reason(
    daemon: ScriptedDaemon, follow: Callable[..., Followed], caplog: pytest.LogCaptureFixture
) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)
    for code in ("invented", "invented-too"):
        daemon.error, before = code, followed.failed("refused")
        wait_until(lambda: followed.failed("refused") > before, DEADLINE_S, "it is counted")  # noqa: B023
    assert "invented" not in str(list(followed.metrics.registry.collect()))
    (line,) = [each for each in caplog.messages if each.startswith("the daemon is not followed now")]
    assert "reason=refused error='what (invented)' hint='how'" in line


def test_an_answer_that_is_on_its_way_for_long_does_not_look_like_a_daemon_that_is_gone(
    daemon: ScriptedDaemon, follow: Callable[..., Followed], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = follow()
    followed.await_holds("boot-1", 1)
    monkeypatch.setattr(follower_module, "_SILENT_S", 0.1)
    may_answer = threading.Event()

    def hold(result: dict[str, Any], payload: list[bytes]) -> None:
        may_answer.wait(DEADLINE_S)

    daemon.spoil, asked = hold, len(daemon.asked)
    wait_until(lambda: len(daemon.asked) > asked, DEADLINE_S, "it waits for an answer")
    answered_at = followed.follower._answered_at
    wait_until(lambda: time.monotonic() - answered_at > 0.5, DEADLINE_S, "the answer is late")
    assert followed.follower._answered_at == answered_at
    assert not followed.follower.is_gone()
    assert followed.value("connected") == 1
    daemon.spoil = lambda result, payload: None
    may_answer.set()
    daemon.error = "internal"
    wait_until(followed.follower.is_gone, DEADLINE_S, "errors are no usable answers")
    daemon.error = ""
    wait_until(lambda: not followed.follower.is_gone(), DEADLINE_S, "it answers again")
    daemon.scripted.close()
    wait_until(followed.follower.is_gone, DEADLINE_S, "the connection is lost")


def test_a_daemon_that_knows_no_snapshots_is_an_error_at_the_start(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    daemon.error = "bad_header"
    followed = follow()
    wait_until(lambda: followed.follower.failure is not None, DEADLINE_S, "it gives up")
    assert isinstance(followed.follower.failure, RequestRefused)


def test_a_recipe_with_parts_that_are_not_here_is_an_error_at_the_start(
    daemon: ScriptedDaemon, follow: Callable[..., Followed]
) -> None:
    def spoil(result: dict[str, Any], payload: list[bytes]) -> None:
        result["recipe"]["parts"] = ["my_parts"]
        result["recipe"]["layers"][0]["activation"] = {"kind": "of_my_parts"}

    daemon.spoil = spoil
    followed = follow()
    wait_until(lambda: followed.follower.failure is not None, DEADLINE_S, "it gives up")
    assert isinstance(followed.follower.failure, ConfigError)
    assert "my_parts" in followed.follower.failure.hint


def test_it_asks_no_more_often_than_it_may(daemon: ScriptedDaemon, follow: Callable[..., Followed]) -> None:
    followed = follow(every_s=0.2)
    began = time.monotonic()
    followed.await_holds("boot-1", 1)
    wait_until(lambda: len(daemon.asked) >= 4, DEADLINE_S, "it has asked a few times")
    assert time.monotonic() - began >= 3 * 0.2 * 0.9


def test_a_client_gets_a_snapshot_and_what_is_known_about_it(daemon: ScriptedDaemon) -> None:
    with Control(daemon.scripted.endpoint) as control:
        info, payload = control.snapshot(after=None, wait_s=0.0, recipe=True, timeout_s=DEADLINE_S)
        assert (info.boot, info.version, info.bytes) == ("boot-1", 1, sum(map(len, payload)))
        assert info.recipe == RECIPE.model_dump(mode="json")
        info, payload = control.snapshot(after=("boot-1", 1), wait_s=0.0, timeout_s=DEADLINE_S)
        assert (info.bytes, payload) == (0, [])
