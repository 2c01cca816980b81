"""`tools/bench checkpoint`: a speed of learning is that of a network that always has something to learn."""

import json

import pytest

from tools.benchmarks import checkpoint
from tools.benchmarks.report import Failed, Report


def test_a_journal_that_runs_out_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Failed, match="ran out of its 0 samples: take fewer rounds"):
        checkpoint.run(Report(True, "a test"), 1, widths=(8, 8), samples=0)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [], "and nothing is reported"
