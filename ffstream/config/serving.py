"""Options of what clients meet: addresses, limits, keys, HTTP, and the end of the daemon."""

import re
from itertools import combinations
from typing import Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ffstream.config.section import Section
from ffstream.util import endpoints
from ffstream.util.option_errors import wrong
from ffstream.wire.messages import DEFAULT_CONTROL, DEFAULT_LEARN, DEFAULT_PREDICT, MAX_HEADER_BYTES

_LABELS_MAX = (MAX_HEADER_BYTES - 1024) // 2  # the header of a message holds its labels, two bytes each
_INT_MAX = 2**31 - 1  # libzmq takes an int
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class Listen(Section):
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


class Limits(Section):
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
        description="stored messages of a client, or of all clients of a key, that may be sent again; beyond that"
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


class Security(Section):
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


class Http(Section):
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


class Shutdown(Section):
    """Deadlines of a shutdown."""

    drain_timeout_s: float = Field(
        20.0, gt=0, le=86_400, description="seconds to learn what is in the queues and write a checkpoint"
    )
