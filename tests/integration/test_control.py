"""The control commands: status, pause, wait_idle, checkpoint, drain, stop and rollback."""

import re
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from ffstream import __version__
from ffstream.errors import (
    RequestRefused,
)
from tests import wire_spec
from tests.in_process import WAIT_S, Running, Start, feed, images, labels
from tests.support import Watch, hold_at, wait_until


def test_the_status_has_the_keys_that_scripts_read(daemon: Running) -> None:
    before = daemon.control().status()
    assert before["prequential_error"] is before["prequential_error_total"] is None
    feed(daemon, 40)
    wait_until(lambda: daemon.control().status()["prequential_error"] is not None, WAIT_S, "samples are evaluated")
    status = daemon.control().status()
    keys = {"accepted", "learned", "applied_seq", "prequential_error", "prequential_error_total", "phase", "stages"}
    keys |= {"prequential_window_samples", "live_error"}
    assert keys <= set(status)
    assert (status["state"], status["version"], status["phase"]) == ("ready", __version__, "interleaved")
    assert 0 <= status["prequential_error"] <= 1
    assert 0 <= status["prequential_error_total"] <= 1
    assert [stage["name"] for stage in status["stages"]] == ["ff-stage-0", "ff-stage-1"]
    assert [stage["layers"] for stage in status["stages"]] == [[0], [1]]
    assert status["endpoints"] == {
        "learn": daemon.daemon.learn.endpoint,
        "predict": daemon.daemon.predict.endpoint,
        "control": daemon.daemon.control.endpoint,
        "http": daemon.daemon.http.address,
    }
    assert status["checkpoint_seq"] == 0
    assert status["snapshot"]["age_s"] >= 0


def known_commands(running: Running) -> set[str]:
    with pytest.raises(RequestRefused) as caught:
        running.control().request("no such command")
    assert caught.value.remote_code == "bad_header"
    return set(re.findall(r"\w+", caught.value.hint.removeprefix("known commands are")))


def test_the_daemon_knows_exactly_the_commands_of_the_specification(daemon: Running) -> None:
    assert known_commands(daemon) == wire_spec.commands()


def test_a_paused_daemon_acks_and_predicts_but_does_not_learn_until_it_is_resumed(daemon: Running) -> None:
    control = daemon.control()
    assert control.request("pause") == {"paused": True}
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert (control.status()["state"], control.status()["backlog"]) == ("paused", 8)
    assert daemon.metric("learning_paused") == 1
    for command in ("wait_idle", "drain"):
        with pytest.raises(RequestRefused, match="paused, and 8 samples are not learned") as caught:
            control.request(command, {"timeout_s": 3600})
        assert (caught.value.remote_code, caught.value.hint) == ("paused", "ffstream resume, then again")
    assert control.status()["state"] == "paused", "a rejected drain must not change the state"
    assert len(daemon.predictor().predict(images(1)).labels) == 1, "predictions continue"
    assert control.request("resume") == {"paused": False}
    assert control.wait_idle(WAIT_S)["learned"] == 8
    assert control.status()["state"] == "ready"
    assert daemon.metric("learning_paused") == 0


def test_learning_stays_paused_after_a_restart(start: Start) -> None:
    running = start()
    feed(running, 40)
    running.control().request("pause")
    for _ in range(2):
        running.restart()
        status = running.control().status()
        assert (status["state"], status["paused"], status["learned"]) == ("paused", True, 40)
        assert running.metric("learning_paused") == 1
    producer = running.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert running.control().status()["backlog"] == 8
    running.control().request("resume")
    assert running.control().wait_idle(WAIT_S)["learned"] == 48
    running.restart()
    assert running.control().status()["state"] == "ready"


def test_a_paused_daemon_that_has_learned_everything_can_be_drained(daemon: Running) -> None:
    feed(daemon, 40)
    daemon.control().request("pause")
    assert daemon.control().request("drain")["learned"] == 40


def test_wait_idle_fails_at_its_deadline(daemon: Running, watched: Watch) -> None:
    reached, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    assert reached.wait(WAIT_S)
    with pytest.raises(RequestRefused, match=r"8 samples are not learned after 0\.05 s") as caught:
        daemon.control().wait_idle(0.05)
    assert caught.value.remote_code == "deadline_exceeded"
    release.set()
    assert daemon.control().wait_idle(WAIT_S)["learned"] == 8


@pytest.mark.parametrize("timeout", [-1, "soon", None, 1e9, float("nan"), [1]])
def test_wait_idle_rejects_an_invalid_timeout(daemon: Running, timeout: Any) -> None:
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("wait_idle", {"timeout_s": timeout})
    assert (caught.value.remote_code, caught.value.hint) == ("bad_header", "0 to 86400")


def test_wait_idle_returns_at_once_when_the_daemon_is_idle(daemon: Running) -> None:
    assert daemon.control().wait_idle(0)["learned"] == 0


def test_many_waiting_clients_do_not_block_other_requests(daemon: Running, watched: Watch) -> None:
    _, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(8), labels(8))
    producer.flush(WAIT_S)
    waiting = daemon.peer("control")
    for id in range(20):
        waiting.send("request", id=id, command="wait_idle", arguments={"timeout_s": 60})
    assert daemon.control().status()["backlog"] == 8
    release.set()
    assert {waiting.answer()["id"] for _ in range(20)} == set(range(20))


def test_a_checkpoint_is_written_on_request(daemon: Running) -> None:
    feed(daemon, 40)
    control = daemon.control()
    result = control.request("checkpoint")
    assert result["seq"] == 40
    assert result["bytes"] > 1000
    assert daemon.daemon.learner.checkpoints.store.seqs() == [40]
    assert control.status()["checkpoint_seq"] == 40
    assert control.request("checkpoint")["seq"] == 40, "a second request without new samples is no error"
    assert daemon.metric("checkpoint_last_seq") == 40
    assert daemon.metric("checkpoint_bytes") == result["bytes"]
    assert daemon.metric("checkpoint_failures_total") == 0


def test_all_of_several_checkpoint_requests_are_answered(daemon: Running) -> None:
    producer = daemon.producer()
    peer = daemon.peer("control")
    for id in range(30):
        producer.send(images(8, id), labels(8, id))
        peer.send("request", id=id, command="checkpoint", arguments={"timeout_s": WAIT_S})
    producer.flush(WAIT_S)
    answers = [peer.answer(2 * WAIT_S) for _ in range(30)]
    assert {answer["type"] for answer in answers} == {"reply"}
    assert {answer["id"] for answer in answers} == set(range(30))


def test_a_later_checkpoint_answers_a_request_for_an_earlier_one(
    daemon: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written before the waiting thread polls for the earlier one."""
    control = daemon.control()
    feed(daemon, 40)
    control.request("checkpoint")
    earlier: Future[int] = Future()
    earlier.set_result(24)
    monkeypatch.setattr(daemon.daemon.learner.run.pipeline, "request_checkpoint", lambda: earlier)
    assert control.request("checkpoint", {"timeout_s": 1.0})["seq"] == 40


def test_a_failed_checkpoint_is_reported_and_learning_continues(daemon: Running) -> None:
    feed(daemon, 8)
    folder = daemon.state / "checkpoints"
    folder.rename(daemon.state / "away")
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("checkpoint")
    assert caught.value.remote_code == "unavailable"
    assert daemon.metric("checkpoint_failures_total") == 1
    (daemon.state / "away").rename(folder)
    feed(daemon, 8, seed=1)
    assert daemon.control().request("checkpoint")["seq"] == 16


def test_regular_checkpoints_are_written_and_the_journal_is_trimmed(start: Start) -> None:
    running = start("checkpoint.every_samples=40", "checkpoint.keep=2", "checkpoint.ladder_s=[]")
    store = running.daemon.learner.checkpoints.store
    for seed in range(4):
        feed(running, 80, seed=1000 * seed)
    wait_until(lambda: (store.seqs() or [0])[-1] >= 280, WAIT_S, "checkpoints are written")
    assert len(store.seqs()) <= 3
    oldest = store.seqs()[0]
    wait_until(lambda: running.stored()[0][2] > oldest - 8, WAIT_S, "rows below the oldest one are deleted")
    assert running.stored()[-1][2:] == (313, 8)


def test_the_config_command_returns_the_effective_options(start: Start) -> None:
    running = start("checkpoint.keep=7")
    options = running.control().request("config")["config"]
    assert options["checkpoint"]["keep"] == 7
    assert [layer["connection"]["units"] for layer in options["network"]["layers"]] == [32, 32]


def test_the_stop_command_ends_the_daemon_with_a_checkpoint(daemon: Running) -> None:
    feed(daemon, 40)
    assert daemon.control().request("stop") == {"stopping": True}
    thread = threading.Thread(target=daemon.daemon.wait)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()
    daemon.stop()
    assert daemon.daemon.learner.checkpoints.store.seqs() == [40]


def test_a_drain_rejects_new_samples_learns_the_acked_ones_and_stops(daemon: Running, watched: Watch) -> None:
    control = daemon.control()
    _, release = hold_at("learned", watched, WAIT_S)
    producer = daemon.producer()
    producer.send(images(40), labels(40))
    producer.flush(WAIT_S)
    peer, drain = daemon.peer(), daemon.peer("control")
    drain.send("request", id=1, command="drain", arguments={"timeout_s": WAIT_S})
    wait_until(lambda: control.status()["state"] == "draining", WAIT_S, "it is draining")
    peer.samples(1)
    answer = peer.answer()
    assert (answer["code"], answer["retry"]) == ("draining", True)
    release.set()
    result = drain.answer()
    assert (result["type"], result["result"]["learned"]) == ("reply", 40)
    thread = threading.Thread(target=daemon.daemon.wait)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("timeout_s", ["soon", -1, float("nan")])
def test_a_rejected_drain_does_not_change_the_state(daemon: Running, timeout_s: object) -> None:
    control = daemon.control()
    with pytest.raises(RequestRefused, match="timeout_s"):
        control.request("drain", {"timeout_s": timeout_s})
    assert control.status()["state"] == "ready"
    feed(daemon, 40)
    assert control.status()["learned"] == 40


# --- rollback -------------------------------------------------------------------------------------------------------


def test_a_rollback_does_not_interrupt_producers_and_predictors(start: Start) -> None:
    """Samples that are sent after the rollback are learned."""
    running = start("checkpoint.every_samples=40", "checkpoint.keep=100")
    producer, predictor, control = running.producer(), running.predictor(), running.control()
    answered: list[int] = []
    learned = 0
    stop = threading.Event()

    def predict() -> None:
        while not stop.is_set():
            answered.append(predictor.predict(images(1)).version)

    predicting = threading.Thread(target=predict)
    predicting.start()
    try:
        for at in range(60):
            producer.send(images(4, seed=at), labels(4, seed=at))
            if at == 20:
                producer.flush(WAIT_S)
                control.wait_idle(WAIT_S)
                control.request("checkpoint")  # a regular one may be replaced by a later one
            if at == 40:
                producer.flush(WAIT_S)
                learned = control.wait_idle(WAIT_S)["learned"]
                back = control.request("rollback", {"to": 90, "later": "skip"})
                assert (back["first"], back["last"], back["later"]) == (91, learned, "skipped")
        producer.flush(WAIT_S)
        status = control.wait_idle(WAIT_S)
    finally:
        stop.set()
        predicting.join(WAIT_S)
    assert (status["accepted"], status["applied_seq"]) == (240, 240)
    assert status["learned"] == 240 - status["skipped"] == 240 - (learned - 90)
    assert answered == sorted(answered), "versions only increase"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"to": -1},
        {"to": "7"},
        {"to": True},
        {"to": 1.0},
        *({"to": 0, "later": later} for later in ("forget", None, ["skip"], {"skip": 1})),
    ],
)
def test_a_rollback_with_invalid_arguments_is_rejected(daemon: Running, arguments: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as caught:
        daemon.control().request("rollback", arguments)
    assert caught.value.remote_code == "bad_header"
    assert caught.value.hint


def test_a_drift_detector_reports_permuted_labels(start: Start) -> None:
    """The whole way: an option, the stream, the prequential error, the metric."""
    running = start(
        "prequential.drift_detector=adwin", "prequential.busy_fraction=1", "prequential.queue_depth=100000"
    )
    pictures, known = images(16), labels(16)
    producer = running.producer()
    for message in range(400):
        producer.send(pictures, known if message < 250 else (known + 1) % 4)
    producer.flush(WAIT_S)
    running.control().wait_idle(WAIT_S)
    wait_until(lambda: running.metric("drifts_total") >= 1, WAIT_S, "the drift is found")
    assert running.metric("drift_last_seq") > 250 * 16
