"""Options that several commands have, spelled once."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ffstream.wire.messages import DEFAULT_CONTROL

_Command = TypeVar("_Command", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else on stdout.")
control_endpoint = click.option(
    "--at", "endpoint", metavar="URL", default=DEFAULT_CONTROL, show_default=True, help="Control socket."
)
dataset = click.argument("dataset", metavar="mnist|fashion-mnist|embedded|DIR")
data_folder = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with the files of mnist or fashion-mnist: then nothing is fetched.",
)
config_file = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file of options; `ffstream config show` prints one to begin with.",
)
settings = click.option(
    "--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="One option; wins over the file."
)
state_folder = click.option(
    "--state", envvar="FFSTREAM_STATE", type=click.Path(path_type=Path), help="Folder of journal and checkpoints."
)


def with_state(settings: Iterable[str], state: Path | None) -> list[str]:
    """The settings with `--state` as the last one, which wins."""
    # JSON's strings are TOML's: a folder named 2024 stays a name.
    own = [] if state is None else [f"state={json.dumps(str(state), ensure_ascii=False)}"]
    return [*settings, *own]


def timeout(default_s: float) -> Callable[[_Command], _Command]:
    """`--timeout`: each command knows what is long for it."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        default=default_s,
        show_default=True,
        help="Give up after that.",
    )
