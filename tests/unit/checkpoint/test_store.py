import errno
import hashlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

from ffstream.checkpoint import manifest
from ffstream.checkpoint.formats import FORMAT
from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.errors import CheckpointDamaged, CheckpointIncompatible, Unavailable
from tests.support import Watch

RECIPE = {"inputs": 4, "widths": (32, 32), "alpha": 0.05, "goodness": "sum_squares"}
FAILPOINTS = (
    "checkpoint.write.after",
    "checkpoint.fsync.after",
    "checkpoint.rename.after",
    "checkpoint.manifest.before",
    "checkpoint.manifest.after",
)


class Crash(BaseException):
    """Stands for a SIGKILL."""


def checkpoint(seq: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(seq)
    return Checkpoint(
        seq,
        {
            "layers.0.W": torch.randn(5, 4, generator=generator),
            "layers.0.step": torch.tensor(seq, dtype=torch.int64),
            "replay.images": torch.randint(0, 256, (7, 4), generator=generator, dtype=torch.uint8),
            "layers.1.half": torch.randn(3, generator=generator).to(torch.bfloat16),
        },
        {"step": seq // 4, "version": 3, "window": [[4, 1], [4, 0]], "wrong": 0.1, "name": "é", "nothing": None},
    )


def make(folder: Path, *, keep: int = 3, **recipe: Any) -> CheckpointStore:
    return CheckpointStore(folder / "checkpoints", keep=keep, recipe=RECIPE | recipe)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return make(tmp_path)


def the_same(found: Checkpoint | None, wanted: Checkpoint) -> bool:
    return (
        found is not None
        and found.seq == wanted.seq
        and dict(found.progress) == dict(wanted.progress)
        and found.tensors.keys() == wanted.tensors.keys()
        and all(
            found.tensors[name].dtype == value.dtype and torch.equal(found.tensors[name], value)
            for name, value in wanted.tensors.items()
        )
    )


def folder_of(store: CheckpointStore, seq: int) -> Path:
    return store.folder / f"{seq:020d}"


# --- writing and reading --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_back_as_it_was_written(store: CheckpointStore) -> None:
    size = store.write(checkpoint(100))
    assert store.seqs() == [100]
    assert the_same(store.load(100), checkpoint(100))
    assert size == (folder_of(store, 100) / "state.safetensors").stat().st_size
    assert sorted(path.name for path in folder_of(store, 100).iterdir()) == ["manifest.json", "state.safetensors"]


def test_the_manifest_describes_the_checkpoint(store: CheckpointStore) -> None:
    store.write(checkpoint(100))
    manifest = json.loads((folder_of(store, 100) / "manifest.json").read_text())
    state = (folder_of(store, 100) / "state.safetensors").read_bytes()
    assert manifest["files"] == {
        "state.safetensors": {"bytes": len(state), "xxh3_128": xxhash.xxh3_128(state).hexdigest()}
    }
    assert (manifest["format"], manifest["seq"]) == (FORMAT, 100)
    assert manifest["recipe"] == RECIPE | {"widths": [32, 32]}


def test_an_empty_folder_has_no_checkpoints(store: CheckpointStore) -> None:
    assert store.seqs() == []
    assert store.newest() == (None, [])


def test_the_newest_checkpoint_is_the_one_with_the_highest_number(store: CheckpointStore) -> None:
    for seq in (9, 1000, 100):
        store.write(checkpoint(seq))
    assert store.seqs() == [9, 100, 1000]
    assert the_same(store.newest()[0], checkpoint(1000))
    assert the_same(store.newest(at_most=999)[0], checkpoint(100))
    assert the_same(store.newest(at_most=100)[0], checkpoint(100))
    assert store.newest(at_most=8) == (None, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_limits_the_number_of_checkpoints(tmp_path: Path, keep: int) -> None:
    store = make(tmp_path, keep=keep)
    for seq in range(10, 60, 10):
        store.write(checkpoint(seq))
    assert store.seqs() == [10, 20, 30, 40, 50][-keep:]
    assert len(list(store.folder.iterdir())) == keep, "nothing else is left"


def test_the_same_checkpoint_is_not_written_twice(store: CheckpointStore) -> None:
    size = store.write(checkpoint(100))
    manifest = folder_of(store, 100) / "manifest.json"
    before = manifest.read_bytes()
    assert store.write(checkpoint(100)) == size
    assert manifest.read_bytes() == before


def test_discarding_removes_later_checkpoints(store: CheckpointStore) -> None:
    for seq in (10, 20, 30):
        store.write(checkpoint(seq))
    store.discard_after(20)
    assert store.seqs() == [10, 20]
    store.discard_after(0)
    assert store.seqs() == []


def test_other_files_in_the_folder_are_ignored(store: CheckpointStore) -> None:
    store.write(checkpoint(100))
    for name in ("notes", f"{100:020d}.bak", "100", "0x10", "²" * 20):
        (store.folder / name).mkdir()
        (store.folder / name / "manifest.json").write_text("{}")
    (store.folder / "README").write_text("hello")
    assert store.seqs() == [100]
    store.write(checkpoint(200))
    assert store.seqs() == [100, 200]


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x20
    path.write_bytes(content)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def rewrite(path: Path, **changes: Any) -> None:
    """Changes a manifest and its checksum, so that only its content is wrong."""
    manifest = json.loads(path.read_text()) | changes
    manifest = {key: value for key, value in manifest.items() if value is not ... and key != "check"}
    check = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest | {"check": check}))


STATE, MANIFEST = "state.safetensors", "manifest.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "state is missing": lambda folder: (folder / STATE).unlink(),
    "state is empty": lambda folder: (folder / STATE).write_bytes(b""),
    "state is cut": lambda folder: os.truncate(folder / STATE, 100),
    "state is a byte longer": lambda folder: (folder / STATE).write_bytes((folder / STATE).read_bytes() + b"\0"),
    "state: first byte": lambda folder: flip(folder / STATE, 0),
    "state: in its header": lambda folder: flip(folder / STATE, 30),
    "state: last byte": lambda folder: flip(folder / STATE, -1),
    "state is a folder": lambda folder: to_folder(folder / STATE),
    "manifest is empty": lambda folder: (folder / MANIFEST).write_bytes(b""),
    "manifest is cut": lambda folder: os.truncate(folder / MANIFEST, 100),
    "manifest is no JSON": lambda folder: (folder / MANIFEST).write_text("hello"),
    "manifest is no UTF-8": lambda folder: (folder / MANIFEST).write_bytes(b'{"seq": "\xff\xfe"}'),
    "manifest is deep": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "manifest is a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "manifest is null": lambda folder: (folder / MANIFEST).write_text("null"),
    "manifest is a folder": lambda folder: to_folder(folder / MANIFEST),
    "manifest without a check": lambda folder: (folder / MANIFEST).write_text(
        json.dumps({k: v for k, v in json.loads((folder / MANIFEST).read_text()).items() if k != "check"})
    ),
    "another's manifest": lambda folder: (folder / MANIFEST).write_bytes(
        (folder.parent / f"{10:020d}" / MANIFEST).read_bytes()
    ),
    "format is text": lambda folder: rewrite(folder / MANIFEST, format="2"),
    "format is 0": lambda folder: rewrite(folder / MANIFEST, format=0),
    "another seq": lambda folder: rewrite(folder / MANIFEST, seq=21),
    "no format": lambda folder: rewrite(folder / MANIFEST, format=...),
    "no seq": lambda folder: rewrite(folder / MANIFEST, seq=...),
    "no files": lambda folder: rewrite(folder / MANIFEST, files=...),
    "files is a list": lambda folder: rewrite(folder / MANIFEST, files=[]),
    "file without a size": lambda folder: rewrite(folder / MANIFEST, files={STATE: {}}),
    "file is a number": lambda folder: rewrite(folder / MANIFEST, files={STATE: 5}),
    "no recipe": lambda folder: rewrite(folder / MANIFEST, recipe=...),
    "recipe is a list": lambda folder: rewrite(folder / MANIFEST, recipe=[]),
    "no progress": lambda folder: rewrite(folder / MANIFEST, progress=...),
    "progress is a number": lambda folder: rewrite(folder / MANIFEST, progress=5),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(store: CheckpointStore, name: str) -> None:
    store.write(checkpoint(10))
    store.write(checkpoint(20))
    DAMAGES[name](folder_of(store, 20))
    with pytest.raises(CheckpointDamaged, match="checkpoint 20") as caught:
        store.load(20)
    assert caught.value.hint
    found, damages = store.newest()
    assert the_same(found, checkpoint(10))
    assert [damage.code for damage in damages] == ["checkpoint_damaged"]


def test_any_flipped_bit_in_the_manifest_is_detected_or_harmless(store: CheckpointStore) -> None:
    store.write(checkpoint(20))
    path = folder_of(store, 20) / MANIFEST
    good = path.read_bytes()
    for at in range(len(good)):
        spoiled = bytearray(good)
        spoiled[at] ^= 1 << at % 7
        path.write_bytes(spoiled)
        try:
            found = store.load(20)
        except CheckpointDamaged:
            continue
        assert the_same(found, checkpoint(20)), f"byte {at}: {good[at : at + 1]!r}"


def test_each_damaged_checkpoint_is_reported(store: CheckpointStore) -> None:
    for seq in (10, 20, 30):
        store.write(checkpoint(seq))
        flip(folder_of(store, seq) / STATE, -1)
    found, damages = store.newest()
    assert found is None
    assert len(damages) == 3


def test_a_damaged_checkpoint_is_overwritten(store: CheckpointStore) -> None:
    store.write(checkpoint(10))
    store.write(checkpoint(20))
    flip(folder_of(store, 20) / STATE, -1)
    assert store.write(checkpoint(20)) > 0
    found, damages = store.newest()
    assert the_same(found, checkpoint(20))
    assert damages == []


def test_a_manifest_cannot_refer_to_files_outside_its_folder(store: CheckpointStore) -> None:
    store.write(checkpoint(10))
    outside = store.folder / "outside"
    outside.write_bytes(b"x")
    files = {"../outside": {"bytes": 1, "xxh3_128": xxhash.xxh3_128(b"x").hexdigest()}}
    rewrite(folder_of(store, 10) / MANIFEST, files=files)
    with pytest.raises(CheckpointDamaged):
        store.load(10)


def test_a_newer_format_is_an_error_and_not_damage(store: CheckpointStore) -> None:
    """Recovery must not silently use an older checkpoint."""
    store.write(checkpoint(10))
    store.write(checkpoint(20))
    rewrite(folder_of(store, 20) / MANIFEST, format=FORMAT + 1)
    said = rf"checkpoint 20 has format {FORMAT + 1}, .* formats up to {FORMAT}"
    with pytest.raises(CheckpointIncompatible, match=said) as caught:
        store.newest()
    assert "newer ffstream" in caught.value.hint


def test_a_different_recipe_is_rejected_and_the_options_are_named(store: CheckpointStore, tmp_path: Path) -> None:
    store.write(checkpoint(10))
    other = make(tmp_path, alpha=0.5, widths=(32,), new=1)
    changed = r"network\.alpha = 0\.5, not .*; network\.new = 1, not absent; network\.widths = \[32\], not \[32, 32\]"
    with pytest.raises(CheckpointIncompatible, match=changed) as caught:
        other.load(10)
    assert caught.value.hint
    with pytest.raises(CheckpointIncompatible):
        other.newest()
    assert the_same(make(tmp_path, widths=[32, 32]).load(10), checkpoint(10)), "a list is a tuple"


# --- crashes and a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("failpoint", FAILPOINTS)
def test_a_crash_at_any_failpoint_leaves_a_whole_checkpoint(tmp_path: Path, failpoint: str, watched: Watch) -> None:
    def die(now: str) -> None:
        if now == failpoint:
            raise Crash

    store = make(tmp_path, keep=2)
    store.write(checkpoint(10))
    watched(die)
    with pytest.raises(Crash):
        store.write(checkpoint(20))
    watched(None)
    found, damages = store.newest()
    assert the_same(found, checkpoint(20 if failpoint == "checkpoint.manifest.after" else 10))
    assert damages == []
    store.write(checkpoint(20))
    store.write(checkpoint(30))
    assert store.seqs() == [20, 30]
    assert all(the_same(store.load(seq), checkpoint(seq)) for seq in (20, 30))
    assert len(list(store.folder.iterdir())) == 2, "what death left is swept away"


def test_failpoints_are_reached_in_order(tmp_path: Path, watched: Watch) -> None:
    passed: list[str] = []
    watched(passed.append)
    make(tmp_path).write(checkpoint(10))
    assert passed == list(FAILPOINTS)


def test_a_crash_while_an_old_checkpoint_is_removed_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, keep=1)
    store.write(checkpoint(10))

    def die(*arguments: Any, **options: Any) -> None:
        raise Crash

    with monkeypatch.context() as context:
        context.setattr("shutil.rmtree", die)
        with pytest.raises(Crash):
            store.write(checkpoint(20))
    assert the_same(store.newest()[0], checkpoint(20))
    assert store.seqs() == [20]


def test_everything_is_fsynced_in_the_right_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contents before names, the state before the manifest, and each step only after the one before it was
    fsynced."""
    done: list[str] = []
    names = {tmp_path / "checkpoints": "parent", tmp_path: "state folder"}

    def name(path: Path) -> str:
        return names.get(path, path.name.replace(".writing-10", "aside").replace(f"{10:020d}", "folder"))

    fsync, rename = os.fsync, Path.rename

    def record_fsync(descriptor: int) -> None:
        done.append(f"fsync {name(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    def record_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {name(self)} {name(target)}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "rename", record_rename)
    make(tmp_path).write(checkpoint(10))
    assert done == [
        "fsync state folder",
        "fsync state.safetensors",
        "fsync aside",
        "rename aside folder",
        "fsync parent",
        "fsync .manifest",
        "rename .manifest manifest.json",
        "fsync folder",
    ]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limits the size of files in the block, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("refused", [STATE, MANIFEST])
def test_a_failed_write_raises_oserror_and_keeps_the_previous_checkpoint(
    store: CheckpointStore, refused: str
) -> None:
    store.write(checkpoint(10))
    state, manifest = ((folder_of(store, 10) / name).stat().st_size for name in (STATE, MANIFEST))
    assert state < manifest
    with files_of_at_most(100 if refused == STATE else state), pytest.raises(OSError, match=r"[tT]oo large"):
        store.write(checkpoint(20))
    assert the_same(store.newest()[0], checkpoint(10))
    assert store.write(checkpoint(20)) > 0
    assert the_same(store.newest()[0], checkpoint(20))


def test_damaged_newer_checkpoints_do_not_displace_whole_ones(tmp_path: Path) -> None:
    store = make(tmp_path, keep=1)
    for seq in (100, 300):
        make(tmp_path, keep=2).write(checkpoint(seq))
    (folder_of(store, 300) / STATE).write_bytes(b"")
    store.write(checkpoint(150))
    assert the_same(store.newest()[0], checkpoint(150))
    assert store.seqs() == [150, 300]
    store.write(checkpoint(350))
    assert store.seqs() == [350]


def damage(store: CheckpointStore, seq: int) -> None:
    (store.folder / f"{seq:020d}" / "state.safetensors").write_bytes(b"")


def test_a_known_damaged_checkpoint_does_not_count_toward_keep(tmp_path: Path) -> None:
    store = make(tmp_path, keep=2)
    store.write(checkpoint(100))
    store.write(checkpoint(200))
    damage(store, 200)
    found, damages = store.newest()
    assert found is not None
    assert (found.seq, len(damages)) == (100, 1)
    assert (store.seqs(), store.whole_seqs()) == ([100, 200], [100]), "it stays on disk, but nothing relies on it"
    store.write(checkpoint(250))
    assert store.seqs() == store.whole_seqs() == [100, 250]


def test_a_rewritten_checkpoint_is_no_longer_damaged(tmp_path: Path) -> None:
    store = make(tmp_path)
    store.write(checkpoint(100))
    damage(store, 100)
    assert store.newest()[0] is None
    assert store.whole_seqs() == []
    store.write(checkpoint(100))
    assert store.whole_seqs() == [100]
    assert the_same(store.load(100), checkpoint(100))


def test_an_unreadable_checkpoint_is_removed_only_after_a_new_one_is_written(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be whole: no file descriptor was left to read it. After that, the disk is full."""
    store.write(checkpoint(100))

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "checksum", lambda *arguments: (_ for _ in ()).throw(OSError(errno.EMFILE, "files")))
        patch.setattr("ffstream.checkpoint.store.save", full)
        with pytest.raises(OSError, match="no space"):
            store.write(checkpoint(100))
    assert the_same(store.load(100), checkpoint(100))


def test_a_checkpoint_whose_fsync_failed_is_fsynced_again(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = str(store.folder / f"{100:020d}")
    flush, flushed = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        flushed.append(path)
        if flushed.count(final) == 1 and path == final:
            raise OSError(errno.EIO, "the disk does not answer")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="does not answer"):
        store.write(checkpoint(100))
    store.write(checkpoint(100))
    assert flushed.count(final) == 2


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(Unavailable, match="checkpoints"):
        make(tmp_path)
    with pytest.raises(Unavailable, match="checkpoints"):
        manifest.seqs(tmp_path / "checkpoints")
    assert manifest.seqs(tmp_path / "nowhere") == []
