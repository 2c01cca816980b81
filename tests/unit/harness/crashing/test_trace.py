"""What power loss may take is read out of a trace: calls of several threads, in halves, in any order."""

from pathlib import Path

import pytest

from tests.harness.crashing import disk, trace
from tests.harness.crashing.stream import Heard


def hexed(text: str) -> str:
    """As strace -xx prints a string."""
    return "".join(f"\\x{byte:02x}" for byte in text.encode())


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "root" / "state"


class Trace:
    """Writes the lines of a trace, and reads the operations of each life back."""

    def __init__(self, path: Path, state: Path) -> None:
        self._path, self._state = path, state
        self.journal = str(state / "journal")
        self.at = f"7<{hexed(self.journal)}>"  # an open file, as strace -y prints it

    def write(self, *lines: str) -> None:
        made = f'20 mkdir("{hexed(str(self._state))}", 0700) = 0'
        opened = f'20 openat(AT_FDCWD<{hexed("/")}>, "{hexed(self.journal)}", O_RDWR|O_CREAT, 0600) = {self.at}'
        self._path.write_text("\n".join([made, opened, *lines]) + "\n")

    def lives(self, *pids: int) -> list[list[disk.Operation]]:
        reader = trace.Reader(self._state.parent, self._state)
        return [
            [event.what for event in reader.read(steps) if not isinstance(event.what, Heard)]
            for steps in trace.by_life(self._path, pids)
        ]


@pytest.fixture
def traced(tmp_path: Path, state: Path) -> Trace:
    state.parent.mkdir()
    return Trace(tmp_path / "trace", state)


def test_an_fsync_covers_what_was_written_before_it_began(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0) = 3',
        f"21 fsync({traced.at} <unfinished ...>",
        f'20 pwrite64({traced.at}, "{hexed("two")}", 3, 3) = 3',
        "21 <... fsync resumed>) = 0",
    )
    (life,) = traced.lives(20)
    assert life[2:] == [
        disk.Write(traced.journal, 0, b"one"),
        disk.SyncBegins(traced.journal, 1),
        disk.Write(traced.journal, 3, b"two"),
        disk.SyncEnds(1),
    ]


def test_a_call_of_the_fork_server_may_lie_across_the_beginning_of_a_life(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0) = 3',
        "20 +++ killed by SIGKILL +++",
        f'10 write(1<{hexed("pipe:[5]")}>, "{hexed("born")}", 4 <unfinished ...>',
        f'30 openat(AT_FDCWD<{hexed("/")}>, "{hexed(traced.journal)}", O_RDWR) = {traced.at}',
        "10 <... write resumed>) = 4",
        f'30 pwrite64({traced.at}, "{hexed("two")}", 3, 3) = 3',
    )
    first, second = traced.lives(20, 30)
    assert first[2:] == [disk.Write(traced.journal, 0, b"one")]
    assert second == [disk.Write(traced.journal, 3, b"two")]


def test_a_call_that_the_kill_cut_off_did_not_happen(traced: Trace) -> None:
    traced.write(
        f'20 pwrite64({traced.at}, "{hexed("one")}", 3, 0 <unfinished ...>',
        "20 <... pwrite64 resumed>) = ?",
        "20 +++ killed by SIGKILL +++",
    )
    (life,) = traced.lives(20)
    assert len(life) == 2  # the folder and the file


def test_a_call_that_is_not_understood_is_not_passed_over(traced: Trace) -> None:
    traced.write(f"20 fallocate({traced.at}, 0, 0, 4096) = 0")
    with pytest.raises(trace.TraceUnclear, match="fallocate"):
        traced.lives(20)
