"""Checkpoints in a folder, one folder each, named by the sequence number that it has learned.

    checkpoints/00000000000000041200/state.safetensors   every tensor of the learner's state
    checkpoints/00000000000000041200/manifest.json       what belongs to it, and its checksums

A checkpoint is valid if and only if its manifest is there, has the SHA-256 that stands in it as `check`, and every
file in it has the size and the XXH3 checksum that the manifest states. The order of writing keeps this true at all
times:

    1. state into `.writing-SEQ/`, fsync file and folder     2. rename to `SEQ/`, fsync the parent
    3. manifest into `SEQ/.manifest`, fsync                  4. rename to `SEQ/manifest.json`, fsync the folder

A death before 4 leaves a folder without a manifest, which the next writer sweeps away. Weights are safetensors:
reading a checkpoint runs no code.

Which ones stay is decided in `ladder`, after each write. `clock_s` in a manifest is what ages are computed from: the
seconds that daemons had run on this folder when it was written.
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

from ffstream.checkpoint import manifest as manifests
from ffstream.checkpoint.ladder import Ladder, Rung
from ffstream.checkpoint.manifest import FORMAT, MANIFEST, STATE, WRITING, damaged, folder_of
from ffstream.checkpoint.tensors import save
from ffstream.errors import CheckpointDamaged, Unavailable
from ffstream.util import failpoints
from ffstream.util.durable import fsync, fsync_tree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """One consistent cut. `progress` is what is not a tensor: step, phase position, counts (JSON)."""

    seq: int
    tensors: Mapping[str, Tensor]
    progress: Mapping[str, Any]


class Stored(NamedTuple):
    """What is known of a checkpoint on disk without reading its tensors."""

    seq: int
    bytes: int
    age_s: float  # since it was written, by the machine's clock; 0 if that says that it is yet to come


class CheckpointStore:
    """Writes and reads the checkpoints of one recipe. One writer at a time; readers need no lock.

    `ladder_s` and `max_bytes` say which stay beside the newest `keep`: see `ladder`. `monotonic_s` is a clock.
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
        self._rungs: dict[int, Rung] = {}  # what manifests say, read once
        # As it looks when read back: JSON has lists where Python has tuples.
        self.recipe = json.loads(json.dumps(recipe))
        self._damaged: set[int] = set()  # known to be: they vouch for nothing, and go once a later one is whole
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fsync(folder.parent)  # the journal lets rows go that are learned in here
        except OSError as error:
            raise Unavailable(f"{folder}: {error.strerror}", hint="checkpoints want a folder to write to") from error
        self._monotonic_s = monotonic_s
        self._clock_began_s = self._newest_clock_s() - monotonic_s()

    def write(self, checkpoint: Checkpoint, wrote: Callable[[int], object] = lambda size: None) -> int:
        """Makes a checkpoint durable and removes what is over `keep`. Returns its bytes. Raises OSError.

        `wrote` is called with the bytes that have gone to disk since its last call.
        """
        final = folder_of(self.folder, checkpoint.seq)
        aside = self.folder / f"{WRITING}{checkpoint.seq}"
        self._sweep()
        if self._is_whole(checkpoint.seq):
            # The same samples lead to the same state. But whoever wrote it may have met an error at its last flush.
            fsync_tree(final)
            fsync(self.folder)
            return int((final / STATE).stat().st_size)
        aside.mkdir()
        saved = save(checkpoint.tensors, aside / STATE, wrote)
        failpoints.reached("checkpoint.write.after")
        fsync(aside / STATE)
        fsync(aside)
        failpoints.reached("checkpoint.fsync.after")
        if final.exists():  # damaged: recovery began before it and has come here again
            self._remove(checkpoint.seq)
        aside.rename(final)
        fsync(self.folder)
        failpoints.reached("checkpoint.rename.after")
        manifest = {
            "format": FORMAT,
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
        # A newer one is damaged: recovery began before it. It is no reason to give up a whole one.
        try:
            surplus = self._ladder.surplus(self.rungs(at_most=seq))
        except OSError as error:  # no descriptor to look at them: tried again after the next write
            log.warning("old checkpoints stay error=%s", error)
            return
        for old in (*(rung.seq for rung in surplus), *(each for each in sorted(self._damaged) if each < seq)):
            failpoints.reached("checkpoint.remove.before")
            self._remove(old)

    def shed(self) -> int:
        """Makes room on the disk: removes the least useful checkpoint besides the newest `keep`.

        Returns the bytes that are free now, 0 when only the newest are left. Raises OSError, Unavailable.
        """
        surplus = self._ladder.sparser(self.rungs())
        for rung in surplus:
            self._remove(rung.seq)
        return sum(rung.bytes for rung in surplus)

    def recent(self, at_most: int) -> list[int]:
        """The newest `keep` whole ones at or below a sample, oldest first: those that recovery relies on."""
        return [seq for seq in self.whole_seqs() if seq <= at_most][-self.keep :]

    def rungs(self, at_most: int | None = None) -> list[Rung]:
        """Whole checkpoints (at or below a sample) with age and size, oldest first. Raises OSError, Unavailable."""
        return [self._rung(seq) for seq in self.whole_seqs() if at_most is None or seq <= at_most]

    def _rung(self, seq: int) -> Rung:
        rung = self._rungs.get(seq)
        if rung is None:
            rung = self._rungs[seq] = Rung(seq, *manifests.clock_and_size(self.folder, seq))
        return rung

    def _newest_clock_s(self) -> float:
        try:
            return max((rung.clock_s for rung in self.rungs()), default=0.0)
        except OSError:  # not now: older checkpoints will look younger than they are, and stay longer
            return 0.0

    def clock_s(self) -> float:
        """Seconds that daemons have run on this folder. Never goes back, and ignores changes of the time of day."""
        return self._monotonic_s() + self._clock_began_s

    def seqs(self) -> list[int]:
        """Sequence numbers of the checkpoints that have a manifest, oldest first."""
        return manifests.seqs(self.folder)

    def whole_seqs(self) -> list[int]:
        """The same without those that are known to be damaged."""
        return [seq for seq in self.seqs() if seq not in self._damaged]

    def newest_stored(self) -> Stored | None:
        """The newest one that is not known to be damaged; None if there is none, or it cannot be read."""
        with suppress(CheckpointDamaged, Unavailable, KeyError, TypeError, ValueError):
            for seq in self.whole_seqs()[-1:]:
                manifest = manifests.read(self.folder, seq)
                age_s = max(0.0, time.time() - float(manifest["written"]))
                return Stored(seq, int(manifest["files"][STATE]["bytes"]), age_s)
        return None

    def load(self, seq: int) -> Checkpoint:
        """Reads one. Raises CheckpointDamaged or CheckpointIncompatible."""
        manifest = self.verify(seq)
        manifests.expect_recipe(manifest, self.recipe)
        try:
            tensors = load_file(folder_of(self.folder, seq) / STATE)
        except (SafetensorError, OSError) as error:
            raise damaged(seq, str(error)) from error
        return Checkpoint(seq, tensors, manifest["progress"])

    def check_recipe(self) -> None:
        """Raises CheckpointIncompatible when the newest one is of another recipe. Reads no more than its manifest."""
        for seq in self.seqs()[-1:]:
            with suppress(CheckpointDamaged):  # or its daemon has just removed it: that is for recovery to see
                manifests.expect_recipe(manifests.read(self.folder, seq), self.recipe)

    def newest(self, at_most: int | None = None) -> tuple[Checkpoint | None, list[CheckpointDamaged]]:
        """The newest whole checkpoint (at or below a sequence number), and what was passed over on the way."""
        damages: list[CheckpointDamaged] = []
        for seq in reversed(self.seqs()):
            if at_most is not None and seq > at_most:
                continue
            try:
                return self.load(seq), damages
            except CheckpointDamaged as damage:
                log.error("checkpoint damaged seq=%d error=%r: trying the one before", seq, str(damage))
                damages.append(damage)
        return None, damages

    def verify(self, seq: int) -> dict[str, Any]:
        """The manifest of a whole checkpoint. Raises CheckpointDamaged, and remembers it."""
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
        """Removes every checkpoint that has learned more than `seq`."""
        for newer in (each for each in self.seqs() if each > seq):
            self._remove(newer)

    def _remove(self, seq: int) -> None:
        folder = folder_of(self.folder, seq)
        (folder / MANIFEST).unlink(missing_ok=True)  # first: a folder without a manifest is no checkpoint
        shutil.rmtree(folder, ignore_errors=True)
        fsync(self.folder)
        self._damaged.discard(seq)
        self._rungs.pop(seq, None)

    def _sweep(self) -> None:
        """Removes what a death left half written."""
        for path in manifests.half_written(self.folder):
            shutil.rmtree(path, ignore_errors=True)
