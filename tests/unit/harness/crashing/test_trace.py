"""Traces of strace are read correctly: calls of several threads, in two halves, in any order."""

from pathlib import Path

import pytest

from tests.harness.crashing import disk, trace
from tests.harness.crashing.stream import StoredMessage


def hexed(text: str) -> str:
    """Formats a string as strace -xx does."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "root" / "state"


class Trace:
    """Writes the lines of a trace and reads the operations of each daemon back."""

    def __init__(self, path: Path, state: Path) -> None:
        self._path, self._state = path, state
        self.journal = str(state / "journal")
        self.at = f"7<{hexed(self.journal)}>"  # an open file, as strace -y formats it

    def write(self, *lines: str) -> None:
        mkdir = f'20 mkdir("{hexed(str(self._state))}", 0700) = 0'
        openat = f'20 openat(AT_FDCWD<{hexed("/")}>, "{hexed(self.journal)}", O_RDWR|O_CREAT, 0600) = {self.at}'
        self._path.write_text("\n".join([mkdir, openat, *lines]) + "\n")

    def operations(self, *pids: int) -> list[list[disk.Operation]]:
        reader = trace.Reader(self._state.parent, self._state)
        return [
            [event for event in reader.read(steps) if not isinstance(event, StoredMessage)]
            for steps in trace.split_by_daemon(self._path, pids)
        ]


@pytest.fixture
def traced(tmp_path: Path, state: Path) -> Trace:
    state.parent.mkdir()
    return Trace(tmp_path / "trace", state)


def test_a_write_during_an_fsync_comes_between_its_beginning_and_its_end(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0) = 3',
        f"21 fsync({traced.at} <unfinished ...>",
        f'20 pwrite64({traced.at}, "{hexed("two")}", 3, 3) = 3',
        "21 <... fsync resumed>) = 0",
    )
    (operations,) = traced.operations(20)
    assert operations[2:] == [
        disk.Write(traced.journal, 0, b"one"),
        disk.FsyncBegins(traced.journal, 1),
        disk.Write(traced.journal, 3, b"two"),
        disk.FsyncEnds(1),
    ]


def test_a_call_of_the_fork_server_may_overlap_the_first_call_of_a_daemon(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0) = 3',
        "20 +++ killed by SIGKILL +++",
        f'10 write(1<{hexed("pipe:[5]")}>, "{hexed("pid!")}", 4 <unfinished ...>',
        f'30 openat(AT_FDCWD<{hexed("/")}>, "{hexed(traced.journal)}", O_RDWR) = {traced.at}',
        "10 <... write resumed>) = 4",
        f'30 pwrite64({traced.at}, "{hexed("two")}", 3, 3) = 3',
    )
    first, second = traced.operations(20, 30)
    assert first[2:] == [disk.Write(traced.journal, 0, b"one")]
    assert second == [disk.Write(traced.journal, 3, b"two")]


def test_a_call_interrupted_by_the_kill_has_no_effect(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0 <unfinished ...>',
        "20 <... pwrite64 resumed>) = ?",
        "20 +++ killed by SIGKILL +++",
    )
    (operations,) = traced.operations(20)
    assert len(operations) == 2, "the folder and the file"


def test_an_unknown_call_on_a_traced_file_is_an_error(traced: Trace) -> None:
    traced.write(f"20 fallocate({traced.at}, 0, 0, 4096) = 0")
    with pytest.raises(trace.TraceError, match="fallocate"):
        traced.operations(20)
