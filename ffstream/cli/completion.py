"""`ffstream completion`: prints the script that makes a shell complete commands, options and their values."""

import click

from ffstream.cli import options
from ffstream.cli.group import COMPLETION


@click.command(epilog=options.example("ffstream completion fish > ~/.config/fish/completions/ffstream.fish"))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script for completion in bash, zsh or fish. Completes commands, options and `--set SECTION.KEY=VALUE`.

    \b
    bash  eval "$(ffstream completion bash)" in ~/.bashrc
    zsh   eval "$(ffstream completion zsh)" in ~/.zshrc, after compinit
    fish  ffstream completion fish > ~/.config/fish/completions/ffstream.fish
    """
    from ffstream.cli import main
    from ffstream.cli.shells import SHELLS

    click.echo(SHELLS[shell](main, {}, "ffstream", COMPLETION).source())
