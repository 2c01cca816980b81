import os
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner

from ffstream import keys
from ffstream.cli import main
from ffstream.errors import ConfigError
from ffstream.server.access import is_local
from tests.support import given_away


def test_a_pair_is_whole_and_its_secret_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public, secret = keys.create(tmp_path / "keys", "anna")
    finally:
        os.umask(before)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert public.parent.stat().st_mode & 0o777 == 0o700
    pair = keys.load_pair(secret)
    assert pair.public == keys.load_public(public) == zmq.curve_public(pair.secret)
    assert pair.secret not in public.read_bytes()
    assert pair.secret.decode() not in repr(pair)
    assert sorted(each.name for each in public.parent.iterdir()) == ["anna.key", "anna.key_secret"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    public, secret = keys.create(tmp_path, "anna")
    for gone in (public, secret):
        kept = {path: path.read_bytes() for path in (public, secret) if path != gone}
        gone.unlink()
        with pytest.raises(ConfigError, match="there is a key anna"):
            keys.create(tmp_path, "anna")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
        gone.write_text("mine")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "-x", "é"])
def test_a_name_that_is_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        keys.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_keygen(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["keygen", "--out", str(tmp_path / "k"), "anna"])
    assert run.exit_code == 0
    assert f"secret  {tmp_path}/k/anna.key_secret" in run.output
    assert "security.learn_clients" in run.output
    assert CliRunner().invoke(main, ["keygen", "--out", str(tmp_path / "k"), "anna"]).exit_code == 2


def test_one_key_option_without_the_other(tmp_path: Path) -> None:
    public, secret = keys.create(tmp_path, "anna")
    for given in (["--key", str(secret)], ["--server-key", str(public)]):
        run = CliRunner().invoke(main, ["status", *given])
        assert run.exit_code == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "a token with spaces in it",
        "täken-with-enough-characters",
        "a-token-with-a-\0-in-it",
        "a-token-with-\x1b[2J-in-it",
        "a-token-with-a-\x7f-in-it",
        "fifteen-letters",
    ],
)
def test_a_token_that_is_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(ConfigError, match="holds no token"):
        keys.load_token(file)


def test_secrets_and_folders_of_another_user(tmp_path: Path) -> None:
    _, secret = keys.create(tmp_path, "anna")
    for path, load in (
        (secret, lambda: keys.load_pair(secret)),
        (tmp_path, lambda: keys.check_folder(tmp_path)),
        (tmp_path, lambda: keys.check_folder(tmp_path, of_keys=False)),
    ):
        with given_away(path), pytest.raises(ConfigError, match="belongs to another user") as caught:
            load()
        assert str(path) in caught.value.hint
        load()


def test_a_pipe_is_no_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(ConfigError, match="no file"):
        keys.load_public(tmp_path / "pipe.key")


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5757", True),
        ("tcp://127.255.0.9:*", True),
        ("tcp://[::1]:5757", True),
        ("tcp://localhost:1", True),
        ("ipc:///tmp/x", True),
        ("inproc://x", True),
        ("tcp://*:5757", False),
        ("tcp://0.0.0.0:5757", False),
        ("tcp://[::]:5757", False),
        ("tcp://127.1:5757", False),
        ("tcp://localhost.example.org:1", False),
        ("tcp://lo:1", False),
        ("tcp://128.0.0.1:1", False),
        ("ws://0.0.0.0:1", False),
        ("tcp://:1", False),
        ("", False),
    ],
)
def test_what_counts_as_loopback(endpoint: str, local: bool) -> None:
    assert is_local(endpoint) is local
