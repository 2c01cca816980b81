"""Checkpoints on disk. Each has a folder, which is named after the last sequence number it has learned.

    checkpoints/00000000000000041200/state.safetensors   all tensors of the state
    checkpoints/00000000000000041200/manifest.json       everything else, and the checksums

The manifest is a JSON map:

    format      format version (see formats.py)            recipe     all options of the network
    ffstream    version of ffstream that wrote it          progress   the rest of the state: step, phase position, …
    seq         last sequence number that was learned      files      size and XXH3 checksum of each file
    written     time of day, seconds since 1970            check      SHA-256 of the other keys
    clock_s     seconds that daemons had run on this folder; ages are computed from it, see ladder.py

A checkpoint is valid if and only if its manifest exists, `check` is right, and every file in `files` has the stated
size and checksum. The order of writing keeps this true at all times:

    1. state into `.writing-SEQ/`, fsync file and folder     2. rename to `SEQ/`, fsync the parent
    3. manifest into `SEQ/.manifest`, fsync                  4. rename to `SEQ/manifest.json`, fsync the folder

A crash before 4 leaves a folder without a manifest, which the next write removes. The state is a safetensors file, so
reading a checkpoint cannot run code.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ffstream import __version__
from ffstream.checkpoint import manifest as manifests
from ffstream.checkpoint import recipes
from ffstream.checkpoint.formats import FORMAT
from ffstream.checkpoint.ladder import Ladder, Rung
from ffstream.checkpoint.manifest import MANIFEST, STATE, WRITING, damaged, folder_of
from ffstream.checkpoint.tensors import save
from ffstream.errors import CheckpointDamaged, Unavailable
from ffstream.util import failpoints
from ffstream.util.durable import fsync, fsync_tree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """The state at one point of the stream. `progress` is everything that is not a tensor, as JSON."""

    seq: int
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


class Stored(NamedTuple):
    """A checkpoint on disk, as its manifest describes it."""

    seq: int
    bytes: int
    written: float  # when, in seconds since 1970


class CheckpointStore:
    """Writes and reads the checkpoints of one recipe. Only one thread may write at a time; readers need no lock.

    `ladder_s` and `max_bytes` decide which are kept besides the newest `keep`: see ladder.py. `monotonic_s` is a
    clock.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        recipe: Mapping[str, Any],
        ladder_s: Sequence[float] = (),
        max_bytes: int = 0,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self._ladder = Ladder(keep, ladder_s, max_bytes)
        self._rungs: dict[int, Rung] = {}  # read from manifests once
        # As it looks when it is read back: JSON has lists instead of tuples.
        self.recipe = json.loads(json.dumps(recipe))
        self._damaged: set[int] = set()  # found so far; nothing relies on them, and the next write removes them
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fsync(folder.parent)  # rows of the journal are deleted once a checkpoint has learned them
        except OSError as error:
            raise Unavailable(
                f"{folder}: {error.strerror}", hint="checkpoints need a folder that can be written to"
            ) from error
        self._monotonic_s = monotonic_s
        self._clock_began_s = self._newest_clock_s() - monotonic_s()

    def write(self, checkpoint: Checkpoint, wrote: Callable[[int], object] = lambda size: None) -> int:
        """Makes a checkpoint durable and removes old ones. Returns its size in bytes. Raises OSError, Unavailable.

        `wrote` is called with the number of bytes that were written since its last call.
        """
        final = folder_of(self.folder, checkpoint.seq)
        aside = self.folder / f"{WRITING}{checkpoint.seq}"
        self._sweep()
        if self._is_whole(checkpoint.seq):
            # The same samples lead to the same state; what the network has slept since is learned again. But an
            # earlier write may have failed in its last fsync.
            fsync_tree(final)
            fsync(self.folder)
            return int((final / STATE).stat().st_size)
        aside.mkdir()
        saved = save(checkpoint.tensors, aside / STATE, wrote)
        failpoints.reached("checkpoint.write.after")
        fsync(aside / STATE)
        fsync(aside)
        failpoints.reached("checkpoint.fsync.after")
        if final.exists():  # damaged: recovery began at an earlier checkpoint and has now come here again
            self._remove(checkpoint.seq)
        aside.rename(final)
        fsync(self.folder)
        failpoints.reached("checkpoint.rename.after")
        manifest = {
            "format": FORMAT,
            "ffstream": __version__,
            "seq": checkpoint.seq,
            "written": time.time(),
            "clock_s": self.clock_s(),
            "recipe": self.recipe,
            "progress": dict(checkpoint.progress),
            "files": {STATE: saved._asdict()},
        }
        draft = final / ".manifest"
        draft.write_text(json.dumps(manifests.sign(manifest), indent=1), encoding="utf-8")
        fsync(draft)
        failpoints.reached("checkpoint.manifest.before")
        draft.rename(final / MANIFEST)
        fsync(final)
        failpoints.reached("checkpoint.manifest.after")
        self._damaged.discard(checkpoint.seq)
        self._rungs.pop(checkpoint.seq, None)
        self._remove_old(checkpoint.seq)
        return saved.bytes

    def _remove_old(self, seq: int) -> None:
        # Newer ones do not count: they are damaged, and recovery began before them.
        try:
            surplus = self._ladder.surplus(self.rungs(at_most=seq))
        except OSError as error:  # no file descriptors left; the next write tries again
            log.warning("old checkpoints are not removed error=%s", error)
            return
        for old in (*(rung.seq for rung in surplus), *(each for each in sorted(self._damaged) if each < seq)):
            failpoints.reached("checkpoint.remove.before")
            self._remove(old)

    def shed(self) -> int:
        """Makes room on the disk: removes the least useful checkpoint, but none of the newest `keep`.

        Returns the number of bytes freed; 0 if only the newest are left. Raises OSError, Unavailable.
        """
        surplus = self._ladder.sparser(self.rungs())
        for rung in surplus:
            self._remove(rung.seq)
        return sum(rung.bytes for rung in surplus)

    def recent(self, at_most: int) -> list[int]:
        """The newest `keep` whole checkpoints at or before a sample, oldest first. Recovery relies on these."""
        return [seq for seq in self.whole_seqs() if seq <= at_most][-self.keep :]

    def rungs(self, at_most: int | None = None) -> list[Rung]:
        """Whole checkpoints (at or before a sample) with clock and size, oldest first. Raises OSError,
        Unavailable."""
        return [self._rung(seq) for seq in self.whole_seqs() if at_most is None or seq <= at_most]

    def _rung(self, seq: int) -> Rung:
        rung = self._rungs.get(seq)
        if rung is None:
            rung = self._rungs[seq] = Rung(seq, *manifests.clock_and_size(self.folder, seq))
        return rung

    def _newest_clock_s(self) -> float:
        try:
            return max((rung.clock_s for rung in self.rungs()), default=0.0)
        except OSError:  # then older checkpoints seem newer than they are, and are kept longer
            return 0.0

    def clock_s(self) -> float:
        """Seconds that daemons have run on this folder. Never decreases, and does not depend on the time of day."""
        return self._monotonic_s() + self._clock_began_s

    def seqs(self) -> list[int]:
        """Sequence numbers of the checkpoints that have a manifest, oldest first."""
        return manifests.seqs(self.folder)

    def whole_seqs(self) -> list[int]:
        """The same, without those that were found to be damaged."""
        return [seq for seq in self.seqs() if seq not in self._damaged]

    def newest_stored(self) -> Stored | None:
        """The newest checkpoint that is not known to be damaged. None if there is none, or if it cannot be read."""
        with suppress(CheckpointDamaged, Unavailable, KeyError, TypeError, ValueError):
            for seq in self.whole_seqs()[-1:]:
                manifest = manifests.read(self.folder, seq)
                return Stored(seq, int(manifest["files"][STATE]["bytes"]), float(manifest["written"]))
        return None

    def load(self, seq: int) -> Checkpoint:
        """Reads a checkpoint. Raises CheckpointDamaged or CheckpointIncompatible."""
        manifest = self.verify(seq)
        recipes.expect_same(manifest["recipe"], self.recipe, f"checkpoint {seq}")
        try:
            tensors = load_file(folder_of(self.folder, seq) / STATE)
        except (SafetensorError, OSError) as error:
            raise damaged(seq, str(error)) from error
        return Checkpoint(seq, tensors, manifest["progress"])

    def check_recipe(self) -> None:
        """Raises CheckpointIncompatible if the newest checkpoint is of another recipe. Reads only its manifest."""
        for seq in self.seqs()[-1:]:
            with suppress(CheckpointDamaged):  # recovery handles that, or its daemon has just removed it
                recipes.expect_same(manifests.read(self.folder, seq)["recipe"], self.recipe, f"checkpoint {seq}")

    def newest(self, at_most: int | None = None) -> tuple[Checkpoint | None, list[CheckpointDamaged]]:
        """The newest whole checkpoint (at or before a sequence number), and the damaged ones that are newer.

        Raises CheckpointIncompatible, Unavailable.
        """
        damages: list[CheckpointDamaged] = []
        for seq in reversed(self.seqs()):
            if at_most is not None and seq > at_most:
                continue
            try:
                return self.load(seq), damages
            except CheckpointDamaged as damage:
                log.error("checkpoint damaged, using the one before seq=%d error=%r", seq, str(damage))
                damages.append(damage)
        return None, damages

    def verify(self, seq: int) -> dict[str, Any]:
        """The manifest of a checkpoint whose files were read to the last byte. Raises CheckpointDamaged and remembers
        it, and CheckpointIncompatible for a newer format."""
        try:
            return manifests.verify(self.folder, seq)
        except CheckpointDamaged:
            self._damaged.add(seq)
            raise

    def _is_whole(self, seq: int) -> bool:
        if not (folder_of(self.folder, seq) / MANIFEST).exists():
            return False
        try:
            self.verify(seq)
        except CheckpointDamaged:
            return False
        return True

    def discard_after(self, seq: int) -> None:
        """Removes all checkpoints after `seq`. Raises OSError, Unavailable."""
        for newer in (each for each in self.seqs() if each > seq):
            self._remove(newer)

    def _remove(self, seq: int) -> None:
        folder = folder_of(self.folder, seq)
        (folder / MANIFEST).unlink(missing_ok=True)  # first: without a manifest the folder is no longer a checkpoint
        shutil.rmtree(folder, ignore_errors=True)
        fsync(self.folder)
        self._damaged.discard(seq)
        self._rungs.pop(seq, None)

    def _sweep(self) -> None:
        """Removes what a crash left half written."""
        for path in manifests.half_written(self.folder):
            shutil.rmtree(path, ignore_errors=True)
