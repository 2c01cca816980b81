"""`ffstream plot`: what the network does, as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ffstream.cli import options
from ffstream.errors import ConfigError, NoSamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ffstream.cli.plots.source import Source

_HTTP = "http://127.0.0.1:8757"
_KINDS = ("curve", "goodness", "activities", "mistakes", "filters", "dreams")
_SUFFIXES = (".png", ".svg")
_SPANS = ("10m", "3h", "1d", "30d", "all")


@click.command(
    epilog=options.example(
        "ffstream plot --what curve --out curve.png", "ffstream plot --what mistakes --state STATE --out mistakes.svg"
    )
)
@click.option("--what", type=click.Choice(_KINDS), required=True, help="The kind of picture.")
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The file to write, .png or .svg. It is overwritten.",
)
@click.option(
    "--at", "url", metavar="URL", help=f"HTTP address of a running daemon. Default, without --state: {_HTTP}."
)
@click.option("--token", metavar="FILE", type=click.Path(path_type=Path), help="With --at: file with the HTTP token.")
@options.config_file
@options.state(default="")
@click.option(
    "--span",
    type=click.Choice(_SPANS),
    default="all",
    show_default=True,
    help="curve, goodness: how far back the picture goes.",
)
@click.option("--label", type=click.IntRange(min=0), help="activities: the label of the image. Default: any.")
@click.option("--layer", type=click.IntRange(min=0), default=0, show_default=True, help="filters: the layer, from 0.")
@click.option(
    "--limit", type=click.IntRange(1, 256), default=64, show_default=True, help="filters: the number of units."
)
@click.pass_context
def plot(
    context: click.Context,
    what: str,
    out: Path,
    url: str | None,
    token: Path | None,
    file: Path | None,
    state: Path | None,
    span: str,
    label: int | None,
    layer: int,
    limit: int,
) -> None:
    """Draw a picture of what a network learns. Reads a running daemon, or a state folder.

    \b
    curve       prequential error and speed against samples, with checkpoints, rollbacks, detected drift
    goodness    goodness of both sides of what each layer compares, over the stream and as a histogram
    activities  the activities of each layer for one image under the right and a wrong label
    mistakes    confusion matrix, error of each class, the latest mistakes
    filters     the weights of the units with the largest norms, as images
    dreams      what layers with a decoder dream of each label

    With --state nothing is written there, and a daemon may be running. The picture then shows the newest checkpoint
    and the samples in the journal; mistakes are those of a checkpoint that has not learned them. Needs matplotlib:
    pip install "ffstream[plot]".
    """
    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out {out}: the name must end in .png or .svg", hint=f"--out {out.with_suffix('.png')}")
    try:
        from ffstream.cli.plots import style
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        raise ConfigError("the package matplotlib is not installed", hint='pip install "ffstream[plot]"') from error
    source = _source(context, url, token, file, state)
    with style.style():
        style.save(_draw(source, what, span, label, layer, limit), out)
    click.echo(f"{out} written")


def _source(
    context: click.Context, url: str | None, token: Path | None, file: Path | None, state: Path | None
) -> "Source":
    from ffstream.cli import states
    from ffstream.cli.plots.source import Http, State

    wants_daemon = url is not None or token is not None
    from_environment = context.get_parameter_source("state") is ParameterSource.ENVIRONMENT
    if file is not None or (state is not None and not (wants_daemon and from_environment)):
        if wants_daemon:
            raise click.UsageError("--at and --token are about a running daemon, --state and --config about a folder")
        return State(states.folder(file, state))
    return Http(url or _HTTP, _read_token(token))


def _read_token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--token {file}: {error}", hint="name the file of security.http_token") from error


def _draw(source: "Source", what: str, span: str, label: int | None, layer: int, limit: int) -> "Figure":
    """Imports only what the picture needs."""
    from ffstream.cli.plots import activities, curve, dreams, filters, goodness, mistakes

    if what == "curve":
        return curve.draw(source.history(span))
    if what == "goodness":
        history = source.history(span)
        try:
            now = source.goodness()
        except NoSamples:
            now = None
        return goodness.draw(history, source.compares(), now)
    if what == "activities":
        return activities.draw(source.activities(label))
    if what == "mistakes":
        return mistakes.draw(source.mistakes())
    if what == "dreams":
        return dreams.draw(source.dreams())
    assert what == "filters"
    return filters.draw(source.filters(layer, limit))
