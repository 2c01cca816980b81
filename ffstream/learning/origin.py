"""A stream that begins from given weights: `ffstream serve --from`.

Only a new stream can begin from weights. Before the first sample is accepted,

    1. the weights are read and compared with the network's options
    2. the journal records their path and checksum: from now on learning never begins at random weights
    3. checkpoint 0 is written with the weights

so recovery does not need the file, and a run that is killed and resumed equals one that is not. After a crash between
2 and 3 the next start does both again; without `--from` it fails. Only the weights are taken: the optimiser, the
schedule of the learning rate, the EMA and warm-up begin as in any new stream.

A service manager restarts a daemon with the same command line. So once the stream exists, `--from` is ignored if it
names the same path or the same weights, whatever happened to the file meanwhile. Otherwise it is an error.
"""

import logging
from contextlib import suppress
from pathlib import Path

from ffstream.checkpoint import manifest, recipes, weights
from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.checkpoint.weights import Weights
from ffstream.config import Config
from ffstream.errors import CheckpointDamaged, ConfigError, FFStreamError, JournalDamaged
from ffstream.ff.network import Network
from ffstream.journal import inspection, origin, schema
from ffstream.journal.journal import Journal
from ffstream.journal.origin import Origin
from ffstream.pipeline.resume_state import ResumeState
from ffstream.util.option_errors import about

log = logging.getLogger(__name__)


class StreamOrigin:
    """The weights at `source`, for a stream with these options."""

    def __init__(self, source: Path, config: Config) -> None:
        self._source = source.absolute()
        self._config = config

    def check(self, journal: Path) -> None:
        """Raises ConfigError if the stream cannot begin from these weights. Changes nothing and takes no lock."""
        exists, known = False, None
        if journal.exists() and journal.stat().st_size:
            try:
                with inspection.opened(journal) as connection:
                    exists = schema.end_of_samples(connection) > 1
                    known = origin.read(connection, journal)
            except JournalDamaged:
                return  # the start opens the journal next, and its error says what is wrong
        if exists or manifest.seqs(self._config.state / manifest.CHECKPOINTS):
            self._expect_same(known)
        else:
            self._read()

    def begin(self, journal: Journal, store: CheckpointStore) -> None:
        """Begins the stream from the weights, unless it exists. Raises ConfigError, Unavailable, OSError."""
        if self._exists(journal, store):
            self._expect_same(journal.origin)
            log.info("state exists, --from is not used source=%s", self._source)
            return
        found = self._read()
        network = Network(self._config.network)
        network.load_weights(found.tensors)
        journal.begin_from(Origin(str(self._source), found.checksum()))
        start = ResumeState.of_network(network)
        store.write(Checkpoint(start.seq, start.tensors, start.progress))
        log.info("stream begins from weights source=%s seq=%d", self._source, found.seq)

    @staticmethod
    def _exists(journal: Journal, store: CheckpointStore) -> bool:
        """Whether the stream has begun. A damaged checkpoint 0 without samples is written again from the weights."""
        if journal.head.seq or store.seqs() not in ([], [0]):
            return True
        checkpoint, _ = store.newest()
        return checkpoint is not None

    def _read(self) -> Weights:
        with about("--from"):
            try:
                found = weights.load(self._source)
            except CheckpointDamaged as damage:
                raise ConfigError(damage.message, hint="name weights that are not damaged") from damage
            wanted = self._config.network.model_dump(mode="json")
            recipes.expect_same_network(found.recipe.model_dump(mode="json"), wanted, str(self._source))
        return found

    def _expect_same(self, known: Origin | None) -> None:
        """Raises ConfigError unless the stream began from these weights."""
        if known is not None and known.source == str(self._source):
            return
        with suppress(FFStreamError):  # the file may be gone by now
            if known is not None and weights.load(self._source).checksum() == known.checksum:
                return
        began = "did not begin from weights" if known is None else f"began from other weights, {known.source}"
        raise ConfigError(
            f"--from {self._source}: the stream in {self._config.state} {began}",
            hint="leave --from out to continue that stream, or use another --state folder for a new one",
        )
