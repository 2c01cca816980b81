"""A daemon starts from exactly what a checkpoint holds, from an older checkpoint, or not at all.

This holds for any damage to the files of the newest checkpoint, also when the manifest has a valid checksum.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from ffstream.checkpoint import manifest as manifests
from ffstream.checkpoint.manifest import CHECKSUM, MANIFEST, STATE, folder_of
from ffstream.daemon.daemon import Daemon
from ffstream.errors import FFStreamError, JournalDamaged
from ffstream.journal.journal import Journal
from ffstream.learning.learner import Learner
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import make_engine
from ffstream.pipeline.threads import ThreadStages
from tests.in_process import Running, config, images, labels
from tests.support import wait_until

SETTINGS = ("network.replay=4", "network.replay_buffer=20", "network.batch_size=8")
few = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Disk:
    """A state folder with two checkpoints. `reset` restores it before each example."""

    def __init__(self, folder: Path) -> None:
        self._good = folder / "good"
        self.state = folder / "state"
        with Running(self._good, *SETTINGS) as running:
            producer, control = running.producer(), running.control()
            for seed in (1, 2):
                producer.send(images(32, seed), labels(32, seed), 60.0)
                producer.flush(60.0)
                control.request("wait_idle", {"timeout_s": 30}, 40.0)
                control.request("checkpoint", {}, 30.0)
            wait_until(
                lambda: all(first_seq > 1 for *_, first_seq, _ in running.stored()), 20.0, "the journal is trimmed"
            )
        self.older, self.newest = manifests.seqs(self._good / "checkpoints")[-2:]
        self.reset()
        self.tensors = load_file(self.here / STATE)

    @property
    def here(self) -> Path:
        """The newest checkpoint."""
        return folder_of(self.state / "checkpoints", self.newest)

    def reset(self) -> None:
        """Restores the state folder."""
        shutil.rmtree(self.state, ignore_errors=True)
        shutil.copytree(self._good, self.state)

    def sign(self, change: Callable[[dict[str, Any]], object] = lambda manifest: None) -> None:
        """Writes a manifest that is valid for the files as they are, and then changed by `change`."""
        manifest = json.loads((self.here / MANIFEST).read_text())
        state = self.here / STATE
        manifest["files"] = {STATE: {"bytes": state.stat().st_size, CHECKSUM: manifests.checksum(state)}}
        del manifest["check"]
        change(manifest)
        (self.here / MANIFEST).write_text(json.dumps(manifests.sign(manifest)))

    def start(self) -> int | None:
        """Sequence number of the checkpoint from which a daemon starts; None if it rejects the state."""
        options = config(self.state, *SETTINGS)
        try:
            journal = Journal(
                self.state / "journal.sqlite", inputs=options.network.inputs, labels=options.network.labels
            )
        except FFStreamError:
            return None
        try:
            # It recovers, and is never started.
            learner = Learner(options, make_engine(options, Metrics()), journal, Metrics(), lambda error: None)
        except FFStreamError:
            return None
        finally:
            journal.close()
        record = learner.run.prequential.record
        assert 0 <= (record.recent or 0) <= 1
        assert 0 <= (record.total or 0) <= 1
        seq = learner.applied_seq
        if seq:
            self._compare(learner, seq)
        return seq

    def _compare(self, learner: Learner, seq: int) -> None:
        """Every layer has the state of the checkpoint."""
        wanted = load_file(folder_of(self.state / "checkpoints", seq) / STATE)
        stages = learner.run.pipeline.stages
        assert isinstance(stages, ThreadStages)
        for stage in stages.stages:
            for layer in stage.layers:
                for name, value in layer.state_dict().items():
                    assert torch.equal(value.nan_to_num(), wanted[f"layers.{layer.index}.{name}"].nan_to_num())


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return Disk(tmp_path_factory.mktemp("disk"))


def test_a_daemon_starts_from_an_intact_checkpoint(disk: Disk) -> None:
    disk.reset()
    assert disk.start() == disk.newest
    disk.sign()
    assert disk.start() == disk.newest


def test_a_daemon_without_an_intact_checkpoint_rejects_a_trimmed_journal(disk: Disk) -> None:
    """Otherwise learning would wait forever for the samples that were trimmed."""
    disk.reset()
    for path in (disk.state / "checkpoints").glob(f"*/{STATE}"):
        path.write_bytes(b"")
    daemon = Daemon(config(disk.state, *SETTINGS))
    with pytest.raises(JournalDamaged, match="in no whole checkpoint"):
        daemon.start()


# --- damaged bytes --------------------------------------------------------------------------------------------------


@few
@given(name=st.sampled_from([STATE, MANIFEST]), data=st.data())
def test_damaged_bytes_make_a_daemon_start_from_the_checkpoint_before(
    disk: Disk, name: str, data: st.DataObject
) -> None:
    disk.reset()
    path = disk.here / name
    good = path.read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.sampled_from([0, 1, 2, 8, len(content)]))
        content[at : at + cut] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    same = bytes(content) == good if name == STATE else parsed(bytes(content)) == parsed(good)
    assert disk.start() == (disk.newest if same else disk.older)


def parsed(content: bytes) -> str | None:
    """What a manifest says. As text, because 1 and 1.0 are equal in Python, and the checksum tells them apart."""
    try:
        return json.dumps(json.loads(content), sort_keys=True)
    except (ValueError, RecursionError):
        return None


# --- wrong content with valid checksums -----------------------------------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([STATE, MANIFEST, "..", "", 0, 1, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = (
    ("format",),
    ("seq",),
    ("written",),
    ("recipe",),
    ("recipe", "layers"),
    ("progress",),
    ("progress", "step"),
    ("progress", "version"),
    ("progress", "phase_position"),
    ("progress", "replay.added"),
    ("progress", "prequential"),
    ("progress", "prequential", "window"),
    ("progress", "prequential", "samples"),
    ("progress", "prequential", "wrong"),
    ("files",),
    ("files", STATE),
    ("files", STATE, "bytes"),
    ("files", STATE, CHECKSUM),
)


def put(manifest: dict[str, Any], place: tuple[str, ...], value: Any) -> None:
    *way, last = place
    for name in way:
        manifest = manifest[name]
    if value is ...:
        del manifest[last]
    else:
        manifest[last] = value


@few
@given(place=st.sampled_from(PLACES), value=anything | st.just(...))
@example(place=("files",), value={})
@example(place=("progress",), value={})
@example(place=("progress", "step"), value=...)
@example(place=("progress", "step"), value=2**70)
@example(place=("progress", "replay.added"), value=...)
@example(place=("progress", "replay.added"), value=-1)
@example(place=("progress", "replay.added"), value=10**9)
@example(place=("progress", "prequential", "wrong"), value=float("nan"))
@example(place=("progress", "prequential", "samples"), value=float("inf"))
@example(place=("progress", "prequential", "window"), value=[[1, 2]])
@example(place=("progress", "prequential"), value=[1])
def test_no_value_in_a_manifest_breaks_a_start(disk: Disk, place: tuple[str, ...], value: Any) -> None:
    disk.reset()
    disk.sign(lambda manifest: put(manifest, place, value))
    assert disk.start() in (None, disk.older, disk.newest)


def odd_tensor(tensor: Tensor) -> st.SearchStrategy[Tensor]:
    return st.sampled_from(
        [
            tensor.flatten()[:-1].clone(),
            tensor.reshape(1, *tensor.shape).clone(),
            tensor.to(torch.float16),
            tensor.to(torch.int32),
            torch.zeros(()),
            torch.zeros(0),
            torch.full_like(tensor, -1) if tensor.dtype != torch.uint8 else torch.zeros(5, dtype=torch.uint8),
        ]
    )


@few
@given(data=st.data())
def test_no_set_of_tensors_breaks_a_start(disk: Disk, data: st.DataObject) -> None:
    disk.reset()
    tensors = dict(disk.tensors)
    names = sorted(tensors)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(names))
        what = data.draw(st.sampled_from(["gone", "renamed", "odd", "more"]))
        tensor = tensors.pop(name, torch.zeros(3))
        if what == "renamed":
            tensors[data.draw(st.sampled_from(["x", "layers.7.parameters", "layers.0.", *names]))] = tensor
        elif what == "odd":
            tensors[name] = data.draw(odd_tensor(tensor))
        elif what == "more":
            tensors |= {name: tensor, f"{name}.more": torch.zeros(3)}
    save_file(tensors, disk.here / STATE)
    disk.sign()
    assert disk.start() in (None, disk.newest)


def test_a_checkpoint_without_one_of_its_tensors_is_rejected(disk: Disk) -> None:
    for name in disk.tensors:
        disk.reset()
        save_file({other: value for other, value in disk.tensors.items() if other != name}, disk.here / STATE)
        disk.sign()
        assert disk.start() is None, name


@few
@given(data=st.data())
def test_no_header_of_a_state_file_breaks_a_start(disk: Disk, data: st.DataObject) -> None:
    disk.reset()
    path = disk.here / STATE
    content = bytearray(path.read_bytes())
    (header,) = {int.from_bytes(content[:8], "little")}
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 8 + header))
        cut = data.draw(st.integers(0, 4))
        content[at : at + cut] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"F8_E4M3", b"BF16", b"I64", b"9"])
        )
    path.write_bytes(content)
    disk.sign()
    assert disk.start() in (None, disk.older, disk.newest)
