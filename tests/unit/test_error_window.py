"""Nothing claims an error over more samples than were predicted."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from ffstream.cli import main
from ffstream.cli.output import prequential_error
from ffstream.client import Control
from tests.in_process import Running
from tests.unit.tools.scripts import load

ROOT = Path(__file__).resolve().parents[2]


def errors(predicted: int) -> dict[str, Any]:
    error = 0.012 if predicted else None
    return {
        "prequential_error": error,
        "prequential_error_total": error,
        "prequential_window_samples": min(predicted, 10_000),
    }


@pytest.fixture(scope="module")
def status(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with Running(tmp_path_factory.mktemp("status") / "state") as running:
        return running.daemon.reports.status() | errors(8000)


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    return load("demo")


def test_the_error_names_the_samples_that_it_is_over() -> None:
    assert prequential_error(errors(0)) == "no samples are predicted yet"
    assert prequential_error(errors(8000)) == "1.20% of the last 8,000 predicted, 1.20% of all"
    assert prequential_error(errors(50_000)) == "1.20% of the last 10,000 predicted, 1.20% of all"


def test_status_names_the_samples_that_its_error_is_over(
    status: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Control, "status", lambda *arguments: status)
    shown = CliRunner().invoke(main, ["status"]).output
    assert "of the last 8,000 predicted" in shown
    assert "10,000" not in shown


def test_the_demo_does_so_after_one_pass_over_its_digits(demo: ModuleType, status: dict[str, Any]) -> None:
    assert demo.PASSES == 1, "the error of a second pass is that of digits that were learned before"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(demo.view.draw(status, demo.view.Trend(), width=200))
    assert "1.20% of the last 8,000 predicted" in shown.get()
    assert "10,000" not in shown.get()


def test_the_page_does_so() -> None:
    for path in (ROOT / "ffstream" / "server" / "page").iterdir():
        assert "10,000" not in path.read_text(encoding="utf-8"), path
    learning = (ROOT / "ffstream" / "server" / "page" / "learning.js").read_text(encoding="utf-8")
    assert "samples, size } = status.window" in learning
