"""A running daemon gives every reply of `ffstream/wire/vectors.json`."""

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tests import wire_spec
from tests.in_process import Running

VECTORS: dict[str, Any] = json.loads(files("ffstream.wire").joinpath("vectors.json").read_text(encoding="utf-8"))
EXCHANGES = {each["name"]: each for each in VECTORS["vectors"]}
KINDS = {"int": int, "str": str, "bool": bool, "list": list}


def running(folder: Path, options: dict[str, Any]) -> Running:
    return Running(folder / "state", *(f"{name}={json.dumps(value)}" for name, value in options.items()))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("vectors"), VECTORS["daemon"]) as first:
        yield first


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("unlabelled"), VECTORS["daemon"] | VECTORS["unlabelled"]) as second:
        yield second


def plain(value: Any) -> Any:
    """Replaces each `{"hex": …}` by its bytes."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def mismatch(expected: Any, found: Any, where: str = "header") -> str | None:
    """Describes the first difference; None if there is none."""
    if isinstance(expected, dict) and set(expected) == {"any"}:
        return None if type(found) is KINDS[expected["any"]] else f"{where} is {found!r}, no {expected['any']}"
    if type(expected) is not type(found):
        return f"{where} is {found!r}, not {expected!r}"
    if isinstance(expected, dict):
        parts = ((each, found.get(key), key) for key, each in expected.items())
    elif isinstance(expected, list) and len(expected) == len(found):
        parts = ((each, found[at], str(at)) for at, each in enumerate(expected))
    else:
        return None if expected == found else f"{where} is {found!r}, not {expected!r}"
    return next((fault for part in parts if (fault := mismatch(*part[:2], f"{where}.{part[2]}"))), None)


SPEC_KINDS: dict[str, type] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "map": dict,
    "list of int": list,
    "list of map": list,
}


WHOLE = ("warnings", "checkpoint", "resources")  # maps whose keys vary, or that may be nil


def flat(status: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a status as the specification lists them."""
    for key, value in status.items():
        if isinstance(value, dict) and key not in WHOLE:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_a_status_has_the_keys_of_the_specification(daemon: Running) -> None:
    found = dict(flat(daemon.control().status()))
    specified = wire_spec.status_keys()
    assert set(found) == set(specified)
    for key, value in found.items():
        kind, _, optional = specified[key].partition(" or ")
        assert type(value) is SPEC_KINDS[kind] or (optional == "nil" and value is None), key


def test_exchange_names_are_unique() -> None:
    assert VECTORS["protocol"] == 1
    assert len(EXCHANGES) == len(VECTORS["vectors"])


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_bytes_to_send_equal_the_packed_header(name: str) -> None:
    for step in EXCHANGES[name]["steps"]:
        if "header" in step:
            assert msgpack.packb(plain(step["header"])).hex() == step["send"][0]


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_daemon_gives_the_replies_of_the_file(daemon: Running, unlabelled: Running, name: str) -> None:
    exchange = EXCHANGES[name]
    with (unlabelled if "daemon" in exchange else daemon).peer(exchange["socket"]) as peer:
        for step in exchange["steps"]:
            peer.send_frames(*map(bytes.fromhex, step["send"]))
            if step["reply"] is None:
                continue  # if there was a reply, it would not match the next step
            header, payload = peer.answer_and_payload()
            assert mismatch(plain(step["reply"]["header"]), header) is None
            assert list(map(len, payload)) == step["reply"]["payload"]
