"""A daemon in a process of its own, as a user would run it, on free loopback ports and a temporary folder."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.daemon_process import DaemonProcess


class Served(DaemonProcess):
    """Where it listens, and its process."""

    def resident_mb(self) -> float:
        """Resident memory now, in units of 10⁶ bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


@contextmanager
def served(*settings: str) -> Iterator[Served]:
    """Serves until the block ends, then stops cleanly. Raises DaemonFailed if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Served(Path(folder, "state"), settings)
        try:
            yield daemon
        finally:
            daemon.end()
