"""`tools/demo` as a newcomer runs it: in a terminal, and by a script."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.commands import COMMAND_S
from tests.harness.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, str(ROOT / "tools" / "demo"), "--rate", "0")

pytestmark = pytest.mark.skipif(
    Path(sys.prefix).resolve() != ROOT / ".venv", reason="tools/demo would set up .venv, which is not this Python"
)


def test_it_says_where_its_page_is_shows_what_top_shows_and_learns_in_one_pass() -> None:
    with Terminal(COMMAND) as terminal:
        page = terminal.expect(r"its page is http://127\.0\.0\.1:\d+/ while this runs")
        terminal.expect("READY", after=page)  # the page's address is there before anything is learned
        terminal.expect("10,000 accepted, 10,000 learned, 0 waiting", after=page)
        terminal.expect(r"Learned 10,000 samples\. The network misreads \d\.\d\d% of 2,000 test digits\.", after=page)
        assert terminal.wait() == 0


def test_with_json_it_prints_one_line_with_stable_keys() -> None:
    done = subprocess.run(
        [*COMMAND, "--json"], capture_output=True, encoding="utf-8", timeout=2 * COMMAND_S, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert {"error", "prequential_error_total", "samples", "samples_per_second"} <= result.keys()
    assert result["samples"] == 10_000
    assert result["error"] < 0.1
