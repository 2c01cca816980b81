"""Completion in real shells, and the protocol between their scripts and `ffstream`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.commands import CLI, COMMAND_S, run_cli
from tests.harness.terminal import Terminal

SHELLS = ["bash", "zsh", "fish"]
BASH_BREAKS = " \t\n\"'@><=;|&(:"  # the default of COMP_WORDBREAKS


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `ffstream` is the one under test."""
    program = tmp_path / "bin" / "ffstream"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ffstream.cli "$@"\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


_START = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        "PS1='$ '; bind 'set bell-style none'; eval \"$(ffstream completion bash)\"",
    ),
    "zsh": (
        ["-f", "-i"],
        "PS1='$ '; unsetopt beep; autoload -U compinit; compinit -D -u; eval \"$(ffstream completion zsh)\"",
    ),
    "fish": (["--no-config", "-i"], "ffstream completion fish | source"),
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, path: str, tmp_path: Path) -> Iterator[Terminal]:
    """An interactive shell in which the script of `ffstream completion` is loaded."""
    program = shutil.which(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not installed")
    arguments, load = _START[request.param]
    environment = {"PATH": path, "HOME": str(tmp_path), "INPUTRC": "/dev/null", "HISTFILE": str(tmp_path / "history")}
    with Terminal([program, *arguments], columns=200, environment=environment, folder=tmp_path) as terminal:
        terminal.send(f"{load}; echo lo''aded\n")
        terminal.expect("loaded")
        yield terminal


def completed(terminal: Terminal, *typed: str) -> str:
    """The command line after these keys, with a TAB after each piece."""
    for keys in typed:
        start = len(terminal.text)
        terminal.send(f"{keys}\t")
        terminal.expect(".", after=start + len(keys))
    # Ctrl-A goes to the start of the line, so that the shell prints the words instead of running them.
    start = len(terminal.text)
    terminal.send("\x01printf '<%s>' \x05 en''d\n")
    end = terminal.expect("<end>", after=start)
    words = terminal.text[start:end]
    return words[words.index("<ffstream>") :].removeprefix("<ffstream>").removesuffix("<end>")


def test_a_shell_completes_commands_options_and_settings(shell: Terminal) -> None:
    assert completed(shell, "ffstream stat") == "<status>"
    assert completed(shell, "ffstream serve --stan") == "<serve><--standby>"
    # After a section and after a name no space follows, so the value can be typed at once.
    assert completed(shell, "ffstream serve --set netw", "pres", "str") == "<serve><--set><network.preset=stream>"
    assert completed(shell, "ffstream serve --set pipeline.dev", "cu") == "<serve><--set><pipeline.device=cuda>"
    assert completed(shell, "ffstream evaluate embed") == "<evaluate><embedded>"
    assert completed(shell, "ffstream checkpoint ver") == "<checkpoint><verify>"


def bash(line: str, breaks: str = BASH_BREAKS) -> list[str]:
    """The answer to the bash script when the cursor is at the end of that line."""
    environment = {"COMP_LINE": line, "COMP_BREAKS": breaks, "_FFSTREAM_COMPLETE": "bash_complete"}
    return answer(environment)


def answer(environment: dict[str, str]) -> list[str]:
    done = subprocess.run(
        CLI, env={**os.environ, **environment}, capture_output=True, encoding="utf-8", timeout=COMMAND_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("ffstream sta", ["plain,status"]),
        ("ffstream serve --set network.preset=stre", ["plain,stream"]),
        ("ffstream serve --set=network.preset=stre", ["plain,stream"]),
        ("ffstream serve --set listen.p", ["part,listen.predict="]),
        ("ffstream serve --set security.insecure=", ["plain,true", "plain,false"]),
        ("ffstream serve --set network.nothing=", []),
        ("ffstream evaluate embedded --split val", ["plain,validation"]),
        ("ffstream evaluate embedded --split=val", ["plain,validation"]),
        ("ffstream serve --config o", ["file,o"]),
        ("ffstream replay ./images", ["file,./images"]),
        ("ffstream serve 'unfinished", []),
    ],
)
def test_bash_gets_what_follows_its_last_word_break(line: str, expected: list[str]) -> None:
    assert bash(line) == expected


def test_bash_without_word_breaks_gets_the_whole_word() -> None:
    assert bash("ffstream serve --set network.preset=stre", " \t\n") == ["plain,network.preset=stream"]


def test_every_section_and_every_option_of_a_section_is_offered() -> None:
    from ffstream import config

    sections = [
        f"part,{name}{'.' if hasattr(value, 'model_dump') else '='}" for name, value in config.load(environment={})
    ]
    assert bash("ffstream serve --set ") == sections
    limits = [f"part,limits.{name}=" for name in config.Limits.model_fields]
    assert bash("ffstream serve --set limits.") == limits


def test_zsh_and_fish_get_whole_words_with_their_meaning() -> None:
    words = {"COMP_WORDS": "ffstream serve --set learning.ling", "COMP_CWORD": "3"}
    assert answer({**words, "_FFSTREAM_COMPLETE": "zsh_complete"}) == ["part", "learning.linger_s=", "_"]
    found = answer({**words, "COMP_CWORD": "learning.ling", "_FFSTREAM_COMPLETE": "fish_complete"})
    assert [line.partition("\t")[0] for line in found] == ["plain,learning.linger_s="]
    assert "seconds that an incomplete microbatch waits" in found[0]
    command = {"COMP_WORDS": "ffstream pau", "COMP_CWORD": "1", "_FFSTREAM_COMPLETE": "zsh_complete"}
    assert answer(command)[:2] == ["plain", "pause"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_asks_ffstream_and_the_shell_can_parse_it(shell: str) -> None:
    done = run_cli("completion", shell)
    assert done.returncode == 0
    assert f"_FFSTREAM_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, so its parser did not see the script")
    parsed = subprocess.run(
        [shell, "-n"], input=done.stdout, capture_output=True, encoding="utf-8", timeout=COMMAND_S, check=False
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


@pytest.mark.parametrize("line", ["ffstream ", "ffstream serve --set network.preset="])
def test_completing_imports_no_torch(line: str) -> None:
    environment = os.environ | {"COMP_LINE": line, "_FFSTREAM_COMPLETE": "bash_complete"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *CLI[1:]],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=COMMAND_S,
        check=False,
    )
    assert done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click.shell_completion" in imported
    assert not {"torch", "numba", "matplotlib"} & imported
