"""Folders of clusters on this machine: those of killed keepers are removed, those in use are not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ffstream.pipeline.cluster import folders

MAKE = (
    "import sys; from ffstream.pipeline.cluster import folders; print(folders.make(), flush=True); sys.stdin.read()"
)
DEADLINE_S = 60.0


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_the_folder_of_a_killed_process_is_removed_by_the_next_and_no_other() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ, text=True
    ) as process:
        assert process.stdout is not None
        made = Path(process.stdout.readline().strip())
        (made / "session").mkdir()
        folders.remove_unused()
        assert made.is_dir(), "it is in use"
        process.kill()
        process.wait(DEADLINE_S)
    other = Path(folders.make())
    assert not made.exists()
    folders.remove_unused()
    assert other.is_dir(), "this process uses it"
    folders.remove(other)
    assert not other.exists()
