"""Every option, once: its type, default, unit and description. Everything else about options is derived from here.

Options are set by a TOML file, by `FFSTREAM_SECTION__KEY` in the environment and by `--set section.key=value`. If
several of these set the same option, the last in this order applies.
"""

import logging
import math
import os
import re
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
    ValidationInfo,
    field_validator,
    model_validator,
)

from ffstream.errors import ConfigError
from ffstream.ff.presets import PRESET, PRESETS, recipe
from ffstream.ff.recipe import LayerOptions, Recipe
from ffstream.ff.recipe_checks import without_effect
from ffstream.util import endpoints, option_sources
from ffstream.util.option_errors import Option, OptionError, UnknownOption, options_of, show, wrong
from ffstream.wire.messages import DEFAULT_CONTROL, DEFAULT_LEARN, DEFAULT_PREDICT, MAX_HEADER_BYTES

log = logging.getLogger(__name__)

_LABELS_MAX = (MAX_HEADER_BYTES - 1024) // 2  # the header of a message holds its labels, two bytes each
_INT_MAX = 2**31 - 1  # libzmq takes an int
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _fill_preset(given: Any) -> Any:
    """A complete recipe from the name of a preset and the options that change it."""
    return recipe(given) if isinstance(given, Mapping) else given


class Listen(_Section):
    """Where the daemon listens."""

    learn: str = Field(
        DEFAULT_LEARN, description="endpoint for producers; the hosts `*` and `[::]` mean all IPv4 and IPv6 addresses"
    )
    predict: str = Field(DEFAULT_PREDICT, description="endpoint for queries")
    control: str = Field(DEFAULT_CONTROL, description="endpoint for control")
    http: str = Field("127.0.0.1:8757", description="host:port for metrics, health checks and the web page")

    standby_http: str = Field(
        "", description="host:port for health checks and metrics while it stands by (serve --standby); empty: none"
    )

    @field_validator("learn", "predict", "control")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        endpoints.parse(value)
        return value

    @field_validator("http", "standby_http")
    @classmethod
    def _is_http_address(cls, value: str, info: ValidationInfo) -> str:
        if value or info.field_name == "http":
            endpoints.parse_http(value)
        return value

    @model_validator(mode="after")
    def _do_not_collide(self) -> Self:
        addresses = {name: endpoints.parse(getattr(self, name)) for name in ("learn", "predict", "control")}
        addresses |= {
            name: endpoints.parse_http(value) for name in ("http", "standby_http") if (value := getattr(self, name))
        }
        for one, other in combinations(addresses, 2):
            if addresses[one].collides(addresses[other]):
                raise ValueError(
                    wrong(other, getattr(self, other), f"listen.{one} uses this address, too: {getattr(self, one)}")
                )
        return self


class Limits(_Section):
    """Limits on what the daemon accepts and stores."""

    message_max_bytes: int = Field(
        8 << 20,
        ge=1024,
        le=_INT_MAX,
        description="bytes of images in a message; a message of up to twice this size gets an error, a larger one"
        " closes the connection",
    )
    message_max_samples: int = Field(4096, ge=1, le=_LABELS_MAX, description="samples in a message")
    window_messages: int = Field(1024, ge=1, description="unanswered messages that a producer may have")
    commit_max_messages: int = Field(1024, ge=1, le=2048, description="messages in a group commit")
    commit_max_bytes: int = Field(16 << 20, ge=1024, description="approximate bytes in a group commit")
    backlog_max_samples: int = Field(
        5_000_000,
        ge=1,
        description="samples on disk, not learned yet; at this limit samples are rejected until a tenth is learned",
    )
    journal_max_bytes: int = Field(
        16 << 30,
        ge=1 << 20,
        description="bytes in use in the journal, plus its -wal file while another program keeps that large",
    )
    disk_min_free_bytes: int = Field(
        512 << 20,
        ge=0,
        description="bytes that must be free on the disk or in the journal; below that, samples are rejected",
    )
    memory_max_bytes: int = Field(
        0,
        ge=0,
        description="bytes of memory above which samples are rejected; 0: nine tenths of the machine's memory",
    )
    clients_max: int = Field(10_000, ge=1, description="clients that the journal remembers")
    client_names_max: int = Field(1000, ge=1, description="client names that one key may use")
    client_forget_after_s: float = Field(
        7 * 86_400.0,
        gt=0,
        description="seconds without a message after which a client may be forgotten, while a daemon runs",
    )
    client_nameless_forget_after_s: float = Field(
        3600.0,
        gt=0,
        description="the same for a client with a generated name, once nine tenths of clients_max are reached",
    )
    client_unresolved_max_messages: int = Field(
        16_384,
        ge=1,
        description="stored messages that a client, or all clients of a key, may treat as unanswered; beyond that"
        " each client may have window_messages",
    )
    client_samples_per_s: float = Field(
        0.0, ge=0, description="samples per second that one client, or one key, may send; 0: no limit"
    )
    receive_queue_messages: int = Field(
        2048,
        ge=0,
        le=_INT_MAX,
        description="messages of one client that wait in the socket; more than window_messages; 0: no limit",
    )
    learning_min_share: float = Field(
        0.25,
        ge=0,
        le=0.9,
        description="share of the time that predictions leave for learning while it is behind the stream; 0: none",
    )
    query_batch_max_samples: int = Field(1024, ge=1, description="samples of queries that are predicted together")
    reply_queue_messages: int = Field(
        1000, ge=1, le=_INT_MAX, description="replies that wait until one client reads them"
    )
    followers_max: int = Field(
        64, ge=0, description="prediction replicas that may follow the daemon; further ones are rejected; 0: none"
    )
    followers_every_s: float = Field(
        0.1, ge=0, le=3600, description="seconds between two snapshots that are sent to prediction replicas, at least"
    )
    followers_max_bytes: int = Field(
        256 << 20,
        ge=1,
        description="bytes of different snapshots that wait until replicas have read them; then newer ones wait, too",
    )
    heartbeat_s: float = Field(
        5.0,
        ge=1,
        le=600,
        description="seconds between TCP keep-alives to a silent client; after 4 unanswered ones it is disconnected",
    )
    handshake_timeout_s: float = Field(
        10.0, ge=0.1, le=600, description="seconds after which a connection without a complete handshake is closed"
    )
    http_connections: int = Field(64, ge=1, description="concurrent HTTP requests; further ones get status 503")
    http_live_readers: int = Field(
        64, ge=0, description="concurrent readers of /api/live, such as pages; further ones get status 503"
    )
    # Prometheus closes its idle connections after 300 s. It must close first, so that no scrape uses a closed
    # connection.
    http_keep_alive_s: float = Field(
        330.0,
        ge=1,
        le=86_400,
        description="seconds that an HTTP connection may be idle; must be longer than the scrape interval",
    )

    @model_validator(mode="after")
    def _queue_holds_a_window(self) -> Self:
        # A client's heartbeats wait behind a full queue, too, so the client would think that the daemon is dead. A
        # client that respects its window must never fill the queue.
        if 0 < self.receive_queue_messages <= self.window_messages:
            raise ValueError(
                wrong(
                    "receive_queue_messages",
                    self.receive_queue_messages,
                    f"must be greater than limits.window_messages = {self.window_messages}, or 0 for no limit",
                )
            )
        return self


class Security(_Section):
    """Who may connect. `ffstream keygen` makes keys. An empty name means that there is no such file or folder."""

    insecure: bool = Field(False, description="allow listening beyond loopback without keys or token")
    server_key: str = Field(
        "", description="file with the daemon's secret key; none: anybody may connect, without encryption"
    )
    learn_clients: str = Field("", description="folder with the public keys of clients that may send samples")
    predict_clients: str = Field(
        "", description="folder with the public keys of clients that may ask for predictions"
    )
    control_clients: str = Field("", description="folder with the public keys of clients that may control the daemon")
    follow_clients: str = Field(
        "",
        description="folder with the public keys of prediction replicas: on the control socket they may request"
        " snapshots and nothing else; none: only control clients may",
    )
    http_token: str = Field(
        "", description="file with the bearer token for HTTP requests, except health checks and the web page"
    )


class Http(_Section):
    """The HTTP server and its page. Other limits of it are in [limits], its token is in [security]."""

    hosts: tuple[str, ...] = Field(
        (),
        description="names by which browsers and scrapers reach the daemon, besides localhost, addresses and the name"
        " in listen.http",
    )
    teach: bool = Field(False, description="allow the page to send samples that are learned")
    teach_token: str = Field(
        "", description="file with a token of its own that these samples need; required beyond loopback"
    )

    @field_validator("hosts")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _HOST.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a host; leave out scheme, port and wildcards")
        return value


class Learning(_Section):
    """How the stream is divided into microbatches."""

    linger_s: float = Field(1.0, ge=0, description="seconds that an incomplete microbatch waits for more samples")
    partial: Literal["flush", "wait"] = Field(
        "flush",
        description="then learn it (flush), or wait forever, so that the same samples make the same microbatches",
    )
    publish_every: int = Field(4, ge=1, description="microbatches between two snapshots")
    sleep_when_quiet_s: float = Field(
        0.0, ge=0, description="seconds without a new sample after which a network with phases sleeps; 0: never"
    )
    sleep_when_quiet_max_microbatches: int = Field(
        256,
        ge=16,  # journal.events.SLEEP_MICROBATCHES, the smallest number that can be decided
        description="sleep microbatches that a quiet stream causes, at most, until it continues",
    )


class PipelineSection(_Section):
    """How the layers run. Of these options, only `overflow = skip` and `precision` change the weights."""

    engine: Literal["threads", "ray"] = Field(
        "threads",
        description="where stages run: on threads of the daemon, or in actors of a Ray cluster (see [cluster])",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is a device")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="precision of matrix products; auto: bf16 where it is fast"
    )
    queue_depth: int = Field(4, ge=1, description="microbatches in the queue between two stages")
    overflow: Literal["block", "skip"] = Field(
        "block", description="when a queue is full, wait for the slow stage (block) or let it skip microbatches"
    )
    stages: tuple[int, ...] = Field((), description="number of layers in each stage; empty: one layer each")
    stall_timeout_s: float = Field(60.0, gt=0, description="seconds without progress before a thread counts as stuck")


class Cluster(_Section):
    """Stages in a Ray cluster, with pipeline.engine = "ray". Only `replicas` and `merge_every` change the weights.

    A list has an entry for each stage; an empty one means the default for all stages.
    """

    address: str = Field(
        "local",
        description="local: a cluster of this machine, started and ended by the daemon; auto, or HOST:PORT of a head",
    )
    replicas: int = Field(1, ge=1, le=64, description="pipelines that learn disjoint microbatches of the stream")
    merge_every: int = Field(
        8, ge=1, description="microbatches of each replica after which the replicas' states are merged"
    )
    spares: int = Field(0, ge=0, le=64, description="actors that are ready to replace lost ones")
    cpus: tuple[float, ...] = Field((), description="processors that the actor of each stage reserves; default: 1")
    gpus: tuple[float, ...] = Field((), description="GPUs that the actor of each stage reserves; default: 0")
    resources: tuple[str, ...] = Field(
        (), description='custom resources of each stage, such as "big=1"; several are separated by commas'
    )
    placement: tuple[Literal["default", "spread"], ...] = Field(
        (), description="Ray's scheduling of each stage: fill nodes (default), or use as many as there are (spread)"
    )
    start_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="seconds in which all stages must be placed; then it is tried again"
    )
    insecure: bool = Field(
        False, description="send activities and weights between machines without encryption and authentication"
    )

    @field_validator("cpus", "gpus")
    @classmethod
    def _are_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(each < 0 for each in value):
            raise ValueError("expected numbers from 0")
        return value

    @field_validator("resources")
    @classmethod
    def _are_amounts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            amounts(entry)
        return value


def as_written(values: Iterable[Any]) -> list[Any]:
    """As the user wrote them: pydantic makes 1.0 of 1."""
    return [int(each) if isinstance(each, float) and each.is_integer() else each for each in values]


def amounts(entry: str) -> dict[str, float]:
    """Custom resources from `name=amount,name=amount`. Raises ValueError."""
    found = {}
    for part in filter(None, entry.split(",")):
        name, _, amount = part.strip().partition("=")
        try:
            found[name] = float(amount or 1)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < math.inf:
            raise ValueError(f"{part.strip()!r} is not NAME=AMOUNT")
    return found


class Checkpoints(_Section):
    """When checkpoints are written, and which are kept."""

    every_samples: int = Field(100_000, ge=0, description="samples between two checkpoints; 0: not by count")
    every_s: float = Field(60.0, ge=0, description="seconds between two checkpoints; 0: not by time")
    write_bytes_per_s: int = Field(
        64 << 20,
        ge=0,
        description="bytes per second when a checkpoint is written while learning goes on; 0: no limit",
    )
    keep: int = Field(
        3,
        ge=1,
        description="newest checkpoints that are kept; the journal keeps all samples after the oldest of them",
    )
    ladder_s: tuple[float, ...] = Field(
        (600.0, 3600.0, 86_400.0, 604_800.0),
        description="older checkpoints kept for `rollback --skip`, in seconds of running: one per first number up"
        " to the age of the second, then one per second number up to the age of the third, and so on; empty: none",
    )
    max_bytes: int = Field(
        2 << 30,
        ge=0,
        description="bytes of all checkpoints; beyond that older ones are removed, but never the newest `keep`",
    )

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        steps = as_written(self.ladder_s)
        if len(steps) == 1 or any(not 0 < a < b < math.inf for a, b in pairwise(steps)):
            raise ValueError(wrong("ladder_s", steps, "expected ascending seconds, two or more, or [] for no ladder"))
        return self


class PrequentialSection(_Section):
    """Prequential evaluation: microbatches are predicted before they are learned."""

    fraction: float = Field(1.0, ge=0, le=1, description="share of microbatches that are predicted")
    busy_fraction: float = Field(0.125, ge=0, le=1, description="the same while learning is behind the stream")
    busy_backlog_samples: int = Field(
        8192, ge=0, description="samples on disk, not learned yet, from which learning counts as behind"
    )
    queue_depth: int = Field(
        16, ge=1, description="microbatches that may wait to be predicted; further ones are not predicted"
    )
    drift_detector: Literal["none", "adwin"] = Field(
        "none", description="reports when the prequential error rises; adwin needs the extra ffstream[drift]"
    )
    drift_delta: float = Field(
        0.002, gt=0, lt=1, description="significance of the drift detector; smaller: fewer false reports"
    )

    @model_validator(mode="after")
    def _detector_has_errors(self) -> Self:
        if self.drift_detector != "none" and not self.fraction and not self.busy_fraction:
            reason = "with fraction = 0 and busy_fraction = 0 nothing is predicted, so it never sees an error"
            raise ValueError(wrong("drift_detector", self.drift_detector, reason))
        return self


class Shutdown(_Section):
    """Deadlines of a shutdown."""

    drain_timeout_s: float = Field(
        20.0, gt=0, le=86_400, description="seconds to learn what is in the queues and write a checkpoint"
    )


class Config(_Section):
    """All options."""

    state: Path = Field(Path("ffstream-state"), description="state folder: journal and checkpoints")
    listen: Listen = Listen()
    limits: Limits = Limits()
    security: Security = Security()
    http: Http = Http()
    network: Annotated[Recipe, BeforeValidator(_fill_preset)] = recipe("stream")
    learning: Learning = Learning()
    pipeline: PipelineSection = PipelineSection()
    cluster: Cluster = Cluster()
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
        """Checks options that depend on options of another section."""
        recipe, learning, stages = self.network, self.learning, self.pipeline.stages
        if learning.sleep_when_quiet_s and not recipe.wake:
            raise OptionError(
                wrong(
                    "learning.sleep_when_quiet_s",
                    learning.sleep_when_quiet_s,
                    "the network has no phases; set network.wake to a number of microbatches",
                ),
                hint='use network.preset = "wake-sleep"',
            )
        if recipe.wake and not recipe.sleep and not learning.sleep_when_quiet_s:
            reason = "without network.sleep or learning.sleep_when_quiet_s, negative rows are never learned"
            hint = "set network.sleep to a number of microbatches"
            raise OptionError(wrong("network.wake", recipe.wake, reason), hint=hint)
        if learning.partial == "wait" and self.limits.backlog_max_samples < recipe.batch_size:
            raise ValueError(
                wrong(
                    "limits.backlog_max_samples",
                    self.limits.backlog_max_samples,
                    f'with learning.partial = "wait" it must be at least network.batch_size = {recipe.batch_size}',
                )
            )
        self._check_cluster()
        if stages and (sum(stages) != len(recipe.layers) or min(stages) < 1):
            raise ValueError(
                wrong(
                    "pipeline.stages",
                    stages,
                    f"expected numbers from 1 whose sum is the number of layers, {len(recipe.layers)}",
                )
            )
        return self

    def _check_cluster(self) -> None:
        cluster, count = self.cluster, len(self.pipeline.stages or self.network.layers)
        for name in ("cpus", "gpus", "resources", "placement"):
            value = getattr(cluster, name)
            if value and len(value) != count:
                reason = f"expected an entry for each of the {count} stages"
                raise ValueError(wrong(f"cluster.{name}", as_written(value), reason))
        if (
            self.pipeline.engine == "ray"
            and self.pipeline.device == "cuda"
            and not (cluster.gpus and all(cluster.gpus))
        ):
            reason = 'with pipeline.device = "cuda" each stage needs a GPU, or a share of one: Ray hides all others'
            hint = f"set cluster.gpus, for example to {[0.5] * count}"
            raise OptionError(wrong("cluster.gpus", as_written(cluster.gpus), reason), hint=hint)
        if cluster.replicas > 1 and self.pipeline.engine != "ray":
            reason = 'replicas need pipeline.engine = "ray"'
            raise OptionError(wrong("cluster.replicas", cluster.replicas, reason), hint="set it, or use one replica")
        if self.pipeline.engine == "ray" and self.pipeline.overflow == "skip":
            reason = "between processes a full queue always blocks"
            raise OptionError(
                wrong("pipeline.overflow", "skip", reason),
                hint='use pipeline.engine = "threads", or overflow = "block"',
            )


@cache
def options() -> dict[str, Option]:
    """All options by their dotted names, and all sections by their names."""
    found: dict[str, Option] = {}
    for name, option in options_of(Config).items():
        found[name] = option
        if isinstance(option.kind, type) and issubclass(option.kind, BaseModel):
            found |= {f"{name}.{key}": each for key, each in options_of(option.kind).items()}
    for_all_layers = {f"network.{key}": each for key, each in options_of(LayerOptions).items()}
    return found | for_all_layers | {"network.preset": PRESET, "network.widths": Option(tuple[int, ...])}


def names() -> list[str]:
    """The dotted names of all options, without sections."""
    sections = {name.partition(".")[0] for name in options() if "." in name}
    return [name for name in options() if name not in sections]


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options that are set, by their dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value and name not in names():
            yield from ((f"{name}.{key}", each) for key, each in value.items())
        else:
            yield name, value


def _check_name(name: str, value: Any) -> None:
    """Raises OptionError for what pydantic would accept, or would report in words meant for programmers."""
    option = options().get(name)
    if option is None:
        raise UnknownOption(name, names())
    is_wrong_preset = name == "network.preset" and not (isinstance(value, str) and value in PRESETS)
    if is_wrong_preset or (option.is_number and isinstance(value, bool)):  # True is 1 in Python
        raise OptionError(wrong(name, value, option.expected()), hint=option.closest(value))


def load(
    file: Path | None = None,
    settings: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """The options from all sources. Raises ConfigError, which names the option."""
    given = option_sources.Given(names())
    if file is not None:
        given.read(file)
    given.take_environment(os.environ if environment is None else environment)
    given.take_settings(settings)
    return validate(given)


def validate(given: option_sources.Given) -> Config:
    """The options that are set, and the defaults of all others. Raises ConfigError, which names the option.

    Logs what is set and has no effect.
    """
    try:
        config = Config.model_validate(given.tree)
    except ValidationError as error:
        # Its URLs are for programmers.
        raise _explain(error.errors(include_url=False)[0], given) from error
    for name, reason in without_effect(given.tree.get("network", {}), config.network).items():
        log.warning("option has no effect option=network.%s reason=%s", name, reason)
    return config


def _explain(first: Mapping[str, Any], given: option_sources.Given) -> ConfigError:
    """The error for a person: the option, its value, what is expected, and where it was set."""
    cause = first.get("ctx", {}).get("error")  # an error that one of our validators raised
    name = ".".join(str(part) for part in first["loc"][:2])
    hint = getattr(cause, "hint", "")
    if name in names():
        option, value = options()[name], given.value(name)
        message = wrong(name, value, str(cause) if cause else option.expected())
        hint = hint or option.closest(value)
    elif cause is not None:
        message = f"{name}.{cause}" if name else str(cause)
    else:
        message = wrong(name, first["input"], "expected a section of options, not a value")
    hints = (hint, given.set_by(message.partition(" ")[0].rstrip(":")), "ffstream config show lists all options")
    return ConfigError(message, hint="; ".join(filter(None, hints)).replace("?;", "?"))


def describe(config: Config) -> str:
    """All options as a TOML file, each with its description."""
    lines: list[str] = [f"# {Config.model_fields['state'].description}", f"state = {show(config.state)}"]
    for name in Config.model_fields:
        section = getattr(config, name)
        if isinstance(section, Recipe):
            lines += [
                "",
                f"[{name}]",
                "# `preset = NAME` sets everything that is not set here: " + ", ".join(PRESETS),
            ]
            lines += ["# options of layers may be set here as well, for all layers"]
            lines += _described(section)
            for layer in section.layers:
                lines += ["", f"[[{name}.layers]]", *_described(layer)]
        elif isinstance(section, _Section):
            lines += ["", f"[{name}]", *_described(section)]
    return "\n".join(lines) + "\n"


def _described(section: BaseModel) -> Iterator[str]:
    """A line for each option, except for layers, which are tables of their own."""
    for key, value in section.model_dump(exclude={"layers"}).items():
        yield f"{key} = {show(value)}  # {type(section).model_fields[key].description}"
