import os
from pathlib import Path

import pytest
import zmq
from click.testing import CliRunner

from ffstream.cli import main
from ffstream.errors import ConfigError
from ffstream.security import keys
from ffstream.server.credentials import is_local
from tests.support import owned_by_another_user


def test_a_new_key_pair_is_valid_and_only_its_owner_can_read_the_secret(tmp_path: Path) -> None:
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


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    public, secret = keys.create(tmp_path, "anna")
    for gone in (public, secret):
        kept = {path: path.read_bytes() for path in (public, secret) if path != gone}
        gone.unlink()
        with pytest.raises(ConfigError, match="already contains a key anna"):
            keys.create(tmp_path, "anna")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
        gone.write_text("mine")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "-x", "é"])
def test_an_invalid_key_name_is_rejected(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        keys.create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_keygen_writes_a_key_pair_and_says_what_to_do_with_it(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["keygen", "--out", str(tmp_path / "k"), "anna"])
    assert run.exit_code == 0
    assert f"secret  {tmp_path}/k/anna.key_secret" in run.output
    assert "security.learn_clients" in run.output
    assert CliRunner().invoke(main, ["keygen", "--out", str(tmp_path / "k"), "anna"]).exit_code == 2


def test_one_key_option_needs_the_other(tmp_path: Path) -> None:
    public, secret = keys.create(tmp_path, "anna")
    for given in (["--key", str(secret)], ["--server-key", str(public)]):
        run = CliRunner().invoke(main, ["status", *given])
        assert run.exit_code == 2


def status(*arguments: str) -> str:
    """The output of `ffstream status` with wrong keys: it exits with 2 and does not connect."""
    run = CliRunner().invoke(main, ["status", *arguments])
    assert run.exit_code == 2
    return run.output


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_public_key_where_a_secret_key_is_needed_is_an_error(tmp_path: Path, mode: int) -> None:
    public, secret = keys.create(tmp_path, "anna")
    public.chmod(mode)
    output = status("--key", str(public), "--server-key", str(public))
    assert f"--key: {public} contains a public key, expected a secret key" in output
    assert f"hint: use {secret}\n" in output
    assert "chmod" not in output
    secret.unlink()
    assert "hint: use the file that ends in .key_secret" in status("--key", str(public), "--server-key", str(public))


def test_a_secret_key_where_a_public_key_is_needed_is_an_error(tmp_path: Path) -> None:
    _, secret = keys.create(tmp_path, "anna")
    daemon_public, daemon_secret = keys.create(tmp_path, "daemon")
    output = status("--key", str(secret), "--server-key", str(daemon_secret))
    assert f"--server-key: {daemon_secret} contains a secret key, expected a public key" in output
    assert f"hint: use {daemon_public}" in output


def test_swapped_key_files_are_recognised(tmp_path: Path) -> None:
    _, secret = keys.create(tmp_path, "anna")
    public, _ = keys.create(tmp_path, "daemon")
    output = status("--key", str(public), "--server-key", str(secret))
    assert f"--key {public} is a public key and --server-key {secret} a secret one" in output
    assert "are they swapped?" in output


@pytest.mark.parametrize("option", ["--key", "--server-key"])
@pytest.mark.parametrize("kind", ["missing", "folder", "token", "unfinished"])
def test_the_error_names_the_option_of_an_invalid_key_file(tmp_path: Path, option: str, kind: str) -> None:
    public, secret = keys.create(tmp_path, "anna")
    path = tmp_path / "other"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_text({"token": "a-token-of-enough-letters", "unfinished": "public-key"}[kind], encoding="utf-8")
        path.chmod(0o600)
    given = {"--key": str(secret), "--server-key": str(public), option: str(path)}
    output = status(*(part for each in given.items() for part in each))
    assert f"error: {option}: {path}" in output
    assert "hint: " in output


@pytest.mark.parametrize("name", ["anna.key", "anna.key_secret"])
def test_a_key_file_where_a_token_is_needed_is_an_error(tmp_path: Path, name: str) -> None:
    keys.create(tmp_path, "anna")
    with pytest.raises(ConfigError, match="is a key file, expected a token"):
        keys.load_token(tmp_path / name)


def test_a_token_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(b"\xef\xbb\xbfa-token-of-enough-letters\r\n")
    assert keys.load_token(file) == b"a-token-of-enough-letters"


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
def test_an_invalid_token_is_rejected(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(ConfigError, match="does not contain a token"):
        keys.load_token(file)


def test_secrets_and_folders_of_other_users_are_rejected(tmp_path: Path) -> None:
    _, secret = keys.create(tmp_path, "anna")
    for path, load in (
        (secret, lambda: keys.load_pair(secret)),
        (tmp_path, lambda: keys.check_folder(tmp_path)),
        (tmp_path, lambda: keys.check_folder(tmp_path, group_may_write=True)),
    ):
        with owned_by_another_user(path), pytest.raises(ConfigError, match="belongs to another user") as caught:
            load()
        assert str(path) in caught.value.hint
        load()


def test_a_pipe_is_not_a_key(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key")
    with pytest.raises(ConfigError, match="not a regular file"):
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
def test_only_loopback_and_ipc_endpoints_are_local(endpoint: str, local: bool) -> None:
    assert is_local(endpoint) is local
