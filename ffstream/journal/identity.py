"""Who a client is: the key with which it sends, and its name. Without keys the name alone, which belongs to nobody.

In a journal's `client` that is one text: with a key, the key, a separator and the name.
"""

from ffstream.wire.messages import NAMELESS_PREFIX, SEPARATOR


def join(key: str, name: str) -> str:
    """What stands in the journal; `key` is empty without keys."""
    return f"{key}{SEPARATOR}{name}" if key else name


def split(client: str) -> tuple[str, str]:
    """Its key, or nothing, and its name."""
    key, separator, name = client.partition(SEPARATOR)
    return (key, name) if separator else ("", client)


def owner(client: str) -> str:
    """Whom limits hold: the same for all clients of a key. Without keys each client is its own."""
    return client[: client.find(SEPARATOR) + 1] or client


def has_key(owner: str) -> bool:
    """Whether that owner is a key, and not a client without one."""
    return owner.endswith(SEPARATOR)


def is_nameless(client: str) -> bool:
    """Whether its name was made up for one producer and is not used again after it."""
    return split(client)[1].startswith(NAMELESS_PREFIX)


def show(key: str, name: str) -> str:
    """For people. Strangers choose their names: none may end a line or move a cursor."""
    return f"{name!r} of key {key!r}" if key else repr(name)


def describe(client: str) -> str:
    """The same, for what stands in the journal."""
    return show(*split(client))
