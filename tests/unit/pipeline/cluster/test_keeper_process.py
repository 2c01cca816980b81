"""What a keeper writes before it ends is logged."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from ffstream.pipeline.cluster.keeper_process import KeeperProcess
from tests.unit.pipeline.run import DEADLINE_S


def test_all_lines_are_logged_also_when_another_process_still_holds_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start, sleeps = subprocess.Popen, f'subprocess.Popen(["sleep", "{3 * DEADLINE_S}"])'
    program = (
        f"import os, subprocess; left = {sleeps}; os.write(1, str(left.pid).encode());"
        ' os.write(2, b"Traceback\\n  in a file\\nno memory\\n"); os._exit(1)'
    )
    left = tmp_path / "left"

    def instead_of_ray(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        with left.open("wb") as output:
            return start([command[0], "-c", program], **options | {"stdout": output})

    monkeypatch.setattr(subprocess, "Popen", instead_of_ray)
    gone = threading.Event()
    failures: list[Exception] = []
    keeper = KeeperProcess("auto", threading.Event(), lambda number, reason: gone.set(), failures.append)
    assert gone.wait(DEADLINE_S)
    keeper.stop(DEADLINE_S)
    os.kill(int(left.read_text()), signal.SIGKILL)
    said = [record.getMessage() for record in caplog.records if "keeper says" in record.getMessage()]
    assert [each.rpartition("text=")[2] for each in said] == ["'Traceback'", "'in a file'", "'no memory'"]
    assert not failures
