"""Microbatch k ends at sample k·B, whatever messages the samples came in."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ffstream.errors import JournalDamaged, JournalIncompatible
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.journal.reader import Reader
from ffstream.pipeline.batcher import Batcher
from ffstream.util.labels import UNLABELLED
from tests.unit.pipeline.run import UNSUPERVISED, Store

INPUTS = 3


def recipe(size: int, warmup: int = 1, warmup_samples: int = 0) -> Recipe:
    """Microbatches of `size`, of `warmup` up to `warmup_samples`."""
    return make_recipe(batch_size=size, warmup_batch_size=warmup, warmup_samples=warmup_samples)


Message = tuple[int, str]  # samples, dtype

messages = st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["uint8", "float32"])), min_size=1, max_size=8)


@contextmanager
def journal() -> Iterator[Store]:
    """A journal a hypothesis example."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), inputs=INPUTS, labels=1000)
        store.journal._db.execute("PRAGMA synchronous = OFF")  # durability is not the matter here
        try:
            yield store
        finally:
            store.journal.close()


class Written:
    """Sample number s (from 1) has label s and pixels that tell its number."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.count = 0

    def write(self, batch: list[Message]) -> None:
        for size, dtype in batch:
            numbers = np.arange(self.count + 1, self.count + size + 1)
            pixels = (numbers[:, None] * np.arange(1, INPUTS + 1) % 256).astype(np.uint8)
            images = pixels if dtype == "uint8" else (pixels / 255).astype(np.float32)
            self._store.write(images, numbers, size=size)
            self.count += size


def check(taken: tuple[Tensor, Tensor], beyond: int) -> None:
    """The samples that follow `beyond`, whatever they came as."""
    images, labels = taken
    want = torch.arange(beyond + 1, beyond + 1 + len(labels))
    assert labels.dtype == torch.int64
    assert torch.equal(labels, want)
    pixels = want[:, None] * torch.arange(1, INPUTS + 1) % 256
    if images.dtype == torch.uint8:
        assert torch.equal(images, pixels.to(torch.uint8))
    else:
        assert images.dtype == torch.float32
        assert torch.allclose(images, pixels / 255, atol=1e-7)


@settings(max_examples=40)
@given(
    first=messages,
    second=messages,
    warmup=st.integers(1, 5),
    factor=st.integers(1, 4),
    flushes=st.booleans(),
    data=st.data(),
)
def test_microbatches_end_on_the_grid_and_hold_every_sample_once(
    first: list[Message], second: list[Message], warmup: int, factor: int, flushes: bool, data: st.DataObject
) -> None:
    size = warmup * factor
    warmup_samples = size * data.draw(st.integers(0, 3), "warm-up microbatches")

    def rest(seq: int) -> int:
        grid = warmup if seq < warmup_samples else size
        return grid - seq % grid

    with journal() as store:
        written = Written(store)
        written.write(first)
        seq = data.draw(st.integers(0, written.count), "resumed from")
        reader = Reader(store.journal.path)
        batcher = Batcher(reader, recipe(size, warmup, warmup_samples), seq)
        for later in (second, []):
            while (taken := batcher.next()) is not None:
                check(taken, seq)
                assert len(taken[1]) == rest(seq)
                seq += len(taken[1])
                assert batcher.seq == seq
            assert written.count - seq < rest(seq)
            if flushes and (taken := batcher.next(flush=True)) is not None:
                check(taken, seq)
                seq += len(taken[1])
                assert seq == written.count
            assert batcher.pending == written.count - seq
            written.write(later)
        reader.close()


@pytest.mark.parametrize(("kinds", "dtype"), [("uu", torch.uint8), ("ff", torch.float32), ("uf", torch.float32)])
def test_a_microbatch_of_both_kinds_is_float_and_of_one_kind_stays(kinds: str, dtype: torch.dtype) -> None:
    with journal() as store:
        Written(store).write([(2, {"u": "uint8", "f": "float32"}[kind]) for kind in kinds])
        reader = Reader(store.journal.path)
        taken = Batcher(reader, recipe(4), 0).next()
        assert taken is not None
        assert taken[0].dtype == dtype
        check(taken, 0)
        reader.close()


def test_returned_microbatches_may_be_modified() -> None:
    """Images are copies of the journal's bytes, not views of them."""
    with journal() as store:
        Written(store).write([(8, "uint8")])
        reader = Reader(store.journal.path)
        batcher = Batcher(reader, recipe(4), 0)
        first = batcher.next()
        assert first is not None
        first[0].zero_()
        second = batcher.next()
        assert second is not None
        check(second, 4)
        reader.close()


def test_an_empty_journal_gives_nothing_even_when_flushed() -> None:
    with journal() as store:
        reader = Reader(store.journal.path)
        batcher = Batcher(reader, recipe(4), 0)
        assert batcher.next() is None
        assert batcher.next(flush=True) is None
        assert batcher.pending == 0
        reader.close()


def test_a_damaged_row_is_an_error_and_gives_nothing() -> None:
    with journal() as store:
        Written(store).write([(4, "uint8"), (4, "uint8")])
        store.journal._db.execute("UPDATE messages SET images = zeroblob(length(images)) WHERE first_seq = 5")
        reader = Reader(store.journal.path)
        with pytest.raises(JournalDamaged, match="5 to 8"):
            Batcher(reader, recipe(4), 0).next()
        reader.close()


def test_samples_without_a_label_need_a_network_that_learns_them() -> None:
    with journal() as store:
        store.write(np.zeros((4, INPUTS), np.uint8), np.array([1, 2, UNLABELLED, 3]), size=4)
        reader = Reader(store.journal.path)
        with pytest.raises(
            JournalIncompatible, match="without a label after sample 0, and this network needs labels"
        ):
            Batcher(reader, recipe(4), 0).next()
        images, labels = Batcher(reader, UNSUPERVISED, 0).next() or (None, None)
        assert images is not None
        assert labels is not None
        assert labels.tolist() == [1, 2, UNLABELLED, 3]
        reader.close()
