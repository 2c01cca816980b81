"""The help of every command ends with an example, and every example is a valid command line."""

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from ffstream.cli import main


def commands(group: click.Group, context: click.Context, path: str) -> Iterator[tuple[str, click.Command]]:
    """The group, and every command below it, by what one types."""
    yield path, group
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, context, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main, click.Context(main), "ffstream"))


def examples(path: str) -> list[str]:
    """The example lines at the end of a command's help, as a user sees it."""
    command = COMMANDS[path]
    text = command.get_help(click.Context(command, info_name=path, max_content_width=100))
    _, _, end = text.partition("Example")
    return [line.strip() for line in end.splitlines()[1:]]


def parse(line: str) -> click.Context:
    """Parses a line as the shell and the command would, without running it. Raises click.UsageError."""
    words = shlex.split(line, comments=True)
    for sign in (">", "|"):
        words = words[: words.index(sign)] if sign in words else words
    assert words.pop(0) == "ffstream"
    command: click.Command = main
    context = main.make_context("ffstream", words)
    while isinstance(command, click.Group):
        kept = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"  # by version of click
        rest = [*getattr(context, kept, []), *context.args]
        if not rest and command.invoke_without_command:
            break
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("path", COMMANDS)
def test_the_help_ends_with_examples_of_the_command_that_parse(path: str) -> None:
    found = examples(path)
    assert found, f"{path} has no example"
    for line in found:
        assert line.startswith("ffstream "), line
        assert parse(line).command_path.startswith(path), line


def test_an_example_with_an_unknown_option_or_value_would_be_found() -> None:
    for line in ("ffstream pause --for 5", "ffstream rollback", "ffstream serve --log-format xml"):
        with pytest.raises(click.UsageError):
            parse(line)


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if isinstance(command, click.Group)])
def test_no_summary_of_a_command_is_cut_off_in_a_narrow_terminal(path: str) -> None:
    text = COMMANDS[path].get_help(click.Context(COMMANDS[path], info_name=path, terminal_width=80))
    assert "..." not in text.partition("Commands:")[2]


def test_a_typo_in_a_command_gets_a_suggestion_and_a_word_like_no_command_does_not() -> None:
    typo = CliRunner().invoke(main, ["serv"])
    assert (typo.exit_code, "No such command 'serv'. Did you mean 'serve'?" in typo.output) == (2, True)
    unlike = CliRunner().invoke(main, ["xyzzy"])
    assert (unlike.exit_code, "Did you mean" in unlike.output) == (2, False)
