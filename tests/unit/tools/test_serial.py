"""Bits per character and n-gram counts, by their definitions."""

import math

import numpy as np
import pytest
import torch

from ffstream.data.text import SYMBOLS, encode, text_dataset
from tools.benchmarks.accuracy.learners import splits_of
from tools.benchmarks.serial import Counts, Tally, count, variant


def test_bits_are_those_of_the_softmax_of_the_scores() -> None:
    tally = Tally()
    tally.add(torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]]), torch.tensor([1, 1]))
    tally.add(torch.tensor([[5.0, 5.0]]), torch.tensor([0]))
    assert tally.bits == pytest.approx(-math.log2(3 / 4) + 1 + 1)
    assert (tally.wrong, tally.count) == (1, 3)


def test_counts_are_interpolated_from_short_contexts_to_long_ones() -> None:
    counts = Counts(2)
    for window, symbol in (("a", 1), ("a", 1), ("a", 2), ("b", 3)):
        counts.learn(bytes(encode(window)), symbol)
    uniform = np.full(SYMBOLS, 1 / SYMBOLS)
    first = (np.bincount([1, 1, 2, 3], minlength=SYMBOLS) + 3 * uniform) / (4 + 3)
    second = (np.bincount([1, 1, 2], minlength=SYMBOLS) + 2 * first) / (3 + 2)
    assert counts.probabilities(bytes(encode("a"))) == pytest.approx(second)
    assert counts.probabilities(bytes(encode("c"))) == pytest.approx(first)
    assert counts.probabilities(bytes(encode("a"))).sum() == pytest.approx(1)


def test_counts_learn_the_training_text_only() -> None:
    text = text_dataset("abc", "ab" * 90 + "c" * 20, 4)  # the last tenth are the test split
    found = count(3, splits_of(text, validation=False))
    assert found.held_out.wrong == len(text.test) == 20, "no c was seen before, and none is learned"
    assert 1 <= found.prequential.wrong <= 3, "the first time, a symbol is not known"
    assert (found.prequential.count, found.held_out.count) == (len(text.train), len(text.test))


def test_fast_weights_are_in_the_last_layer_only() -> None:
    kinds = [layer.fast_weights.kind for layer in variant("fast_weights", 3).layers]
    assert kinds == ["none", "hebbian"]
    assert variant("fast_weights", 3).seed == 3
