"""How the journal names a client: by the key it sends with and by its name.

With a key, the column `client` holds the key, a separator and the name. Without keys it holds the name alone, which
is not authenticated: any client can use it.
"""

from ffstream.wire.messages import NAMELESS_PREFIX, SEPARATOR


def join(key: str, name: str) -> str:
    """The client as the journal stores it. `key` is empty without keys."""
    return f"{key}{SEPARATOR}{name}" if key else name


def split(client: str) -> tuple[str, str]:
    """The key of a client, empty without keys, and its name."""
    key, separator, name = client.partition(SEPARATOR)
    return (key, name) if separator else ("", client)


def owner(client: str) -> str:
    """What limits apply to: the key, which all its clients share. Without keys, each client is its own owner."""
    return client[: client.find(SEPARATOR) + 1] or client


def has_key(owner: str) -> bool:
    """Whether an owner is a key."""
    return owner.endswith(SEPARATOR)


def is_nameless(client: str) -> bool:
    """Whether the name was generated for one producer, so that nobody uses it again later."""
    return split(client)[1].startswith(NAMELESS_PREFIX)


def show(key: str, name: str) -> str:
    """A client for display. Control characters are escaped, because clients choose their names."""
    return f"{name!r} of key {key!r}" if key else repr(name)


def describe(client: str) -> str:
    """The same, for a client as the journal stores it."""
    return show(*split(client))
