"""The command line. `main` is the entry point of `ffstream`; each command has a module beside this one.

Only `serve` and `export` import torch, and late, so that the commands of clients start quickly and run anywhere.
"""

import click

from ffstream import __version__
from ffstream.cli.group import Commands
from ffstream.cli.options import example


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=example("ffstream serve --state STATE", "ffstream replay embedded", "ffstream status"),
)
@click.version_option(__version__, prog_name="ffstream")
def main() -> None:
    """A network that never stops learning: streaming Forward-Forward training over ZeroMQ."""
