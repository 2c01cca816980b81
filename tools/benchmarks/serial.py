"""The next symbol of a text, in the order of the text: error and bits per character.

The preset `serial`, with fast weights and their controls, and with one wrong label for each sample, beside a backprop
network of the same shape that gets the same microbatches, and n-gram counts. Bits per character are the mean of
−log₂ p of the right symbol, where p is the softmax of the scores. Prequential: each microbatch before it is learned,
by the newest weights. Held out: the EMA weights after one pass, as a snapshot predicts. `continued`: the same, but
fast weights go on taking in the held-out text.

Shapes: B samples, L labels.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ffstream.cli.options import DEFAULT_WINDOW
from ffstream.data import Dataset, Split, batches
from ffstream.data.text import CORPUS, SYMBOLS, corpus, text_dataset
from ffstream.ff.network import Network
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch
from tools.benchmarks.accuracy.backprop import Backprop, PeerSettings
from tools.benchmarks.accuracy.learners import Splits, splits_of
from tools.benchmarks.accuracy.tuning import settings_of
from tools.benchmarks.report import Report

ORDERS = (3, 6)
_FEW = 3000  # characters
_CONTRAST = {"objective": {"kind": "paired", "alpha": 1000.0}}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "preset": {},
    "fast_weights": {"fast_weights": "hebbian"},
    "fast_weights_fixed": {"fast_weights": "fixed"},
    "fast_weights_recent": {"fast_weights": "recent"},
    "wrong_sampled": {**_CONTRAST, "negatives": "sampled"},
    "wrong_random": {**_CONTRAST, "negatives": "random"},
    "wrong_hardest": {**_CONTRAST, "negatives": "hardest"},
}
DEFAULT = ("preset", "fast_weights", "fast_weights_fixed", "fast_weights_recent")


@dataclass
class Tally:
    """Predictions that were wrong, Σ −log₂ p of the right labels, and how many there were."""

    wrong: int = 0
    bits: float = 0.0
    count: int = 0

    def add(self, scores_BL: Tensor, labels_B: Tensor) -> None:
        """Counts predictions whose probabilities are the softmax of the scores."""
        own_B = scores_BL.double().log_softmax(1).gather(1, labels_B[:, None])
        self.wrong += int((scores_BL.argmax(1) != labels_B).sum())
        self.bits -= float(own_B.sum()) / math.log(2)
        self.count += len(labels_B)


class Figures(NamedTuple):
    """What a learner gets on a text."""

    prequential: Tally
    held_out: Tally
    continued: Tally | None = None


def variant(name: str, seed: int) -> Recipe:
    """The preset with the options of a variant. Fast weights are in its last layer."""
    options = dict(VARIANTS[name])
    recipe = make_recipe("serial", seed=seed)
    if kind := options.pop("fast_weights", None):
        *first, last = recipe.model_dump()["layers"]
        options["layers"] = [*first, last | {"fast_weights": {"kind": kind}}]
    return recipe.change(**options) if options else recipe


def microbatches(split: Split, size: int) -> Iterator[MicroBatch]:
    """The microbatches that a daemon forms from a text, without replay."""
    seq = 0
    for step, (images, labels) in enumerate(batches(split, size, order="as_is")):
        seq += len(labels)
        rows, own = torch.from_numpy(images).flatten(1), torch.from_numpy(labels.astype(np.int64))
        yield MicroBatch(step, seq, "interleaved", rows, own, len(own))


def forward_forward(recipe: Recipe, splits: Splits) -> Figures:
    """The serial reference, to which the pipeline of a daemon is equal bit for bit."""
    network, prequential = Network(recipe), Tally()
    for batch in microbatches(splits.train, recipe.batch_size):
        scored = network.learn(batch.images, batch.labels, batch.step)
        assert scored is not None
        prequential.add(scored.score_BL, scored.labels_B)
    classifier = network.classifier()
    held_out = _tally(lambda images_BI: classifier.predict(images_BI).goodness_BL, splits.held_out)
    if all(layer.fast_weights.kind == "none" for layer in recipe.layers):
        return Figures(prequential, held_out)
    return Figures(prequential, held_out, _continued(network, splits.held_out))


def _continued(network: Network, held_out: Split) -> Tally:
    """The same weights, of which only the fast ones change."""
    frozen, tally = Network(network.recipe.change(learning_rate=0.0, ema_samples=0.0)), Tally()
    frozen.load_weights(network.weights())
    for batch in microbatches(held_out, network.recipe.batch_size):
        scored = frozen.learn(batch.images, batch.labels, batch.step)
        assert scored is not None
        tally.add(scored.score_BL, scored.labels_B)
    return tally


def backprop(recipe: Recipe, splits: Splits, settings: PeerSettings) -> Figures:
    """The peer."""
    peer, prequential = Backprop(recipe, settings, torch.float32), Tally()
    for batch in microbatches(splits.train, recipe.batch_size):
        peer.learn(batch)
        prequential.add(peer.logits_BL, batch.labels)
    return Figures(prequential, _tally(peer.scorer(peer.weights()), splits.held_out))


def _tally(scores: Callable[[Tensor], Tensor], split: Split) -> Tally:
    tally = Tally()
    for batch in microbatches(split, 256):
        tally.add(scores(batch.images), batch.labels)
    return tally


class Counts:
    """N-gram counts up to an order, interpolated as Witten and Bell (1991) do.

    p_k(s) = (c_k(s) + u_k p_{k−1}(s)) / (Σ c_k + u_k), where c_k counts what followed the last k symbols, u_k is how
    many different symbols that were, and p₋₁ is uniform.
    """

    def __init__(self, order: int) -> None:
        self._counts: list[dict[bytes, np.ndarray]] = [defaultdict(lambda: np.zeros(SYMBOLS)) for _ in range(order)]

    def probabilities(self, window: bytes) -> np.ndarray:
        """p (symbols) of what follows a window of symbols."""
        p_L = np.full(SYMBOLS, 1 / SYMBOLS)
        for length, counts in enumerate(self._counts):
            context = window[len(window) - length :]
            if context not in counts:
                break
            found_L = counts[context]
            kinds = np.count_nonzero(found_L)
            p_L = (found_L + kinds * p_L) / (found_L.sum() + kinds)
        return p_L

    def learn(self, window: bytes, symbol: int) -> None:
        """Counts what followed a window."""
        for length, counts in enumerate(self._counts):
            counts[window[len(window) - length :]][symbol] += 1


def count(order: int, splits: Splits) -> Figures:
    """N-gram counts, which learn each character after they predicted it."""
    counts, prequential, held_out = Counts(order), Tally(), Tally()
    for split, tally, learns in ((splits.train, prequential, True), (splits.held_out, held_out, False)):
        windows = split.images.argmax(2).astype(np.uint8)
        for window, symbol in zip(map(bytes, windows), split.labels.tolist(), strict=True):
            tally.add(torch.from_numpy(counts.probabilities(window)).log()[None], torch.tensor([symbol]))
            if learns:
                counts.learn(window, symbol)
    return Figures(prequential, held_out)


def checksum(dataset: Dataset) -> str:
    """The SHA-256 of the labels of both splits: of the text without its first window."""
    digest = hashlib.sha256(dataset.train.labels.tobytes())
    digest.update(dataset.test.labels.tobytes())
    return digest.hexdigest()


def run(report: Report, dataset: Dataset, splits: Splits, names: Iterable[str], seeds: Sequence[int]) -> None:
    """Every variant with every seed beside the peer, then counts."""
    facts = {"sha256": checksum(dataset), "train": len(splits.train), splits.name: len(splits.held_out)}
    settings, names = settings_of("serial"), list(names)
    for seed in seeds:
        peer = backprop(variant("preset", seed), splits, settings)
        for name in names:
            _rows(
                report,
                f"serial/{dataset.name}/{name}",
                splits.name,
                forward_forward(variant(name, seed), splits),
                peer,
                facts,
            )
    for order in ORDERS:
        _rows(report, f"serial/{dataset.name}/counts_{order}", splits.name, count(order, splits), None, facts)


def question(report: Report) -> None:
    """The question at a small size, with a few characters."""
    text = text_dataset(CORPUS, corpus()[:_FEW], DEFAULT_WINDOW)
    run(report, text, splits_of(text, validation=False), ("preset", "fast_weights"), (0,))


def _rows(
    report: Report, name: str, held_out: str, figures: Figures, peer: Figures | None, facts: Mapping[str, Any]
) -> None:
    for part, tally, beside in (
        (held_out, figures.held_out, peer and peer.held_out),
        (f"{held_out}_continued", figures.continued, peer and peer.held_out),
        ("prequential", figures.prequential, peer and peer.prequential),
    ):
        if tally is None:
            continue
        for what, value, of_peer, unit in (
            ("bits", tally.bits / tally.count, beside and beside.bits / beside.count, "bits/character"),
            ("error", 100 * tally.wrong / tally.count, beside and 100 * beside.wrong / beside.count, "%"),
        ):
            against = () if of_peer is None else ("backprop", of_peer)
            report.add(f"{name}/{part}/{what}", value, unit, *against, **facts)
