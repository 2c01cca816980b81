"""What was flushed, by the paths that fsync met."""

import os
from pathlib import Path

import pytest

from ffstream.util.durable import fsync_tree, make_folder


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Paths, as they are flushed."""
    flush, paths = os.fsync, set()

    def fsync(descriptor: int) -> None:
        paths.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_every_folder_that_got_a_new_one_is_flushed(tmp_path: Path, flushed: set[Path]) -> None:
    make_folder(tmp_path / "a" / "b" / "c", 0o700)
    assert flushed == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    flushed.clear()
    make_folder(tmp_path / "a", 0o700)
    assert not flushed


def test_a_tree_reaches_through_links_and_once_to_each_place(tmp_path: Path, flushed: set[Path]) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    for folder in (state, elsewhere):
        folder.mkdir()
        (folder / "file").touch()
    (state / "checkpoints").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(state)
    fsync_tree(state)
    assert flushed == {state, state / "file", elsewhere, elsewhere / "file"}
