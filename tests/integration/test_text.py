"""A text as a stream: `replay --as text` sends its windows in order, `evaluate --as text` measures bits."""

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ffstream.cli import main
from ffstream.data import Dataset, load_text
from tests.in_process import ANY_NETWORK, WAIT_S, Running
from tests.support import wait_until

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog."]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 400))  # no one can know the next word, but the rest of one
SETTINGS = ("network.preset=serial", "network.widths=[24,24]", "network.batch_size=16", "network.replay_buffer=16")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state", *SETTINGS, base=ANY_NETWORK) as daemon:
        yield daemon


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def replay(running: Running, book: Path, *options: object) -> Any:
    done = run("replay", book, "--as", "text", "--to", running.daemon.learn.endpoint, "--json", *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def stored_labels(running: Running) -> list[int]:
    connection = sqlite3.connect(running.state / "journal.sqlite")
    try:
        rows = connection.execute("SELECT labels FROM messages ORDER BY first_seq").fetchall()
    finally:
        connection.close()
    return [label for (labels,) in rows for label in np.frombuffer(labels, "<u2").tolist()]


def test_a_text_is_sent_in_its_order_pass_after_pass(running: Running, book: Path) -> None:
    running.control().request("pause")
    labels = load_text(str(book), 10).train.labels.tolist()
    assert replay(running, book, "--passes", 2)["acked"] == 2 * len(labels)
    assert stored_labels(running) == labels * 2
    replay(running, book, "--order", "shuffled")
    shuffled = stored_labels(running)[2 * len(labels) :]
    assert sorted(shuffled) == sorted(labels)
    assert shuffled != labels


def test_what_was_learned_from_a_text_is_evaluated_on_the_rest_of_it(running: Running, book: Path) -> None:
    dataset = load_text(str(book), 10)
    endpoint = running.daemon.predict.endpoint
    before = evaluated(endpoint, book)
    assert before["bits_per_character"] == pytest.approx(math.log2(30), abs=0.05), "nothing is known yet"
    replay(running, book, "--passes", 3)
    running.control().wait_idle(WAIT_S)
    wait_until(lambda: running.control().status()["prequential_error"] is not None, WAIT_S, "samples are evaluated")
    after = evaluated(endpoint, book)
    assert after["n"] == len(dataset.test)
    assert after["error"] < 0.5
    assert after["bits_per_character"] == pytest.approx(bits(running, dataset), rel=1e-4)
    assert 0.3 < after["bits_per_character"] < 2.5
    shown = run("evaluate", book, "--as", "text", "--at", endpoint)
    assert f"{after['bits_per_character']:.3f} bits per character" in shown.stdout


def evaluated(endpoint: str, book: Path) -> Any:
    return json.loads(run("evaluate", book, "--as", "text", "--at", endpoint, "--json").stdout)


def bits(running: Running, dataset: Dataset) -> float:
    scores_BL = torch.from_numpy(np.array(running.predictor().predict(dataset.test.images, WAIT_S).goodness))
    loss = torch.nn.functional.cross_entropy(scores_BL, torch.from_numpy(dataset.test.labels).long())
    return float(loss) / math.log(2)


def test_options_of_a_text_that_do_not_fit_are_rejected(running: Running, book: Path, tmp_path: Path) -> None:
    to = ("--to", running.daemon.learn.endpoint)
    for arguments, said in (
        (("--window", 5), "--window needs --as text"),
        (("--as", "text", "--data", tmp_path), "--as text reads one file"),
        (("--as", "text", "--window", 5), "the data set's images have the shape [5, 30], the daemon takes [10, 30]"),
        (("--as", "text", "--label-offset", 3), "the labels are 3 to 31, the daemon takes 0 to 29"),
    ):
        refused = run("replay", book, *to, *arguments)
        assert refused.exit_code != 0, arguments
        assert said in refused.stderr
    assert running.daemon.journal.head.seq == 0
