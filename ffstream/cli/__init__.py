"""The command line. `main` is the entry point of `ffstream`; each command has a file beside this one.

Torch is imported by `serve` and `config` alone, and late: a client's command starts quickly and runs anywhere.
"""

import click

from ffstream import __version__
from ffstream.cli.checkpoint import checkpoint
from ffstream.cli.config import config
from ffstream.cli.control import drain, pause, resume, rollback, status, stop
from ffstream.cli.evaluate import evaluate
from ffstream.cli.journal import journal
from ffstream.cli.output import ErrorBoundary
from ffstream.cli.replay import replay
from ffstream.cli.serve import serve


@click.group(cls=ErrorBoundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ffstream")
def main() -> None:
    """A network that never stops learning: streaming Forward-Forward training over ZeroMQ."""


for _command in (serve, replay, evaluate, status, checkpoint, rollback, journal, pause, resume, drain, stop, config):
    main.add_command(_command)
