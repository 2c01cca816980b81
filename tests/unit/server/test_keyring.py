import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from ffstream.security import keys
from ffstream.server import keyring
from ffstream.server.keyring import Keyring
from tests.support import owned_by_another_user


class Ring:
    """A folder with the key of anna. The key of eve is elsewhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "admitted"
        self.folder.mkdir(mode=0o700)
        self.anna, self.eve = (keys.create(folder / "made", name)[0] for name in ("anna", "eve"))
        self.file = Path(shutil.copy(self.anna, self.folder / "x.key"))
        self._keyring = Keyring(self.folder)

    def admits(self) -> list[str]:
        self._keyring.refresh()
        known = {keys.load_public(path).decode(): path.stem for path in (self.anna, self.eve)}
        return sorted(known[key] for key in self._keyring.accepted)


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ring:
    monkeypatch.setattr(keyring, "_POLL_S", 0.0)
    return Ring(tmp_path)


@pytest.mark.parametrize("mode", [0o666, 0o646, 0o664])
def test_a_key_that_others_can_write_is_not_accepted(ring: Ring, mode: int) -> None:
    assert ring.admits() == ["anna"]
    ring.file.chmod(mode)
    assert ring.admits() == []
    ring.file.chmod(0o644)
    assert ring.admits() == ["anna"]


def test_a_key_of_another_user_is_not_accepted(ring: Ring) -> None:
    with owned_by_another_user(ring.file):
        assert ring.admits() == []


def test_keys_in_a_folder_that_others_can_write_are_not_accepted(
    ring: Ring, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for mode in (0o777, 0o770):
        ring.folder.chmod(mode)
        assert ring.admits() == []
    with owned_by_another_user(ring.folder):
        assert ring.admits() == []
    assert [record.getMessage() for record in caplog.records] == [
        f"no keys accepted path={ring.folder} error=other users may write into {ring.folder}"
    ]
    ring.folder.chmod(0o700)
    assert ring.admits() == ["anna"]


def test_a_key_replaced_in_place_is_noticed_even_if_its_time_is_set_back(ring: Ring) -> None:
    before = ring.file.stat()
    with ring.file.open("r+b") as file:
        file.write(ring.eve.read_bytes())
    os.utime(ring.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = ring.file.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert ring.admits() == ["eve"]


def test_a_pipe_among_the_keys_is_ignored(ring: Ring) -> None:
    os.mkfifo(ring.folder / "pipe.key")
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(ring.admits()), daemon=True)
    reader.start()
    reader.join(20)
    assert found == ["anna"]
