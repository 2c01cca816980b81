"""Checks the arguments of clients."""

import math
import operator
from numbers import Real
from typing import Any

from ffstream.errors import ConfigError
from ffstream.wire.messages import PAGE_CLIENT, SEPARATOR


def seconds(value: Any, name: str) -> float:
    """A time limit as a float. Raises ConfigError unless it is a number from 0 on."""
    number = float(value) if isinstance(value, Real) else math.nan
    if math.isnan(number) or number < 0:
        raise ConfigError(f"{name}={value!r}", hint="a number of seconds, 0 or more")
    return number


def positive_int(value: Any, name: str) -> int:
    """A whole number from 1 on. Raises ConfigError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ConfigError(f"{name}={value!r}", hint="a whole number, 1 or more")
    return number


def client_name(client: Any) -> str:
    """A valid name for a producer. Raises ConfigError."""
    if not isinstance(client, str):
        raise ConfigError(f"client={client!r}", hint="the client's name is a string: client=str(…)")
    try:
        size = len(client.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 64 or SEPARATOR in client:
        raise ConfigError(
            f"client={client!r} is not a valid name",
            hint="1 to 64 bytes of UTF-8 without U+001F; leave it out for a generated name",
        )
    if client == PAGE_CLIENT:
        raise ConfigError(f"client={client!r} is reserved for the daemon's own page", hint="use another name")
    return client
