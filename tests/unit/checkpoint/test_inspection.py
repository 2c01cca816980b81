import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ffstream.checkpoint.inspection import half_written, inspect
from ffstream.checkpoint.store import Checkpoint, CheckpointStore
from ffstream.cli import main
from ffstream.errors import CheckpointDamaged
from tests.support import folder_contents


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(tmp_path / "checkpoints", keep=5, recipe={"widths": (3,)})
    for seq in (10, 20, 30):
        store.write(Checkpoint(seq, {"x": torch.zeros(100)}, {}))
    return store


def state_of(store: CheckpointStore, seq: int) -> Path:
    return store.folder / f"{seq:020d}" / "state.safetensors"


def test_checkpoints_are_listed_newest_first_with_recipe_and_size(store: CheckpointStore) -> None:
    before = folder_contents(store.folder)
    found = list(inspect(store.folder, thoroughly=True))
    assert [each.seq for each in found] == [30, 20, 10]
    assert all(each.problem is None and each.bytes > 400 for each in found)
    assert found[0].manifest["recipe"] == {"widths": [3]}
    assert half_written(store.folder) == []
    assert folder_contents(store.folder) == before


def test_a_quick_check_compares_sizes_and_a_thorough_one_every_byte(store: CheckpointStore) -> None:
    content = bytearray(state_of(store, 20).read_bytes())
    content[-1] ^= 1
    state_of(store, 20).write_bytes(content)
    os.truncate(state_of(store, 10), 50)
    for thoroughly, damaged in ((False, [10]), (True, [20, 10])):
        found = inspect(store.folder, thoroughly=thoroughly)
        assert [each.seq for each in found if isinstance(each.problem, CheckpointDamaged)] == damaged


def test_a_single_checkpoint_can_be_checked(store: CheckpointStore) -> None:
    (found,) = inspect(store.folder, thoroughly=True, seq=20)
    assert (found.seq, found.problem) == (20, None)
    assert list(inspect(store.folder, thoroughly=True, seq=25)) == [], "what was never there is not damaged"


def verify(store: CheckpointStore, seq: int) -> Result:
    return CliRunner().invoke(main, ["checkpoint", "verify", str(seq), "--state", str(store.folder.parent)])


def test_verify_distinguishes_a_missing_checkpoint_from_a_damaged_one(store: CheckpointStore) -> None:
    assert verify(store, 20).exit_code == 0
    missing = verify(store, 5)
    assert missing.exit_code == 2
    assert (
        f"error: there is no checkpoint 5 in {store.folder} [config]\nhint: there are 30, 20, 10\n" in missing.output
    )
    assert "damaged" not in missing.output
    (store.folder / f"{5:020d}").mkdir()
    half = verify(store, 5)
    assert (half.exit_code, "checkpoint 5 is incomplete" in half.output) == (2, True)
    os.truncate(state_of(store, 20), 50)
    damaged = verify(store, 20)
    assert (damaged.exit_code, "damaged: checkpoint 20: " in damaged.output) == (1, True)


def test_a_checkpoint_that_is_removed_during_the_check_is_not_damaged(store: CheckpointStore) -> None:
    found = inspect(store.folder, thoroughly=True)
    assert next(found).seq == 30
    store._remove(20)
    assert [(each.seq, each.problem) for each in found] == [(10, None)]


def test_half_written_checkpoints_are_listed(store: CheckpointStore) -> None:
    (store.folder / ".writing-40").mkdir()
    (store.folder / f"{20:020d}" / "manifest.json").unlink()
    assert half_written(store.folder) == [".writing-40", f"{20:020d}"]
    assert [each.seq for each in inspect(store.folder, thoroughly=True)] == [30, 10]
    for of_others in ("lost+found", "notes", ".writing-down"):
        (store.folder / of_others).mkdir()
    store.write(Checkpoint(80, {}, {}))
    assert sorted(each.name for each in store.folder.iterdir() if not each.name.isdecimal()) == [
        ".writing-down",
        "lost+found",
        "notes",
    ]


def test_a_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert list(inspect(tmp_path / "none", thoroughly=True)) == []
    assert half_written(tmp_path / "none") == []
