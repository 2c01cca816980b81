"""`ffstream replay` with a daemon in this process: the checks before the first sample, drift, and resuming."""

import io
import json
import signal
import sqlite3
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ffstream.cli import main
from ffstream.cli.output import progress_bar
from ffstream.cli.resuming import SPAN, fingerprint, place
from ffstream.cli.streaming import ErrorPoller, Interrupt, Sender
from ffstream.client import Producer
from ffstream.data import Split, batches, label_permutation_at, load
from ffstream.data.idx import write_idx
from tests.harness.commands import CLI
from tests.in_process import Running
from tests.support import wait_until
from tests.unit.client.scripted import Scripted

WAIT_S = 60.0
SAMPLES = 600
NAME = "camera"


def write_folder(
    folder: Path,
    *,
    first_label: int = 0,
    classes: int = 4,
    brightest: int = 255,
    shape: tuple[int, ...] = (4, 4),
) -> Split:
    """Writes a data set of random images with shuffled labels. Returns its training split."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for prefix in ("train", "t10k"):
        labels = (rng.permutation(SAMPLES) % classes + first_label).astype(np.uint8)
        pixels = rng.integers(0, brightest, (SAMPLES, *shape), np.uint8, endpoint=True)
        write_idx(folder / f"{prefix}-images-idx{pixels.ndim}-ubyte", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return load(str(folder)).train


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """A daemon for 16 pixels and 4 labels. It is paused, so its journal keeps every sample."""
    with Running(tmp_path / "state") as daemon:
        daemon.control().request("pause")
        yield daemon


@pytest.fixture
def replay(running: Running) -> Callable[..., Result]:
    def run(folder: Path, *arguments: str) -> Result:
        every = ["replay", str(folder), "--to", running.daemon.learn.endpoint, "--json", *arguments]
        return CliRunner().invoke(main, every, catch_exceptions=False)

    return run


def stored(running: Running) -> list[tuple[int, list[int]]]:
    """Number and labels of each message in the journal, in order of sequence numbers."""
    connection = sqlite3.connect(running.state / "journal.sqlite")
    try:
        rows = connection.execute("SELECT n, labels FROM messages ORDER BY first_seq").fetchall()
    finally:
        connection.close()
    return [(n, np.frombuffer(labels, "<u2").tolist()) for n, labels in rows]


def stored_images(running: Running) -> bytes:
    connection = sqlite3.connect(running.state / "journal.sqlite")
    try:
        return b"".join(row for (row,) in connection.execute("SELECT images FROM messages ORDER BY first_seq"))
    finally:
        connection.close()


def stored_labels(running: Running) -> list[int]:
    return [label for _, labels in stored(running) for label in labels]


# --- checks before the first sample ---------------------------------------------------------------------------------


def test_labels_out_of_range_are_an_error_before_anything_is_sent(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    split = write_folder(tmp_path / "letters", first_label=1)
    first = int(np.argmax(split.labels == 4))
    refused = replay(tmp_path / "letters")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines() == [
        f"error: the labels are 1 to 4, the daemon takes 0 to 3: 150 of 600 are out of range, first label 4 at index "
        f"{first}; nothing was sent [label_out_of_range]",
        "hint: --label-offset -1 makes them 0 to 3",
    ]
    assert stored(running) == []

    done = replay(tmp_path / "letters", "--label-offset", "-1", "--order", "as_is")
    assert (done.exit_code, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert (result["sent"], result["acked"], result["rejected"]) == (600, 600, 0)
    assert stored_labels(running) == (split.labels - 1).tolist()


def test_more_classes_than_the_daemon_has_are_an_error(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    write_folder(tmp_path / "many", classes=6)
    refused = replay(tmp_path / "many")
    assert refused.exit_code == 1
    assert "network.labels=6" in refused.stderr
    assert stored(running) == []


def test_an_offset_that_makes_labels_negative_is_an_error(replay: Callable[..., Result], tmp_path: Path) -> None:
    write_folder(tmp_path / "good")
    refused = replay(tmp_path / "good", "--label-offset", "-1")
    assert refused.exit_code == 1
    assert "--label-offset -1 turns the labels 0 to 3 into -1 to 2" in refused.stderr
    assert "--label-offset 0 makes the lowest one 0" in refused.stderr


@pytest.mark.parametrize("shape", [(5, 5), (2, 8), (1, 4, 4), (4, 4, 1), (15,)])
def test_images_of_another_shape_are_an_error_before_anything_is_sent(
    running: Running, replay: Callable[..., Result], tmp_path: Path, shape: tuple[int, ...]
) -> None:
    write_folder(tmp_path / "data", shape=shape)
    at = ["evaluate", str(tmp_path / "data"), "--at", running.daemon.predict.endpoint]
    for failed in (replay(tmp_path / "data"), CliRunner().invoke(main, at)):
        assert failed.exit_code == 1
        error, hint = failed.stderr.splitlines()
        assert error == (
            f"error: the data set's images have the shape {list(shape)}, the daemon takes [4, 4]; nothing was sent "
            "[bad_shape]"
        )
        assert hint.startswith("hint: the network takes [4, 4], or flat [16]")
        assert f"network.image_shape={list(shape)}" in hint
    assert stored(running) == []
    assert running.metric("predictions_total") == 0


@pytest.mark.parametrize(
    ("image_shape", "shape"),
    [([4, 4], (4, 4)), ([4, 4], (16,)), ([16], (4, 4)), ([4, 2, 2], (4, 2, 2)), ([4, 2, 2], (16,))],
)
def test_images_travel_in_their_shape_or_flat(tmp_path: Path, image_shape: list[int], shape: tuple[int, ...]) -> None:
    split = write_folder(tmp_path / "data", shape=shape)
    with Running(tmp_path / "state", f"network.image_shape={image_shape}") as daemon:
        daemon.control().request("pause")
        to = ["replay", str(tmp_path / "data"), "--to", daemon.daemon.learn.endpoint, "--order", "as_is"]
        assert CliRunner().invoke(main, to, catch_exceptions=False).exit_code == 0
        at = ["evaluate", str(tmp_path / "data"), "--at", daemon.daemon.predict.endpoint, "--timeout", str(WAIT_S)]
        assert CliRunner().invoke(main, at, catch_exceptions=False).exit_code == 0
        status = daemon.control().status()
        assert (status["image_shape"], status["labels"], status["accepted"]) == (image_shape, 4, SAMPLES)
        assert stored_images(daemon) == split.images.tobytes()


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        ({"brightest": 1}, "no pixel exceeds 1,"),
        ({"brightest": 16}, "no pixel exceeds 16,"),
        ({"first_label": 1, "classes": 3}, "the labels are 1 to 3, none is 0: --label-offset -1 makes them 0 to 2"),
    ],
)
def test_suspicious_data_causes_a_warning(
    replay: Callable[..., Result], tmp_path: Path, data: dict[str, Any], warning: str
) -> None:
    write_folder(tmp_path / "data", **data)
    done = replay(tmp_path / "data", "--limit", "8")
    assert done.exit_code == 0
    assert done.stderr.startswith(f"warning: {warning}")


def test_evaluate_accepts_the_same_label_offset(running: Running, tmp_path: Path) -> None:
    write_folder(tmp_path / "letters", first_label=1)
    every = ["evaluate", str(tmp_path / "letters"), "--at", running.daemon.predict.endpoint, "--json"]
    done = [CliRunner().invoke(main, [*every, "--label-offset", offset]) for offset in ("-1", "3")]
    errors = [json.loads(each.stdout)["error"] for each in done]
    assert errors[0] < errors[1] == 1.0, "no prediction is a label from 4 to 7"
    assert done[0].stderr == ""
    assert done[1].stderr.startswith("warning: the labels are 4 to 7, the daemon knows 0 to 3: ")


# --- images by class, and splits ------------------------------------------------------------------------------------


def write_images(path: Path) -> dict[str, dict[bytes, int]]:
    """Writes a zip of 4×4 colour images, one class after the other. Returns the label of each image of each split."""
    rng = np.random.default_rng(3)
    images: dict[str, dict[bytes, int]] = {"train": {}, "test": {}}
    with zipfile.ZipFile(path, "w") as archive:
        for split, of_split in images.items():
            for label, name in enumerate(("ant", "bee", "cat", "dog")):
                for number in range(10):
                    pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
                    of_split[pixels.tobytes()] = label
                    file = io.BytesIO()
                    Image.fromarray(pixels).save(file, "PNG")
                    archive.writestr(f"{split}/{name}/{number}.png", file.getvalue())
    return images


def test_a_zip_of_colour_images_by_class_is_streamed_shuffled_and_evaluated(tmp_path: Path) -> None:
    images = write_images(tmp_path / "insects.zip")
    with Running(tmp_path / "state", "network.image_shape=[4,4,3]") as daemon:
        daemon.control().request("pause")
        to = ["replay", str(tmp_path / "insects.zip"), "--to", daemon.daemon.learn.endpoint]
        done = CliRunner().invoke(main, to, catch_exceptions=False)
        assert done.exit_code == 0
        assert "note: labels: 0 ant, 1 bee, 2 cat, 3 dog\n" in done.stderr
        labels, sent = stored_labels(daemon), stored_images(daemon)
        each = [sent[at : at + 48] for at in range(0, len(sent), 48)]
        assert dict(zip(each, labels, strict=True)) == images["train"]
        assert len(set(labels[:12])) == 4, "not one class after the other"
        evaluate = ["evaluate", str(tmp_path / "insects.zip"), "--at", daemon.daemon.predict.endpoint, "--json"]
        evaluate += ["--timeout", str(WAIT_S)]
        for options, n in (
            ([], 40),
            (["--split", "validation"], 8),
            (["--split", "train"], 40),
            (["--limit", "4"], 4),
        ):
            at = [*evaluate, *options]
            assert json.loads(CliRunner().invoke(main, at, catch_exceptions=False).stdout)["n"] == n


def test_training_samples_held_out_for_validation_are_not_sent(tmp_path: Path) -> None:
    images = write_images(tmp_path / "insects.zip")
    with Running(tmp_path / "state", "network.image_shape=[4,4,3]") as daemon:
        daemon.control().request("pause")
        sent = []
        for split in ("train_without_validation", "validation"):
            to = ["replay", str(tmp_path / "insects.zip"), "--to", daemon.daemon.learn.endpoint, "--split", split]
            assert CliRunner().invoke(main, to, catch_exceptions=False).exit_code == 0
            sent.append(stored_images(daemon))
    pixels = [sent[1][at : at + 48] for at in range(0, len(sent[1]), 48)]
    assert len(sent[0]) == 32 * 48
    assert sorted(pixels) == sorted(images["train"]), "both together are the training split"


# --- drift ----------------------------------------------------------------------------------------------------------


def test_a_label_drift_changes_all_labels_from_its_sample_on(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    split = write_folder(tmp_path / "data")
    done = replay(
        tmp_path / "data", "--order", "as_is", "--drift", "label_permutation", "--drift-at", "250", "--seed", "7"
    )
    assert done.exit_code == 0
    labels = stored_labels(running)
    assert labels[:250] == split.labels[:250].tolist()
    assert labels == label_permutation_at(250, classes=4, seed=7)(0, split.labels).tolist()
    assert not any(now == before for now, before in zip(labels[250:], split.labels[250:].tolist(), strict=True))


@pytest.mark.parametrize("given", [["--drift", "label_permutation"], ["--drift-at", "3"]])
def test_a_drift_needs_both_of_its_options(replay: Callable[..., Result], tmp_path: Path, given: list[str]) -> None:
    write_folder(tmp_path / "data")
    refused = replay(tmp_path / "data", *given)
    assert refused.exit_code == 2
    assert "--drift and --drift-at must be given together" in refused.stderr


def test_a_drift_behind_the_last_sample_causes_a_warning(replay: Callable[..., Result], tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    done = replay(tmp_path / "data", "--drift", "label_permutation", "--drift-at", "600")
    assert done.exit_code == 0
    assert "--drift-at 600 is after the last of 600 samples: there is no drift" in done.stderr


# --- resuming -------------------------------------------------------------------------------------------------------


def test_a_replay_killed_ten_times_sends_every_sample_once(running: Running, tmp_path: Path) -> None:
    split = write_folder(tmp_path / "data")
    command = [*CLI, "replay", str(tmp_path / "data"), "--to", running.daemon.learn.endpoint, "--client", NAME]
    command += ["--batch", "3", "--passes", "2", "--json"]
    accepted = 0
    for _ in range(10):
        killed = subprocess.Popen([*command, "--rate", "150"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            wait_until(lambda: running.daemon.journal.head.seq > accepted, WAIT_S, "samples are stored")  # noqa: B023
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.communicate(timeout=WAIT_S)
        accepted = running.daemon.journal.head.seq
    assert accepted < 2 * SAMPLES, "it was killed in the middle"
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True)
    result = json.loads(done.stdout)
    assert 0 < result["sent"] == result["acked"] == 2 * SAMPLES - result["resumed"]
    assert f"resuming {NAME}: {result['resumed']:,} of 1,200 samples were sent before" in done.stderr

    wanted = [labels.tolist() for _, labels in batches(split, 3, passes=2)]
    rows = stored(running)
    assert [labels for _, labels in sorted(rows)] == wanted
    assert len({n for n, _ in rows}) == len(rows) == 400
    control = running.control()
    control.request("resume")
    assert control.wait_idle(WAIT_S)["learned"] == 2 * SAMPLES


def test_a_replay_interrupted_by_ctrl_c_is_resumed_by_the_same_command(running: Running, tmp_path: Path) -> None:
    split = write_folder(tmp_path / "data")
    command = [*CLI, "replay", str(tmp_path / "data"), "--to", running.daemon.learn.endpoint, "--client", NAME]
    command += ["--batch", "4", "--json"]
    first = subprocess.Popen([*command, "--rate", "100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: running.daemon.journal.head.seq > 0, WAIT_S, "samples are stored")
        first.send_signal(signal.SIGINT)
        stdout, stderr = first.communicate(timeout=WAIT_S)
    finally:
        first.kill()
    assert first.returncode == 130
    assert "run the same command to continue; --restart begins again" in stderr
    acked = json.loads(stdout)["acked"]
    result = json.loads(subprocess.run(command, capture_output=True, timeout=WAIT_S, check=True).stdout)
    assert result["resumed"] == acked
    assert result["sent"] == result["acked"] == SAMPLES - acked
    assert [labels for _, labels in stored(running)] == [labels.tolist() for _, labels in batches(split, 4)]


def test_a_resumed_replay_sends_a_message_that_is_missing_in_the_middle(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    """The first replay was killed after a message was rejected for now and a later one was stored."""
    split = write_folder(tmp_path / "data")
    decides = {"batch": 10, "seed": 0, "order": "shuffled", "drift": None, "drift_at": None}
    first = place(NAME, 1, fingerprint(split, decides), restart=False).n
    wanted = [labels.tolist() for _, labels in batches(split, 10)]
    peer = running.peer()
    for at, (pixels, labels) in enumerate(islice(batches(split, 10), 5)):
        if at in (1, 3):
            continue
        peer.samples(
            first + at,
            client=NAME,
            base=first,
            count=10,
            labels=labels.astype("<u2").tobytes(),
            payload=[pixels.tobytes()],
        )
        peer.acked(1)
    done = replay(tmp_path / "data", "--client", NAME, "--batch", "10")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert (result["resumed"], result["sent"], result["acked"]) == (50, 550, 550)
    assert [labels for _, labels in sorted(stored(running))] == wanted


def test_no_message_is_sent_far_after_the_lowest_unacked_one() -> None:
    """Otherwise a resumed replay would not send every missing message again."""

    def ack_the_lowest_last(daemon: Scripted, fields: dict[str, Any]) -> None:
        if fields["n"] % 5 != 1:
            daemon.ack(fields["n"], credit=1000)
        if fields["n"] % 5 == 0:
            daemon.ack(fields["n"] - 4, credit=1000)

    daemon = Scripted(ack_the_lowest_last, credit=1000)
    stream = [(np.full((1, 6), n, np.uint8), np.zeros(1, np.uint8)) for n in range(200)]
    try:
        with Producer(daemon.endpoint, client=NAME) as producer, progress_bar("rate", "error", quiet=True) as bar:
            task = bar.add_task("", rate="", error="")
            error = ErrorPoller("", None, enabled=False)
            Sender(producer, Interrupt(), None, span=5).run(stream, bar, task, error)
        sent = daemon.of_type("samples")
    finally:
        daemon.close()
    assert [fields["n"] for fields in sent] == list(range(1, 201))
    assert max(fields["n"] - fields["base"] for fields in sent) == 4


def test_a_name_resumes_the_same_stream_only_unless_it_is_restarted(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    split = write_folder(tmp_path / "data")
    write_folder(tmp_path / "other", classes=2)
    assert replay(tmp_path / "data", "--client", NAME, "--limit", "256").exit_code == 0

    # The same command has nothing left to send. Without the limit it continues.
    result = json.loads(replay(tmp_path / "data", "--client", NAME, "--limit", "256").stdout)
    assert (result["sent"], result["acked"], result["resumed"]) == (0, 0, 256)
    assert json.loads(replay(tmp_path / "data", "--client", NAME).stdout)["sent"] == SAMPLES - 256
    assert stored_labels(running) == [label for _, labels in batches(split, 64) for label in labels.tolist()]

    # Any option that changes the stream is an error with this name.
    for folder, *options in (
        ("other",),
        ("data", "--seed", "1"),
        ("data", "--batch", "32"),
        ("data", "--order", "as_is"),
        ("data", "--drift", "label_permutation", "--drift-at", "5"),
    ):
        refused = replay(tmp_path / folder, "--client", NAME, *options)
        assert refused.exit_code == 2, options
        assert "'camera' has sent other data" in refused.stderr
        assert "--restart" in refused.stderr
    # 600 samples end in a batch of 24; a second pass would have 64 there.
    refused = replay(tmp_path / "data", "--client", NAME, "--passes", "2")
    assert refused.exit_code == 2
    assert "it had another --limit or --passes" in refused.stderr
    assert len(stored_labels(running)) == SAMPLES

    for count, options in enumerate(([], ["--seed", "1"], ["--seed", "1"]), 2):
        result = json.loads(replay(tmp_path / "data", "--client", NAME, "--restart", *options).stdout)
        assert (result["sent"], result["acked"], result["resumed"]) == (SAMPLES, SAMPLES, 0)
        assert len(stored_labels(running)) == count * SAMPLES


def test_a_name_that_another_program_has_used_needs_restart(
    running: Running, replay: Callable[..., Result], tmp_path: Path
) -> None:
    write_folder(tmp_path / "data")
    running.peer().samples(1, client=NAME)
    wait_until(lambda: running.daemon.journal.head.seq == 1, WAIT_S, "the sample is stored")
    refused = replay(tmp_path / "data", "--client", NAME)
    assert refused.exit_code == 2
    assert "'camera' has sent other data" in refused.stderr
    assert replay(tmp_path / "data", "--client", NAME, "--restart").exit_code == 0
    assert len(stored_labels(running)) == SAMPLES + 1


def test_restart_without_a_name_is_an_error(replay: Callable[..., Result], tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    refused = replay(tmp_path / "data", "--restart")
    assert refused.exit_code == 2
    assert "needs --client" in refused.stderr


def test_place_counts_runs_up_to_the_last_message_number() -> None:
    mark, n = 5, 1
    for run in range(1, 1 << 14):
        n = place(NAME, n + 1, mark, restart=True).n
        assert n >> 48 == run
    assert n < 2**62
    assert place(NAME, n + SPAN, mark, restart=False).position == SPAN
