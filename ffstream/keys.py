"""Keys and other secrets on disk: their form, and who may read them.

A key pair is two files as `zmq.auth.create_certificates` writes them: `NAME.key` holds the public key, for others;
`NAME.key_secret` holds both. A file with a secret is good if and only if nobody but its owner can read or write it;
a key that lets somebody in, and the folder it is in, if and only if nobody but their owner can write them. The owner
is who runs this, or root.
"""

import os
import re
import stat
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.utils import z85

from ffstream.errors import ConfigError

PUBLIC = ".key"
SECRET = ".key_secret"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TEXT_BYTES = 40  # a key of 32 bytes in Z85
_TOKEN_MIN = 16
_TOKEN = re.compile(rb"[!-~]{%d,}" % _TOKEN_MIN)  # what a header can carry
_FILE_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85. Its secret half is not printed."""

    public: bytes
    secret: bytes = field(repr=False)


def create(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a new pair; returns the public and the secret file. Raises ConfigError, and never overwrites."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name for a key", hint="it becomes a file's: letters, digits, - _ and .")
    public, secret = folder / (name + PUBLIC), folder / (name + SECRET)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_folder(folder)
        # Written where nobody looks, then linked: a link is whole, and does not replace what is there.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as aside:
            made_public, made_secret = map(Path, create_certificates(aside, name))
            made_public.chmod(0o644)
            made_secret.chmod(0o600)
            secret.hardlink_to(made_secret)
            try:
                public.hardlink_to(made_public)
            except OSError:
                secret.unlink()
                raise
    except FileExistsError as error:
        raise ConfigError(
            f"there is a key {name} in {folder}", hint="take another name; a key that was given away stays what it is"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="--out names a folder to write to") from error
    return public, secret


def load_pair(path: Path) -> KeyPair:
    """The pair in a secret file. Raises ConfigError."""
    check_private(path)
    public, secret = _load(path)
    if secret is None:
        raise ConfigError(f"{path} holds no secret key", hint=f"take the file that ends in {SECRET}")
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{path}: the two keys are not a pair", hint="ffstream keygen makes another")
    return KeyPair(public, secret)


def load_public(path: Path) -> bytes:
    """The public key in a file, in Z85. Raises ConfigError."""
    return _load(path)[0]


def load_admitted(path: Path) -> bytes:
    """The same for a key that lets somebody in. Raises ConfigError if others could have put another in its place."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="ffstream keygen makes keys") from error
    _check_owner(path, status)
    if status.st_mode & 0o022:
        raise ConfigError(f"others may write to {path}", hint=f"chmod 644 {path}")
    return load_public(path)


def load_token(path: Path) -> bytes:
    """The bearer token in a file. Raises ConfigError."""
    check_private(path)
    token = path.read_bytes()[:_FILE_MAX_BYTES].strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            f"{path} holds no token of at least {_TOKEN_MIN} characters", hint=f"openssl rand -hex 32 > {path}"
        )
    return token


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a FIFO would wait for whoever writes to it
            raise ValueError("no file")
        if status.st_size > _FILE_MAX_BYTES:
            raise ValueError("too long for a key")
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and not _is_key(key):
                raise ValueError("not a key in Z85")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: {reason}", hint="ffstream keygen makes keys") from error
    return public, secret


def _is_key(text: bytes) -> bool:
    try:
        return len(text) == _TEXT_BYTES and bool(z85.decode(text))
    except (KeyError, struct.error):  # no digit of Z85; five digits beyond 32 bits
        return False


def check_private(path: Path) -> None:
    """Raises ConfigError if the file is not there, or if anybody but its owner may read or write it."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint="ffstream keygen makes keys") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is no file", hint=f"name the file itself, which ends in {SECRET} for a key")
    _check_owner(path, status)
    if status.st_mode & 0o077:
        raise ConfigError(f"{path} is open to others than its owner", hint=f"chmod 600 {path}")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"{path} cannot be read", hint="it belongs to another user")


def check_folder(folder: Path, *, of_keys: bool = True) -> bool:
    """Raises ConfigError if others own the folder or may write into it; returns whether they may read it."""
    status = folder.stat()
    _check_owner(folder, status)
    mode = status.st_mode
    if mode & (stat.S_IWOTH | (stat.S_IWGRP if of_keys else 0)):
        raise ConfigError(f"others may write into {folder}", hint=f"chmod 700 {folder}")
    return bool(mode & (stat.S_IRGRP | stat.S_IROTH))


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Whoever owns a file can open it to themselves at any time."""
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user", hint=f"chown {os.geteuid()} {path}")
