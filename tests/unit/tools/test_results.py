"""The results that are kept, and the tables of tools/README.md."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tools.benchmarks import family, results
from tools.benchmarks.__main__ import main
from tools.benchmarks.command import influential
from tools.benchmarks.report import Failed, Row

ORIGIN: Row = {
    "commit": "abc",
    "dirty": False,
    "python": "3.11.7",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "pyzmq": "27.3.0",
    "ffstream": "0.1.0",
    "processor": "a processor",
    "flags": ["avx2"],
    "cores": 2,
    "measured": "2026-11-27",
    "options": {},
    "seeds": [0],
}


def row(name: str, command: str, **more: Any) -> Row:
    return {"name": name, "command": command, **ORIGIN, **more}


def rendered(section: str, *rows: Row) -> list[str]:
    text = f"before\n<!-- results {section} -->\nold\n<!-- end -->\nafter\n"
    lines = results.render(text, rows).splitlines()
    assert lines[:2] == ["before", f"<!-- results {section} -->"]
    assert lines[-2:] == ["<!-- end -->", "after"]
    return [line for line in lines[2:-2] if line]


def test_the_tables_of_the_readme_are_those_of_the_rows() -> None:
    text = results.README.read_text(encoding="utf-8")
    assert results.render(text, results.load()) == text, "run tools/bench report --write"


def test_every_row_has_a_table_and_an_origin() -> None:
    text = results.README.read_text(encoding="utf-8")
    known = {name for names in results.SECTIONS.values() for name in names}
    for each in results.load():
        assert each["name"].partition("/")[0] in known
        assert each.keys() >= ORIGIN.keys()
        assert "result" in each or f"`{each['name']}`" in text
    for section in (*results.SECTIONS, "machines", "family", "forecast"):
        assert f"<!-- results {section} -->" in text


def test_repetitions_are_shown_as_median_and_range() -> None:
    rows = [
        row("learn/x", "tools/bench learn", value=value, unit="s", peer="p", peer_value=2.0, ratio=value / 2)
        for value in (3.0, 1.0, 2.0)
    ]
    assert rendered("learning", *rows) == [
        "`tools/bench learn` (`abc`; machine A; 2026-11-27; seeds 0):",
        "| figure | value | beside | ratio |",
        "|---|---|---|---|",
        "| `learn/x` | 2 (1 to 3) s | p 2 (2 to 2) | 1 (0.5 to 1.5) |",
    ]


def test_runs_of_one_command_on_two_machines_are_not_mixed() -> None:
    here, there = (
        row("learn/x", "tools/bench learn", value=value, unit="s", processor=processor)
        for value, processor in ((1.0, "one"), (3.0, "other"))
    )
    lines = rendered("learning", here, there)
    assert [line for line in lines if "learn/x" in line] == ["| `learn/x` | 1 s |  |  |", "| `learn/x` | 3 s |  |  |"]
    assert [line.split("; ")[1] for line in lines if line.startswith("`")] == ["machine A", "machine B"]
    name = "accuracy/overlay/mnist/10_pass/test"
    here, there = (here | {"name": name}, there | {"name": name})
    lines = [line for line in rendered("family", here, there) if "learn" in line]
    assert [line.split(" | ")[3] for line in lines] == ["1.00 %", "3.00 %"]


def test_missing_origins_are_shown_as_not_recorded() -> None:
    old = row(
        "ingest/x", "tools/bench ingest", low=1, high=2, unit="s", note="in two runs", entered="def",
        **{"commit": "not recorded", "measured": "not recorded", "seeds": "not recorded", "flags": "not recorded"},
    )  # fmt: skip
    lines = rendered("serving", {**old})
    assert lines[0] == "`tools/bench ingest` (commit not recorded, entered by `def`; machine A):"
    assert lines[-1] == "| `ingest/x` (in two runs) | 1 to 2 s |  |  |"
    assert rendered("machines", old) == [
        "- A: a processor; 2 cores; python 3.11.7, torch 2.13.0, numpy 2.4.6, pyzmq 27.3.0"
    ]


def test_a_difference_is_shown_with_its_range_and_what_it_means() -> None:
    difference = row(
        "accuracy/x/difference", "tools/bench accuracy", value=-0.2, unit="points", lowest=-0.3, highest=-0.1,
        standing="ahead",
    )  # fmt: skip
    assert (
        rendered("accuracy", difference)[-1] == "| `accuracy/x/difference` | -0.2 points, -0.3 to -0.1: ahead |  |  |"
    )


def test_the_table_of_the_family_has_a_line_for_each_system_and_command() -> None:
    assert all(line.endswith("| not measured yet |  |  |  |  |") for line in rendered("family")[2:])
    names = [each["name"] for each in family.systems()]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rendered("family")[2:]] == names
    plain, jittered = (
        "tools/bench accuracy --preset hinton" + more for more in (" --set network.replay_jitter=0", "")
    )
    found = [
        row("accuracy/hinton/mnist/9_pass/test", plain, value=1.25, peer_value=1.5, minutes=3.0),
        row("accuracy/hinton/mnist/9_pass/test", plain, value=1.35, peer_value=1.6, minutes=4.0),
        row("accuracy/hinton/mnist/9_pass/test", jittered, value=0.75),
        row("accuracy/hinton/mnist/9_pass/test/difference", jittered, value=-1.0),
        row("accuracy/hinton/mnist/9_pass/through_daemon/test", jittered, value=0.8),
    ]
    lines = [line for line in rendered("family", *found) if "--preset hinton" in line]
    assert [line.split(" | ", 1)[1] for line in lines] == [
        f"– | 1.36 % | 1.30 % | 1.55 % | 3.5 | 2 | `{plain}` |",
        f"0.64 % | 0.64 % | 0.75 % |  |  | 1 | `{jittered}` |",
    ]


def test_options_that_name_files_are_not_part_of_the_command() -> None:
    given = ["accuracy", "--runs", "a", "--passes", "2", "--plot=b.png", "--json", "--data", "d"]
    assert list(influential(given)) == ["accuracy", "--passes", "2", "--data", "d"]
    assert list(influential(["drift", "runs", "--kind", "labels"])) == ["drift", "runs", "--kind", "labels"]


def test_the_result_of_another_tool_is_a_row_with_its_plain_figures() -> None:
    output = 'words\n{"kills": 20, "acked": 12345, "weights_equal": true, "seconds": 9.87, "unsafe": []}\n'
    (made,) = results.parse(output, "tools/crash --kills 20")
    assert made["name"] == "crash"
    assert made.keys() >= {"commit", "processor", "measured"}
    lines = rendered("faults", {**made, **ORIGIN})
    assert lines[-1] == (
        "| `tools/crash --kills 20` | kills 20, acked 12,345, weights_equal yes, seconds 9.87 |"
        " `abc`; machine A; 2026-11-27; seeds 0 |"
    )


def test_output_without_rows_is_an_error() -> None:
    with pytest.raises(Failed, match="--json"):
        results.parse("a table for people\n", "tools/crash")


def test_a_failed_tool_is_not_recorded() -> None:
    with pytest.raises(Failed, match="exit code 3"):
        results.run(["sh", "-c", "echo '{}'; exit 3"])


def test_new_rows_replace_those_of_the_same_command_and_machine() -> None:
    here, there = row("learn/x", "tools/bench learn"), row("learn/x", "tools/bench learn", processor="other")
    unknown = row("learn/x", "tools/bench learn", processor="other", commit="not recorded")
    other = row("predict/x", "tools/bench predict")
    new = row("learn/x", "tools/bench learn", commit="def")
    assert results.merge([here, there, unknown, other], [new]) == [there, other, new]


def test_an_unknown_section_is_an_error() -> None:
    with pytest.raises(ValueError, match="speed: not a section"):
        results.render("<!-- results speed -->\n<!-- end -->", [])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.4638, "1.46"),
        (53_512.3, "53,500"),
        (161_696, "161,696"),
        (0.0, "0"),
        (0.000123, "0.000123"),
        (99.96, "100"),
    ],
)
def test_numbers_have_three_digits(value: float, shown: str) -> None:
    assert results.number(value) == shown


@pytest.mark.usefixtures("_signals_are_kept")
def test_record_stores_rows_and_regenerates_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, readme, new = tmp_path / "results.jsonl", tmp_path / "README.md", tmp_path / "new.jsonl"
    old = row("learn/x", "tools/bench learn", value=1.0, unit="s")
    kept.write_text(json.dumps(old) + "\n")
    readme.write_text("<!-- results learning -->\n<!-- end -->\n")
    new.write_text(json.dumps(old | {"value": 2.0, "commit": "def"}) + "\n")
    monkeypatch.setattr(results, "ROWS", kept)
    monkeypatch.setattr(results, "README", readme)
    done = CliRunner().invoke(main, ["record", "--file", str(new)])
    assert done.exit_code == 0, done.output
    assert [each["commit"] for each in results.load()] == ["def"]
    assert "| `learn/x` | 2 s |  |  |" in readme.read_text()


@pytest.mark.usefixtures("_signals_are_kept")
@pytest.mark.parametrize("arguments", [["record"], ["record", "--file", "/dev/null", "true"]])
def test_record_takes_either_a_command_or_a_file(arguments: list[str]) -> None:
    assert CliRunner().invoke(main, arguments).exit_code == 2
