"""Rows of the benchmarks: what they say about where they come from."""

import json
import subprocess
from pathlib import Path

import click
import pytest

from tools.benchmarks import command, report
from tools.benchmarks.experiments import accuracy_command
from tools.benchmarks.report import Report, Row

ORIGIN = {"commit", "dirty", "python", "torch", "numpy", "pyzmq", "ffstream", "processor", "flags", "cores"}


@pytest.fixture(autouse=True)
def _found_out_again() -> None:
    report.origin.cache_clear()


def printed(capsys: pytest.CaptureFixture[str]) -> Row:
    (line,) = capsys.readouterr().out.splitlines()
    row: Row = json.loads(line)
    return row


def test_a_row_says_what_was_measured_how_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    made = Report(True, "tools/bench learn --rounds 9", {"rounds": 9}, [0, 1])
    made.add("learn/speed", 300.0, "samples/s", "serial", 200.0, pair=3)
    row = printed(capsys)
    assert row.keys() >= ORIGIN | {"measured"}
    assert (row["name"], row["value"], row["unit"], row["pair"]) == ("learn/speed", 300.0, "samples/s", 3)
    assert (row["peer"], row["peer_value"], row["ratio"]) == ("serial", 200.0, 1.5)
    assert (row["command"], row["options"], row["seeds"]) == ("tools/bench learn --rounds 9", {"rounds": 9}, [0, 1])


def test_a_row_names_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "accuracy", "mnist", "--data", str(tmp_path), "--json"])
    with click.Context(accuracy_command) as context:
        context.params = {"dataset": "mnist", "data": tmp_path, "as_json": True}
        command.report().add("accuracy", 1.5, "%")
    row = printed(capsys)
    assert row["command"] == "tools/bench accuracy mnist --data DIR"
    assert row["options"] == {"dataset": "mnist", "data": "DIR"}
    monkeypatch.setattr("sys.argv", ["bench", "accuracy", "--dataset", str(tmp_path), "--json"])
    with click.Context(accuracy_command) as context:
        context.params = {"dataset": str(tmp_path), "data": None, "as_json": True}
        command.report().add("accuracy", 1.5, "%")
    row = printed(capsys)
    assert (row["command"], row["options"]["dataset"]) == ("tools/bench accuracy --dataset DIR", "DIR")
    monkeypatch.setattr("sys.argv", ["bench", "accuracy", "--data=mnist", "--dataset", "mnist", "--set", "a.b=1"])
    with click.Context(accuracy_command) as context:
        context.params = {"dataset": "mnist", "data": Path("mnist"), "as_json": True}
        command.report().add("accuracy", 1.5, "%")
    assert printed(capsys)["command"] == "tools/bench accuracy --data=DIR --dataset mnist --set a.b=1"


def test_a_person_sees_the_origin_once(capsys: pytest.CaptureFixture[str]) -> None:
    made = Report(False, "tools/bench learn")
    made.add("one", 1.0, "s")
    made.add("other", 2.0, "s")
    origin, one, other = capsys.readouterr().out.splitlines()
    assert origin.startswith("commit ")
    assert "torch " in origin
    assert (one.split()[:3], other.split()[:3]) == (["one", "1", "s"], ["other", "2", "s"])


def repository(folder: Path) -> None:
    (folder / "file").write_text("one")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *arguments], cwd=folder, check=True, timeout=60)


def test_a_changed_or_new_file_makes_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    clean = report.origin()
    assert clean["dirty"] is False
    assert len(clean["commit"]) == 12
    (tmp_path / "file").write_text("two")
    report.origin.cache_clear()
    assert report.origin() == clean | {"dirty": True}


def test_recorded_results_do_not_make_the_tree_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    (tmp_path / "tools" / "benchmarks").mkdir(parents=True)
    (tmp_path / "tools" / "benchmarks" / "results.jsonl").write_text("{}")
    (tmp_path / "tools" / "README.md").write_text("")
    assert report.origin()["dirty"] is False


def test_without_a_repository_the_commit_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert (report.origin()["commit"], report.origin()["dirty"]) == ("not recorded", "not recorded")
    report.origin.cache_clear()
    monkeypatch.setenv("FFSTREAM_COMMIT", "abc")
    assert (report.origin()["commit"], report.origin()["dirty"]) == ("abc", "not recorded")
