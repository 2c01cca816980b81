"""`wire/vectors.json` against a daemon that runs: every reply is the one that the file says."""

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import msgpack
import pytest

from tests.in_process import Running

VECTORS: dict[str, Any] = json.loads(files("ffstream.wire").joinpath("vectors.json").read_text(encoding="utf-8"))
EXCHANGES = {each["name"]: each for each in VECTORS["vectors"]}
KINDS = {"int": int, "str": str, "bool": bool, "list": list}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = [f"{name}={json.dumps(value)}" for name, value in VECTORS["daemon"].items()]
    with Running(tmp_path_factory.mktemp("vectors") / "state", *settings) as running:
        yield running


def plain(value: Any) -> Any:
    """With msgpack's bins in place of `{"hex": …}`."""
    if isinstance(value, dict):
        if set(value) == {"hex"}:
            return bytes.fromhex(value["hex"])
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def mismatch(expected: Any, found: Any, where: str = "header") -> str | None:
    """What is not as expected, and where; None if all is."""
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


def test_each_exchange_has_a_name_of_its_own() -> None:
    assert VECTORS["protocol"] == 1
    assert len(EXCHANGES) == len(VECTORS["vectors"])


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_frames_are_what_the_header_says(name: str) -> None:
    for step in EXCHANGES[name]["steps"]:
        if "header" in step:
            assert msgpack.packb(plain(step["header"])).hex() == step["send"][0]


@pytest.mark.parametrize("name", EXCHANGES)
def test_a_daemon_replies_as_the_file_says(daemon: Running, name: str) -> None:
    exchange = EXCHANGES[name]
    with daemon.peer(exchange["socket"]) as peer:
        for step in exchange["steps"]:
            peer.send_frames(*map(bytes.fromhex, step["send"]))
            if step["reply"] is None:
                continue  # the reply to the next step would not fit if there was one
            header, payload = peer.answer_and_payload()
            assert mismatch(plain(step["reply"]["header"]), header) is None
            assert list(map(len, payload)) == step["reply"]["payload"]
