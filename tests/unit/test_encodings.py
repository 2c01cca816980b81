"""Files and streams: each says its encoding, and no terminal's encoding makes a command fail."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffstream.config import load
from tests.harness.commands import COMMAND_S
from tests.in_process import Running

ROOT = Path(__file__).resolve().parents[2]
LOCALES = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ":strict"},
]
# Prints a status, in which a name has characters that few encodings have, with the real command.
SHOW_STATUS = r"""
import json
import sys
from pathlib import Path
from ffstream.cli import main
from ffstream.client import Control
answer = json.loads(Path(sys.argv.pop(1)).read_text(encoding="utf-8"))
answer["phase"] = "\u03c8\u2013\u221a"
Control.status = lambda *arguments: answer
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def status_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("status")
    with Running(folder / "state") as running:
        (folder / "status.json").write_text(json.dumps(running.daemon.reports.status()), encoding="utf-8")
    return folder / "status.json"


def sources() -> list[Path]:
    scripts = [path for path in (ROOT / "tools").iterdir() if path.is_file() and _is_python(path)]
    return [*(ROOT / "ffstream").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), *scripts]


def _is_python(script: Path) -> bool:
    first = script.read_bytes().split(b"\n", 1)[0]
    return first.startswith(b"#!") and b"python" in first


def without_encoding(tree: ast.AST) -> Iterator[int]:
    """Lines with a call that reads or writes text in an encoding that it does not say."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _is_text(node):
            said = {keyword.arg for keyword in node.keywords}
            if "encoding" not in said and None not in said:
                yield node.lineno


def _is_text(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("read_text", "write_text"):
        return True
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if any(ast.unparse(keywords[key]) == "True" for key in ("text", "universal_newlines") if key in keywords):
        return True
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    if name not in ("open", "fdopen") or (
        name == "open" and owner in ("os", "Image")
    ):  # bytes, by descriptor; pictures
        return False
    modes = [each.value for each in (*call.args, *keywords.values()) if isinstance(each, ast.Constant)]
    return not any(isinstance(mode, str) and "b" in mode and set(mode) <= set("rwxab+") for mode in modes)


def test_every_file_is_read_and_written_in_an_encoding_that_is_said() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line in without_encoding(ast.parse(path.read_bytes()))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("call", "is_wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(text, errors='replace')", True),
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("open(path, mode='rb')", False),
        ("path.open('ab')", False),
        ("gzip.open(path, 'rt')", True),
        ("os.open(path, os.O_RDONLY)", False),
        ("os.fdopen(descriptor, 'w')", True),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, encoding='utf-8')", False),
        ("subprocess.run(command, text=False)", False),
    ],
)
def test_the_check_tells_text_from_bytes(call: str, is_wrong: bool) -> None:
    assert bool(list(without_encoding(ast.parse(call)))) is is_wrong


def run(locale: dict[str, str], *command: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, env=kept | locale, timeout=COMMAND_S, check=False
    )


@pytest.mark.parametrize("locale", LOCALES)
def test_a_status_is_shown_in_every_locale(locale: dict[str, str], status_file: Path) -> None:
    done = run(locale, "-c", SHOW_STATUS, str(status_file), "status")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert b"no samples are predicted yet" in done.stdout
    if locale != {"LC_ALL": "C"}:  # where Python takes UTF-8
        assert "┃".encode() not in done.stdout
        assert b"| ff-stage-0 |" in done.stdout


@pytest.mark.parametrize("locale", LOCALES)
def test_options_are_shown_as_a_file_that_can_be_read_in_every_locale(locale: dict[str, str]) -> None:
    done = run(locale, "-m", "ffstream.cli", "config", "show", "--set", "state='/é–'")
    assert done.returncode == 0, done.stderr.decode()
    shown = tomllib.loads(done.stdout.decode("utf-8"))
    assert shown["state"] == "/é–"
    assert len(shown["network"]["layers"]) == len(load(environment={}).network.layers)


@pytest.mark.parametrize("locale", LOCALES)
def test_an_error_is_shown_in_every_locale(locale: dict[str, str]) -> None:
    done = run(locale, "-m", "ffstream.cli", "config", "check", "--set", "limits.clients_max='é–√'")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: limits.clients_max = ")
    assert b"Traceback" not in done.stderr


def test_a_name_that_is_no_utf8_is_shown() -> None:
    done = run(
        {"PYTHONIOENCODING": "utf-8"}, "-m", "ffstream.cli", "config", "show", "--state", os.fsdecode(b"/\xff")
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"state = " in done.stdout
