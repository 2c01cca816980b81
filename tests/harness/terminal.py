"""A program in a terminal of its own, as a person would run it: its keys, its screen, its signals."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.harness.commands import COMMAND_S

_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?<>=]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")
# Makes the terminal that of the program's session, so that Ctrl-C and job control work.
_TAKE_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs `command` in a pseudo-terminal. At the end of the `with` block it is killed if it still runs."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] = {},
        folder: Path | None = None,
    ) -> None:
        self._own, program = pty.openpty()
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        inherited = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=program,
            stdout=program,
            stderr=program,
            env={**inherited, "TERM": "xterm-256color", **environment},
            cwd=folder,
        )
        os.close(program)
        self._written = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._own, 65_536)
            except OSError:  # the program has ended
                data = b""
            with self._changed:
                self._written += data.decode("utf-8", "replace")
                self._changed.notify_all()
            if not data:
                return

    def send(self, keys: str) -> None:
        """Types these keys."""
        os.write(self._own, keys.encode())

    @property
    def output(self) -> str:
        """All that the program has written, with its escape sequences."""
        with self._changed:
            return self._written

    @property
    def text(self) -> str:
        """All that the program has written, without escape sequences."""
        return _ESCAPE.sub("", self.output)

    def expect(self, pattern: str, *, after: int = 0, timeout_s: float = COMMAND_S) -> int:
        """Waits until the text from position `after` on matches the pattern. Returns the position of its end.

        Raises:
            AssertionError: when it does not match after `timeout_s`.
        """
        found: list[int] = []

        def matches() -> bool:
            match = re.search(pattern, _ESCAPE.sub("", self._written)[after:])
            found[:] = [after + match.end()] if match else []
            return match is not None

        with self._changed:
            if not self._changed.wait_for(matches, timeout_s):
                raise AssertionError(f"no {pattern!r} within {timeout_s:g} s in {self._written[-3000:]!r}")
        return found[0]

    def wait(self, timeout_s: float = COMMAND_S) -> int:
        """The exit code, once the program has ended and all that it has written is read."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait(COMMAND_S)
        self._reader.join(COMMAND_S)
        os.close(self._own)
