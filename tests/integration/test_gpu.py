"""tools/gpu where there is no device: the same path on the CPU."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tools.benchmarks.report import ROOT


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "gpu"), *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def write_wheel(folder: Path) -> None:
    """Of a package that no machine has."""
    name = "ffstream_nowhere-1.0"
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("ffstream_nowhere.py", "")
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: ffstream-nowhere\nVersion: 1.0\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")


def test_a_dry_run_installs_tests_and_measures(tmp_path: Path) -> None:
    write_wheel(tmp_path)
    done = gpu("--dry", "--use", str(tmp_path), "--commit", "abc")
    assert done.returncode == 0, done.stderr
    assert "missing here: ffstream-nowhere\n" in done.stderr
    assert " passed" in done.stderr
    assert " skipped" not in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = {row["name"] for row in rows}
    for network in ("784-16-16", "784-16x4", "784-16x8"):
        for batch in (8, 16):
            for figure in ("one_stream/over_backprop_mlp", "stage_streams/over_one_stream", "stage_graphs"):
                assert any(name.startswith(f"gpu/{network}/batch{batch}/{figure}") for name in names)
    assert all(row["commit"] == "abc" and row["ratio"] > 0 and "dry run" in row["device"] for row in rows)


def test_without_a_device_nothing_is_measured() -> None:
    done = gpu()
    assert (done.returncode, done.stdout) == (3, "")
    assert "--dry" in done.stderr
    assert "no CUDA device" in done.stderr
