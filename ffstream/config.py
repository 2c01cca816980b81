"""Every option once: type, default, unit, sentence. File, environment, `--set` and documentation derive from here.

Later sources win: defaults, the file, `FFSTREAM_SECTION__KEY` in the environment, `--set section.key=value`.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ffstream.errors import ConfigError
from ffstream.ff.presets import PRESET, PRESETS, recipe
from ffstream.ff.recipe import LayerOptions, Recipe
from ffstream.util import endpoints, option_sources
from ffstream.util.option_errors import Option, OptionError, UnknownOption, options_of, show, wrong
from ffstream.wire.messages import DEFAULT_CONTROL, DEFAULT_LEARN, DEFAULT_PREDICT, MAX_HEADER_BYTES

_LABELS_MAX = (MAX_HEADER_BYTES - 1024) // 2  # a message's labels stand in its header, two bytes each
_INT_MAX = 2**31 - 1  # of what libzmq is told


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _fill_preset(given: Any) -> Any:
    """A preset's name and the options that differ from it, to a whole recipe."""
    return recipe(given) if isinstance(given, Mapping) else given


class Listen(_Section):
    """Where the daemon listens."""

    learn: str = Field(
        DEFAULT_LEARN, description="endpoint for producers; `*` and `[::]` as host: every IPv4 and IPv6 address"
    )
    predict: str = Field(DEFAULT_PREDICT, description="endpoint for queries")
    control: str = Field(DEFAULT_CONTROL, description="endpoint for control")
    http: str = Field("127.0.0.1:8757", description="host:port for metrics, health and the page")

    @field_validator("learn", "predict", "control")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        endpoints.parse(value)
        return value

    @field_validator("http")
    @classmethod
    def _is_http_address(cls, value: str) -> str:
        endpoints.parse_http(value)
        return value

    @model_validator(mode="after")
    def _do_not_collide(self) -> Self:
        addresses = {name: endpoints.parse(getattr(self, name)) for name in ("learn", "predict", "control")}
        addresses["http"] = endpoints.parse_http(self.http)
        for one, other in combinations(addresses, 2):
            if addresses[one].collides(addresses[other]):
                raise ValueError(
                    wrong(other, getattr(self, other), f"listen.{one} has this address already: {getattr(self, one)}")
                )
        return self


class Limits(_Section):
    """What the daemon accepts."""

    message_max_bytes: int = Field(
        8 << 20,
        ge=1024,
        le=_INT_MAX,
        description="bytes of a message's images; up to twice as many get an error, still more end the connection",
    )
    message_max_samples: int = Field(4096, ge=1, le=_LABELS_MAX, description="samples of a message")
    window_messages: int = Field(1024, ge=1, description="messages that a producer may have unanswered")
    commit_max_messages: int = Field(1024, ge=1, le=2048, description="messages of a group commit")
    commit_max_bytes: int = Field(16 << 20, ge=1024, description="bytes of a group commit, about")
    backlog_max_samples: int = Field(
        5_000_000,
        ge=1,
        description="samples that wait to be learned; at it none are accepted until a tenth of them is learned",
    )
    journal_max_bytes: int = Field(
        16 << 30,
        ge=1 << 20,
        description="bytes of the journal in use, with its log when another program keeps that from being emptied",
    )
    disk_min_free_bytes: int = Field(
        512 << 20, ge=0, description="bytes that stay free on the disk or in the journal; below, no samples are taken"
    )
    memory_max_bytes: int = Field(
        0, ge=0, description="bytes of memory above which no samples are taken; 0: nine tenths of the machine's"
    )
    clients_max: int = Field(10_000, ge=1, description="producers that the journal remembers")
    client_names_max: int = Field(1000, ge=1, description="names under which one key may store")
    client_forget_after_s: float = Field(
        7 * 86_400.0,
        gt=0,
        description="seconds without a message after which a producer may be forgotten; only while a daemon runs",
    )
    client_nameless_forget_after_s: float = Field(
        3600.0,
        gt=0,
        description="the same for a producer without a name of its own, once nine tenths of the clients are known",
    )
    client_unresolved_max_messages: int = Field(
        16_384,
        ge=1,
        description="stored messages that a producer, or one key, counts as unanswered; beyond, a window a name",
    )
    client_samples_per_s: float = Field(
        0.0, ge=0, description="samples a second from one producer, or one key; 0: no limit"
    )
    receive_queue_messages: int = Field(
        2048,
        ge=0,
        le=_INT_MAX,
        description="messages of one peer that wait to be looked at, above the window; 0: no limit",
    )
    learning_min_share: float = Field(
        0.25,
        ge=0,
        le=0.9,
        description="share of the time that predictions leave to learning while it is behind the stream; 0: none",
    )
    query_batch_max_samples: int = Field(1024, ge=1, description="samples of queries predicted at once")
    reply_queue_messages: int = Field(
        1000, ge=1, le=_INT_MAX, description="replies that wait for one peer to read them"
    )
    heartbeat_s: float = Field(
        5.0,
        ge=1,
        le=600,
        description="seconds between the signs of life that a silent peer is asked for, by TCP; after 4 it is gone",
    )
    handshake_timeout_s: float = Field(
        10.0, ge=0.1, le=600, description="seconds for a connection's handshake; then it is closed"
    )
    http_connections: int = Field(64, ge=1, description="HTTP requests answered at a time; more get a 503")
    # Prometheus closes its own idle connections after 300 s: it goes first, so no scrape meets a closed connection.
    http_keep_alive_s: float = Field(
        330.0,
        ge=1,
        le=86_400,
        description="seconds an HTTP connection may be idle; keep it above the scrape interval",
    )

    @model_validator(mode="after")
    def _let_windows_in(self) -> Self:
        # Behind a full queue a client's heartbeats wait, too, and it takes the daemon for dead. Whoever keeps to the
        # window must not get there.
        if 0 < self.receive_queue_messages <= self.window_messages:
            raise ValueError(
                wrong(
                    "receive_queue_messages",
                    self.receive_queue_messages,
                    f"must be above limits.window_messages = {self.window_messages}, or 0 for no limit",
                )
            )
        return self


class Security(_Section):
    """Who gets in. `ffstream keygen` makes the keys; an empty name means: none."""

    insecure: bool = Field(False, description="listen beyond loopback without keys or token")
    server_key: str = Field("", description="file with the daemon's secret key; none: anybody gets in, unencrypted")
    learn_clients: str = Field("", description="folder with the public keys of those who may send samples")
    predict_clients: str = Field("", description="folder with the public keys of those who may ask for predictions")
    control_clients: str = Field("", description="folder with the public keys of those who may control the daemon")
    http_token: str = Field("", description="file with the token that HTTP requests bear, but for health and page")


class Learning(_Section):
    """How the stream becomes microbatches."""

    linger_s: float = Field(1.0, ge=0, description="seconds that an incomplete microbatch waits for more samples")
    partial: Literal["flush", "wait"] = Field(
        "flush", description="then learn it as it is, or wait for ever: same input, same microbatches"
    )
    publish_every: int = Field(4, ge=1, description="microbatches between two snapshots")
    wake: int = Field(0, ge=0, description="microbatches of a wake phase; 0: positive and negative interleaved")
    sleep: int = Field(0, ge=0, description="microbatches of a sleep phase")


class PipelineSection(_Section):
    """How the layers run. The weights depend on `overflow = skip` and on the precision, on nothing else here."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of products; auto: bf16 where it is fast")
    queue_depth: int = Field(4, ge=1, description="microbatches between two stages")
    overflow: Literal["block", "skip"] = Field("block", description="wait for a slow stage, or let it skip")
    stages: tuple[int, ...] = Field((), description="layers in each stage; empty: one each")
    stall_timeout_s: float = Field(60.0, gt=0, description="seconds without progress before a thread counts as stuck")


class Checkpoints(_Section):
    """When the whole state goes to disk."""

    every_samples: int = Field(100_000, ge=0, description="samples between checkpoints; 0: not by count")
    every_s: float = Field(60.0, ge=0, description="seconds between checkpoints; 0: not by time")
    write_bytes_per_s: int = Field(
        64 << 20, ge=0, description="bytes a second of a checkpoint while learning goes on; 0: as fast as it goes"
    )
    keep: int = Field(
        3, ge=1, description="newest checkpoints kept; the journal holds what came after the oldest of them"
    )
    ladder_s: tuple[float, ...] = Field(
        (600.0, 3600.0, 86_400.0, 604_800.0),
        description="older checkpoints kept for rollback --skip, by seconds of running: one per first number up to"
        " the age of the second, then one per second up to the third, …; empty: none",
    )
    max_bytes: int = Field(
        2 << 30, ge=0, description="bytes of all checkpoints; beyond, older ones go, never the newest `keep`"
    )

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        steps = [int(each) if each.is_integer() else each for each in self.ladder_s]  # as they were written
        if len(steps) == 1 or any(not 0 < a < b < math.inf for a, b in pairwise(steps)):
            raise ValueError(wrong("ladder_s", steps, "expected ascending seconds, two or more, or [] for no ladder"))
        return self


class PrequentialSection(_Section):
    """Predicting each microbatch before it is learned."""

    fraction: float = Field(1.0, ge=0, le=1, description="share of microbatches that are predicted first")
    busy_fraction: float = Field(0.125, ge=0, le=1, description="the same while learning is behind the stream")
    busy_backlog_samples: int = Field(8192, ge=0, description="samples on disk from which learning counts as behind")
    queue_depth: int = Field(16, ge=1, description="microbatches that may wait for it; more are passed over")


class Shutdown(_Section):
    """Deadlines of a stop."""

    drain_timeout_s: float = Field(
        20.0, gt=0, le=86_400, description="seconds to learn what is in the queues and checkpoint"
    )


class Config(_Section):
    """All options."""

    state: Path = Field(Path("ffstream-state"), description="folder of journal and checkpoints")
    listen: Listen = Listen()
    limits: Limits = Limits()
    security: Security = Security()
    network: Annotated[Recipe, BeforeValidator(_fill_preset)] = recipe("stream")
    learning: Learning = Learning()
    pipeline: PipelineSection = PipelineSection()
    checkpoint: Checkpoints = Checkpoints()
    prequential: PrequentialSection = PrequentialSection()
    shutdown: Shutdown = Shutdown()

    @model_validator(mode="before")
    @classmethod
    def _knows_every_name(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name, value in _leaves(given):
                _check_name(name, value)
        return given

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """What one section says must make sense beside what the others say."""
        recipe, learning, stages = self.network, self.learning, self.pipeline.stages
        if learning.sleep and not learning.wake:
            raise ValueError(
                wrong("learning.sleep", learning.sleep, "needs learning.wake too: set it to a count of microbatches")
            )
        unfit = [layer.objective.kind for layer in recipe.layers if not layer.objective.has_phases]
        if learning.wake and unfit:
            raise ValueError(
                wrong(
                    "learning.wake",
                    learning.wake,
                    f'needs network.objective = "threshold"; {show(unfit[0])} learns both phases at once',
                )
            )
        if learning.partial == "wait" and self.limits.backlog_max_samples < recipe.batch_size:
            raise ValueError(
                wrong(
                    "limits.backlog_max_samples",
                    self.limits.backlog_max_samples,
                    f"learning.partial waits for network.batch_size = {recipe.batch_size} samples",
                )
            )
        if stages and (sum(stages) != len(recipe.layers) or min(stages) < 1):
            raise ValueError(
                wrong(
                    "pipeline.stages",
                    stages,
                    f"expected numbers from 1 that add up to the {len(recipe.layers)} layers of the network",
                )
            )
        if recipe.replay_jitter and (recipe.replay or learning.wake) and len(recipe.image_shape) not in (2, 3):
            raise ValueError(
                wrong(
                    "network.replay_jitter",
                    recipe.replay_jitter,
                    f"network.image_shape = {show(recipe.image_shape)} has no rows and columns; set this to 0",
                )
            )
        return self


@cache
def options() -> dict[str, Option]:
    """Every option by its dotted name, and every section by its own."""
    found: dict[str, Option] = {}
    for name, option in options_of(Config).items():
        found[name] = option
        if isinstance(option.kind, type) and issubclass(option.kind, BaseModel):
            found |= {f"{name}.{key}": each for key, each in options_of(option.kind).items()}
    for_all_layers = {f"network.{key}": each for key, each in options_of(LayerOptions).items()}
    return found | for_all_layers | {"network.preset": PRESET, "network.widths": Option(tuple[int, ...])}


def _names() -> list[str]:
    """The names that have a value of their own."""
    sections = {name.partition(".")[0] for name in options() if "." in name}
    return [name for name in options() if name not in sections]


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The given options by their dotted names, those of sections one by one."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value and name not in _names():
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value


def _check_name(name: str, value: Any) -> None:
    """What the validation below would pass over, or say in its own words."""
    option = options().get(name)
    if option is None:
        raise UnknownOption(name, _names())
    is_wrong_preset = name == "network.preset" and not (isinstance(value, str) and value in PRESETS)
    if is_wrong_preset or (option.is_number and isinstance(value, bool)):  # True is 1 in Python
        raise OptionError(wrong(name, value, option.expected()), hint=option.closest(value))


def load(
    file: Path | None = None,
    settings: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The options in force. Raises ConfigError that names the option."""
    given = option_sources.Given(_names())
    if file is not None:
        given.read(file)
    given.take_environment(os.environ if environment is None else environment)
    given.take_settings(settings)
    return validate(given)


def validate(given: option_sources.Given) -> Config:
    """The options that are given, and the defaults of all others. Raises ConfigError that names the option."""
    try:
        return Config.model_validate(given.tree)
    except ValidationError as error:
        # Their inputs would be the merged tree, which is ours already; the URLs are for programmers.
        raise _explain(error.errors(include_url=False)[0], given) from error


def _explain(first: Mapping[str, Any], given: option_sources.Given) -> ConfigError:
    """The error in plain words: the option, its value, what is expected, and where it was set."""
    cause = first.get("ctx", {}).get("error")  # what a validator of ours raised
    name = ".".join(str(part) for part in first["loc"][:2])
    hint = getattr(cause, "hint", "")
    if name in _names():
        option, value = options()[name], given.value(name)
        message = wrong(name, value, str(cause) if cause else option.expected())
        hint = hint or option.closest(value)
    elif cause is not None:
        message = f"{name}.{cause}" if name else str(cause)
    else:
        message = wrong(name, first["input"], "expected a section of options, not a value")
    hints = (hint, given.said_by(message.partition(" ")[0].rstrip(":")), "ffstream config show lists all options")
    return ConfigError(message, hint="; ".join(filter(None, hints)).replace("?;", "?"))


def describe(config: Config) -> str:
    """All options in force as a TOML file, with what each means."""
    lines: list[str] = [f"# {Config.model_fields['state'].description}", f"state = {show(config.state)}"]
    for name in Config.model_fields:
        section = getattr(config, name)
        if isinstance(section, Recipe):
            lines += ["", f"[{name}]", "# `preset = NAME` fills in the rest: " + ", ".join(PRESETS)]
            lines += ["# options of layers may stand here as well, for all of them"]
            lines += _described(section)
            for layer in section.layers:
                lines += ["", f"[[{name}.layers]]", *_described(layer)]
        elif isinstance(section, _Section):
            lines += ["", f"[{name}]", *_described(section)]
    return "\n".join(lines) + "\n"


def _described(section: BaseModel) -> Iterator[str]:
    """A line for each option, but for tables of their own."""
    for key, value in section.model_dump(exclude={"layers"}).items():
        yield f"{key} = {show(value)}  # {type(section).model_fields[key].description}"
