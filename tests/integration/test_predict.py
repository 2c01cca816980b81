"""`ffstream predict` prints what the daemon answers."""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from tests.harness.commands import CLI, COMMAND_S, run_cli, run_json
from tests.in_process import Running, feed, images


def test_pictures_and_arrays_get_the_answers_of_the_predict_socket(daemon: Running, tmp_path: Path) -> None:
    feed(daemon, 64)
    given = images(3, 4)
    Image.fromarray(given[0].reshape(4, 4)).save(tmp_path / "one.png")
    np.save(tmp_path / "two.npy", given[1:])
    endpoint = daemon.daemon.predict.endpoint
    printed = run_json("predict", str(tmp_path / "one.png"), str(tmp_path / "two.npy"), "--at", endpoint)
    answers = printed["predictions"]
    assert [each["image"] for each in answers] == [
        str(tmp_path / "one.png"),
        f"{tmp_path / 'two.npy'}[0]",
        f"{tmp_path / 'two.npy'}[1]",
    ]
    want = daemon.predictor().predict(given)
    for each, label, goodness in zip(answers, want.labels, want.goodness, strict=True):
        assert np.array_equal(np.float32(each["scores"]), goodness)
        assert (each["label"], each["version"], each["seq"]) == (int(label), want.version, want.seq)


def test_a_person_gets_a_line_for_each_image(daemon: Running, tmp_path: Path) -> None:
    np.save(tmp_path / "two.npy", images(2, 4))
    command = [*CLI, "predict", "-", "--at", daemon.daemon.predict.endpoint]
    with (tmp_path / "two.npy").open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stderr
    want = daemon.predictor().predict(images(2, 4))
    for at_line, line in enumerate(done.stdout.splitlines()):
        assert line.startswith(f"stdin[{at_line}]: {want.labels[at_line]} (scores: {want.labels[at_line]} ")


def test_a_picture_of_another_size_says_what_to_do(daemon: Running, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "photo.jpg")
    at = ("predict", str(tmp_path / "photo.jpg"), "--at", daemon.daemon.predict.endpoint)
    done = run_cli(*at)
    assert done.returncode == 1
    assert "the picture is 30×40, the network takes 4×4 [bad_shape]" in done.stderr
    assert "--resize" in done.stderr
    assert run_cli(*at, "--resize", "--invert").returncode == 0
