"""Options that several commands have."""

import json
import math
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ffstream.errors import ConfigError
from ffstream.util.option_errors import about
from ffstream.wire.messages import DEFAULT_CONTROL

if TYPE_CHECKING:  # imports numpy and zmq, which only the commands of clients need
    from ffstream.client import CurveKeys

DEFAULT_WINDOW = 10  # characters; the preset `serial` is made for it

_Command = TypeVar("_Command", bound=Callable[..., Any])


def example(*commands: str) -> str:
    """The end of a command's help."""
    return "\n".join(["\b", "Examples:" if len(commands) > 1 else "Example:", *(f"  {each}" for each in commands)])


def _complete_dataset(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The data sets that are known by name; otherwise files and folders."""
    from ffstream.data.catalog import EMBEDDED
    from ffstream.data.sources import SOURCES

    names = [CompletionItem(name) for name in (EMBEDDED, *SOURCES) if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_setting(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """A section, then an option in it, then a value if there is a closed list of them."""
    from ffstream import config

    options = config.options()
    name, has_value, value = incomplete.partition("=")
    if has_value:
        choices = options[name].choices if name in options else []
        return [CompletionItem(f"{name}={each}") for each in choices if each.startswith(value)]
    section = name.partition(".")[0] if "." in name else ""
    found = dict.fromkeys(
        f"{each}=" if each.rpartition(".")[0] == section else f"{each.partition('.')[0]}."
        for each in config.names()
        if each.startswith(name)
    )
    return [CompletionItem(each, help=options[each[:-1]].description or None) for each in found]


as_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON and nothing else on stdout.")
control_endpoint = click.option(
    "--at", "endpoint", metavar="URL", default=DEFAULT_CONTROL, show_default=True, help="Control socket."
)
dataset = click.argument("dataset", metavar="NAME|DIR|FILE", shell_complete=_complete_dataset)
data_folder = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    help="Folder or archive with the data set NAME, also in the usual places below it (MNIST/raw, …). Nothing is "
    "downloaded then.",
)


def split(default: str) -> Callable[[_Command], _Command]:
    """`--split`, with the default of one command."""
    return click.option(
        "--split",
        type=click.Choice(["train", "train_without_validation", "validation", "test"]),
        default=default,
        show_default=True,
        help="validation: the last 10,000 training samples, or the last 1,000 images of each class folder; at most a "
        "fifth.",
    )


def as_text(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--as` and `--window`, as one argument `window`: characters in a sample of a text, None for images."""

    @click.option(
        "--as",
        "kind",
        type=click.Choice(["images", "text"]),
        default="images",
        show_default=True,
        help="What to read. text: FILE is a text in UTF-8, or pydoc-topics, the documentation that is part of "
        "Python. A sample is a window of characters, and its label the character that follows, one of 30 symbols. "
        "The first nine tenths are the split train, the rest is the split test.",
    )
    @click.option(
        "--window",
        metavar="N",
        type=click.IntRange(1, 1000),
        help=f"With --as text: characters in a window. Default: {DEFAULT_WINDOW}.",
    )
    @wraps(command)
    def with_window(*arguments: Any, kind: str, window: int | None, **options: Any) -> Any:
        if kind == "images" and window is not None:
            raise click.UsageError("--window needs --as text")
        given = None if kind == "images" else window or DEFAULT_WINDOW
        return command(*arguments, window=given, **options)

    return with_window


label_offset = click.option(
    "--label-offset",
    type=click.IntRange(-255, 255),
    default=0,
    show_default=True,
    help="Is added to every label: -1 for a data set whose labels begin at 1.",
)
config_file = click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file with options; `ffstream config show` prints an example.",
)
settings = click.option(
    "--set",
    "settings",
    metavar="SECTION.KEY=VALUE",
    multiple=True,
    shell_complete=complete_setting,
    help="Sets one option; overrides the file.",
)


def state(default: str) -> Callable[[_Command], _Command]:
    """`--state`, with the end of its help."""
    return click.option(
        "--state",
        envvar="FFSTREAM_STATE",
        show_envvar=True,
        type=click.Path(path_type=Path),
        help=f"Folder with the journal and the checkpoints.{default}",
    )


state_folder = state(" Default: `state` in the file of --config, or ffstream-state.")


def with_state(settings: Iterable[str], state: Path | None) -> list[str]:
    """The settings, with `--state` as the last one, which overrides the others."""
    # A JSON string is a TOML string, so a folder named 2024 is not read as a number.
    own = [] if state is None else [f"state={json.dumps(str(state), ensure_ascii=False)}"]
    return [*settings, *own]


class _Seconds(click.FloatRange):
    """Seconds; rejects NaN, which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


SECONDS = _Seconds(0, 86_400)


def timeout(default_s: float) -> Callable[[_Command], _Command]:
    """`--timeout`, with the default of one command."""
    return click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=SECONDS,
        default=default_s,
        show_default=True,
        help="Fail after that time.",
    )


def keys(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--key` and `--server-key`, as one argument `keys`. Use it as the last decorator."""

    @click.option(
        "--key",
        "key_file",
        type=click.Path(path_type=Path),
        envvar="FFSTREAM_KEY",
        show_envvar=True,
        help="File with your secret key, written by `ffstream keygen`.",
    )
    @click.option(
        "--server-key",
        "server_key_file",
        type=click.Path(path_type=Path),
        envvar="FFSTREAM_SERVER_KEY",
        show_envvar=True,
        help="File with the daemon's public key.",
    )
    @wraps(command)
    def with_keys(*arguments: Any, key_file: Path | None, server_key_file: Path | None, **options: Any) -> Any:
        return command(*arguments, keys=_load(key_file, server_key_file), **options)

    return with_keys


def _load(key: Path | None, server_key: Path | None) -> "CurveKeys | None":
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise ConfigError(
            "--key and --server-key must be given together", hint="or FFSTREAM_KEY and FFSTREAM_SERVER_KEY"
        )
    from ffstream.client import CurveKeys
    from ffstream.security.keys import is_secret_file, load_pair, load_public

    if is_secret_file(key) is False and is_secret_file(server_key):
        raise ConfigError(
            f"--key {key} is a public key and --server-key {server_key} a secret one",
            hint="are they swapped? --key takes your secret key, --server-key the daemon's public key",
        )
    with about("--key"):
        own = load_pair(key)
    with about("--server-key"):
        return CurveKeys(own, load_public(server_key))
