"""The confusion matrix is that of the prequential window, and the latest mistakes are those that were made last."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from ffstream.ff.classifier import Prediction
from ffstream.serving.mistakes import LATEST_MAX, MATRIX_LABELS_MAX, Mistakes
from ffstream.util.error_record import WINDOW_SAMPLES, ErrorRecord


class Stream:
    """Predictions of random labels, counted beside `Mistakes` sample by sample."""

    def __init__(self, labels: int, seed: int = 0) -> None:
        self.labels = labels
        self.mistakes = Mistakes(labels)
        self.record = ErrorRecord()
        self.batches: list[list[tuple[int, int, int]]] = []  # sequence number, label, predicted
        self._generator = torch.Generator().manual_seed(seed)
        self._seq = 0

    def add(self, size: int, *, right: bool = False) -> None:
        labels_B, predicted_B = torch.randint(0, self.labels, (2, size), generator=self._generator)
        if right:
            predicted_B = labels_B
        seqs_B = torch.arange(self._seq + 1, self._seq + size + 1)
        self._seq += size
        scores_BL = torch.nn.functional.one_hot(predicted_B, self.labels).float()
        wrong_B = labels_B != predicted_B
        self.mistakes.add(images(seqs_B), labels_B, Prediction(predicted_B, scores_BL), seqs_B)
        self.record.add(size, int(wrong_B.sum()), size)
        self.batches.append(list(zip(seqs_B.tolist(), labels_B.tolist(), predicted_B.tolist(), strict=True)))

    def window(self) -> list[tuple[int, int, int]]:
        """The predictions in the window of the record."""
        held = len(self.record.state()["window"])
        return [each for batch in self.batches[-held:] for each in batch]


def images(seqs_B: Tensor) -> Tensor:
    """Images that tell which sample they are."""
    return seqs_B[:, None].repeat(1, 4).to(torch.float32)


@pytest.mark.parametrize("labels", [2, 10, MATRIX_LABELS_MAX])
def test_the_matrix_counts_the_predictions_in_the_window(labels: int) -> None:
    stream = Stream(labels)
    for size in (1, 37, 4000, 64, 128, 5000, 3000, 500, 2000):
        stream.add(size)
        samples, wrong, matrix = stream.mistakes.confusion()
        want = np.zeros((labels, labels), int)
        for _, label, predicted in stream.window():
            want[label, predicted] += 1
        assert matrix is not None
        assert (matrix == want).all()
        assert int(samples.sum()) == stream.record.window_samples
        assert (wrong == want.sum(1) - want.diagonal()).all()
        assert stream.record.recent == pytest.approx(int(wrong.sum()) / int(samples.sum()))


def test_with_many_labels_there_are_errors_of_each_class_but_no_matrix() -> None:
    labels = MATRIX_LABELS_MAX + 1
    stream = Stream(labels)
    for size in (6000, 3000, 5000):
        stream.add(size)
    samples, wrong, matrix = stream.mistakes.confusion()
    assert matrix is None
    window = stream.window()
    assert len(window) < WINDOW_SAMPLES + 5000
    assert samples.tolist() == [sum(own == label for _, own, _ in window) for label in range(labels)]
    assert wrong.tolist() == [
        sum(own == label != predicted for _, own, predicted in window) for label in range(labels)
    ]


@pytest.mark.parametrize("sizes", [(5,), (3, 3, 3), (40,), (7,) * 20, (1, 200, 1)])
def test_the_latest_mistakes_come_newest_first_and_are_few(sizes: tuple[int, ...]) -> None:
    stream = Stream(4)
    for size in sizes:
        stream.add(size)
        stream.add(2, right=True)
    every = [(seq, own, guess) for seq, own, guess in itertools.chain(*stream.batches) if own != guess]
    latest = stream.mistakes.latest()
    assert [(each.seq, each.label, each.predicted) for each in latest] == every[::-1][:LATEST_MAX]
    for each in latest:
        assert each.image_I.tolist() == [each.seq] * 4
        assert int(each.scores_L.argmax()) == each.predicted
    assert len({each.time for each in latest}) <= len(sizes)


def test_memory_is_bounded() -> None:
    stream = Stream(10)
    for _ in range(2000):
        stream.add(32)
    assert len(stream.mistakes._window) <= WINDOW_SAMPLES // 32 + 1
    assert len(stream.mistakes._latest) <= LATEST_MAX


def test_before_the_first_prediction_everything_is_zero() -> None:
    mistakes = Mistakes(10)
    assert mistakes.latest() == []
    assert not mistakes.confusion().samples.any()
