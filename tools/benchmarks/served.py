"""A daemon in a process of its own, as a user would run it, on free loopback ports and a temporary folder."""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_START_S = 60.0
_STOP_S = 60.0


@dataclass(frozen=True)
class Served:
    """Where it listens, its process, and its files."""

    endpoints: dict[str, str]
    process: subprocess.Popen[str]
    state: Path
    log: Path

    def resident_mb(self) -> float:
        """Resident memory now, in units of 10⁶ bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


@contextmanager
def served(*settings: str) -> Iterator[Served]:
    """Serves until the block ends, then stops cleanly. Raises RuntimeError if it does not start."""
    with tempfile.TemporaryDirectory() as folder:
        state, log = Path(folder, "state"), Path(folder, "log")
        own = [f"listen.{name}=tcp://127.0.0.1:*" for name in ("learn", "predict", "control")]
        options = [part for each in (*own, "listen.http=127.0.0.1:0", *settings) for part in ("--set", each)]
        command = [sys.executable, "-m", "ffstream.cli", "serve", "--state", str(state), *options]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, text=True)
        try:
            yield Served(_await_endpoints(state / "endpoints.json", process, log), process, state, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_endpoints(path: Path, process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            endpoints: dict[str, str] = json.loads(path.read_text())
            return endpoints
        time.sleep(0.02)
    raise RuntimeError(f"the daemon did not start:\n{log.read_text()[-2000:]}")
