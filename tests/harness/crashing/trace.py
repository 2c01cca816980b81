"""Reads what strace has recorded: what a process did to a folder, and which acks it sent.

Calls of several threads overlap, so every ambiguity is resolved against the traced process. An fsync covers what was
written before it began, and only once it has returned. A write or a change of names takes effect when it returns. An
ack counts as received when the call that sends it begins.

Nothing is guessed. A call that may change a file in a way that is not modelled raises TraceError, and so does a
folder whose content differs from what the recorded calls explain, as after a write through mapped memory. SQLite's
-shm file is ignored: it is mapped memory that is never fsynced and is created again by the first process that opens
the journal after a crash.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import msgpack

from tests.harness.crashing import disk
from tests.harness.crashing.stream import StoredMessage

_CALLS = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,ftruncate,truncate,fallocate,"
    "fsync,fdatasync,sync_file_range,msync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "link,linkat,symlink,symlinkat,copy_file_range,sendfile,splice,sendto,sendmsg,io_uring_setup"
)
_NOT_DURABLE = ("sync_file_range", "msync")
_LINE = re.compile(r"^(\d+) +(.*)$")
_UNFINISHED = " <unfinished ...>"
_RESUMED = re.compile(r"^<\.\.\. \w+ resumed>(.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += +(-?\d+|\?)", re.DOTALL)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_PATH = re.compile(r"<((?:\\x[0-9a-f]{2})+)>")
_DESCRIPTOR = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})+)>")


class TraceError(Exception):
    """The trace cannot be explained by the model of the disk."""


Event = disk.Operation | StoredMessage  # an operation on the folder, or an entry of an ack that was sent


def command(output: Path) -> list[str]:
    """The command line that runs another command under strace and writes the trace to a file."""
    return ["strace", "-f", "-y", "-xx", "-s", str(1 << 26), "--seccomp-bpf", "-e", f"trace={_CALLS}",
            "-e", "signal=none", "-o", str(output)]  # fmt: skip


def unavailable(folder: Path) -> str | None:
    """Why strace cannot be used on this machine; None when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    trial = subprocess.run([*command(folder / "trial"), "true"], capture_output=True, encoding="utf-8", check=False)
    return None if trial.returncode == 0 else f"strace cannot trace here: {trial.stderr.strip()}"


class _Call(NamedTuple):
    name: str
    arguments: str
    result: int

    @property
    def strings(self) -> list[bytes]:
        """All string arguments."""
        found = _STRING.findall(self.arguments)
        if any(cut for _, cut in found):
            raise TraceError(f"{self.name}: strace has truncated a string")
        return [_bytes(text) for text, _ in found]

    @property
    def data(self) -> bytes:
        """The bytes that were written: as many as the call returned."""
        return b"".join(self.strings)[: self.result]

    @property
    def descriptor(self) -> tuple[int, str]:
        """The number of its first argument, and the path or other name of what that is."""
        found = _DESCRIPTOR.match(self.arguments)
        return (int(found[1]), _text(found[2])) if found else (-1, "")

    @property
    def paths(self) -> list[str]:
        """The string arguments as absolute paths. A folder descriptor in front of one says what it is relative to."""
        found, folder = [], ""
        for each in re.finditer(f"{_STRING.pattern}|{_PATH.pattern}", self.arguments):
            if each[3]:
                folder = _text(each[3])
            else:
                found.append(str(Path(folder, _text(each[1]))))
        return found

    @property
    def offset(self) -> int:
        """The last argument."""
        return int(self.arguments.rpartition(", ")[2])


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return _bytes(text).decode()


class _Step(NamedTuple):
    """The beginning or the end of a call. Both have the complete call, and as ticket the line where it begins."""

    begins: bool
    ticket: int
    call: _Call


def split_by_daemon(path: Path, pids: Sequence[int]) -> Iterator[list[_Step]]:
    """The steps of each daemon, from its first call on. The daemons of one fork server run one after another.

    The two halves of a call are joined before the trace is split, because a call of the fork server may begin before
    a daemon and end after its first call.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    begins = [next(at for at, line in enumerate(lines) if line.startswith(f"{pid} ")) for pid in pids]
    steps = _steps(lines)
    for begin, end in pairwise([*begins, len(lines)]):
        yield [step for step in steps if begin <= step.ticket < end]


def _steps(lines: Sequence[str]) -> list[_Step]:
    began: dict[str, tuple[int, str]] = {}
    steps: list[tuple[int, _Step]] = []
    for number, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        process, text = found.groups()
        start = number
        if text.endswith(_UNFINISHED):
            began[process] = (number, text.removesuffix(_UNFINISHED))
            continue
        if resumed := _RESUMED.match(text):
            start, beginning = began.pop(process)
            text = beginning + resumed[1]
        call = _CALL.match(text)
        if call is None or call[3] == "?":
            continue  # a signal, an exit, or a call that did not return because the process ended
        whole = _Call(call[1], call[2], int(call[3]))
        steps += [(start, _Step(True, start, whole)), (number, _Step(False, start, whole))]
    return [step for _, step in sorted(steps, key=lambda each: (each[0], not each[1].begins))]


class Reader:
    """Reads the traces of daemons that ran one after another in one folder."""

    def __init__(self, root: Path, state: Path) -> None:
        self._state = str(state)
        self._disk = disk.Disk(root)  # tells which files exist
        self._parent = str(root)
        self._ticket = 0

    def read(self, steps: Sequence[_Step]) -> Iterator[Event]:
        """The events of one daemon. Raises TraceError."""
        offsets: dict[int, int] = {}
        streams: dict[str, _Stream] = defaultdict(_Stream)
        tickets: dict[int, int] = {}
        for begins, ticket, call in steps:
            if call.result < 0:
                continue
            if call.name in ("sendto", "sendmsg", "write", "writev") and "socket:" in call.descriptor[1]:
                if begins:
                    yield from streams[call.descriptor[1]].add(call.data)
                continue
            if call.name in ("fsync", "fdatasync"):
                where = call.descriptor[1]
                if not self._is_ours(where) and where != self._parent:
                    continue
                if begins:
                    self._ticket += 1
                    tickets[ticket] = self._ticket
                    yield self._apply(disk.FsyncBegins(where, self._ticket))
                else:
                    yield self._apply(disk.FsyncEnds(tickets.pop(ticket)))
            elif not begins:
                for operation in self._operations(call, offsets):
                    yield self._apply(operation)

    def contents(self) -> dict[str, bytes]:
        """The files that are in the folder now."""
        files = (path for path in Path(self._state).rglob("*") if path.is_file() and self._is_ours(str(path)))
        return {str(path): path.read_bytes() for path in files}

    def check(self, contents: Mapping[str, bytes]) -> None:
        """Raises TraceError when the events that were read do not lead to these contents."""
        explained = self._disk.files()
        if contents != explained:
            names = contents.keys() | explained.keys()
            different = sorted(each for each in names if contents.get(each) != explained.get(each))
            raise TraceError(f"the trace does not explain the content of {different}")

    def _apply(self, operation: disk.Operation) -> disk.Operation:
        self._disk.apply(operation)
        return operation

    def _is_ours(self, path: str) -> bool:
        inside = path == self._state or path.startswith(self._state + "/")
        return inside and not path.endswith("-shm")

    def _operations(self, call: _Call, offsets: dict[int, int]) -> Iterator[disk.Operation]:
        number, path = call.descriptor
        if call.name in ("openat", "open", "creat"):
            yield from self._opened(call, offsets)
        elif call.name in ("mkdir", "mkdirat", "unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2"):
            yield from self._named(call)
        elif call.name in ("truncate", "link", "linkat", "symlink", "symlinkat"):
            if any(map(self._is_ours, call.paths)):
                raise TraceError(f"{call.name} {call.paths}")
        elif call.name == "io_uring_setup":
            raise TraceError("io_uring: strace does not see what goes through it")
        elif not self._touches_ours(call):
            return
        elif call.name in ("write", "writev"):
            yield disk.Write(path, offsets[number], call.data)
            offsets[number] += call.result
        elif call.name == "pwrite64":
            yield disk.Write(path, call.offset, call.data)
        elif call.name == "lseek":
            offsets[number] = call.result
        elif call.name == "ftruncate":
            yield disk.Truncate(path, call.offset)
        elif call.name not in _NOT_DURABLE:
            raise TraceError(f"{call.name} {path}")

    def _touches_ours(self, call: _Call) -> bool:
        return any(self._is_ours(_text(each)) for each in _PATH.findall(call.arguments))

    def _opened(self, call: _Call, offsets: dict[int, int]) -> Iterator[disk.Operation]:
        path = call.paths[0]
        if not self._is_ours(path):
            return
        offsets[call.result] = 0
        if "O_TMPFILE" in call.arguments or "O_APPEND" in call.arguments:
            raise TraceError(f"{call.name} {path} {call.arguments}")
        if not self._disk.exists(path):
            if "O_CREAT" not in call.arguments:
                raise TraceError(f"{path} exists, but the trace does not show who created it")
            yield disk.Create(path, folder=False)
        elif "O_TRUNC" in call.arguments:
            yield disk.Truncate(path, 0)

    def _named(self, call: _Call) -> Iterator[disk.Operation]:
        paths = call.paths
        if not any(map(self._is_ours, paths)):
            return
        if call.name.startswith("mkdir"):
            yield disk.Create(paths[0], folder=True)
        elif call.name.startswith("rename"):
            yield disk.Rename(paths[0], paths[1])
        else:
            yield disk.Remove(paths[0])


class _Stream:
    """The bytes sent on one connection: a greeting of 64 bytes, then ZMTP frames."""

    def __init__(self) -> None:
        self._bytes = b""
        self._greeted = False

    def add(self, data: bytes) -> list[StoredMessage]:
        """Returns the ack entries that these bytes complete."""
        self._bytes += data
        if not self._greeted:
            if len(self._bytes) < 64 or self._bytes[0] != 0xFF:
                return []
            self._bytes, self._greeted = self._bytes[64:], True
        acks: list[StoredMessage] = []
        while (frame := self._frame()) is not None:
            is_command, body = frame
            if not is_command and b"\xa3ack" in body:
                header = msgpack.unpackb(body)
                acks += (StoredMessage(*each) for each in header["acks"])
        return acks

    def _frame(self) -> tuple[bool, bytes] | None:
        """The next complete frame: flags (1: more, 2: long, 4: command), length in 1 or 8 bytes, body."""
        if not self._bytes:
            return None
        flags = self._bytes[0]
        body = 9 if flags & 2 else 2
        end = body + int.from_bytes(self._bytes[1:body], "big")
        if len(self._bytes) < max(body, end):
            return None
        frame = self._bytes[body:end]
        self._bytes = self._bytes[end:]
        return bool(flags & 4), frame
