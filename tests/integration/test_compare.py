"""`tools/bench compare` on real daemons of two trees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmarks.report import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository: no .git here")


def compare(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.benchmarks", "compare", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_both_trees_are_measured_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = compare(tmp_path, "HEAD", "--pairs", "1", "--seconds", "0.1")
    assert list(tmp_path.iterdir()) == []
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["name"] for row in rows] == [
        *(f"compare/{what}/pair" for what in ("learning", "prediction", "ingest")),
        *(f"compare/{what}" for what in ("learning", "prediction", "ingest")),
    ], done.stderr
    pairs, verdicts = rows[:3], rows[3:]
    for pair, verdict in zip(pairs, verdicts, strict=True):
        assert pair["ratio"] == verdict["value"] == verdict["low"] == verdict["high"]
        assert pair["peer"] == verdict["base"]
    assert done.returncode == (0 if all(row["passed"] for row in verdicts) else 1)
