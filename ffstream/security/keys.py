"""Keys and other secrets on disk: their form, and who may read them.

A key pair is two files as `zmq.auth.create_certificates` writes them: `NAME.key` holds the public key, for others;
`NAME.key_secret` holds both. A file with a secret is good if and only if nobody but its owner can read or write it;
a key that lets somebody in, and the folder it is in, if and only if nobody but their owner can write them. The owner
is who runs this, or root.

A secret of root's may also be readable by its group (0440: the group cannot write, others can do nothing) in two
cases. It lies below $CREDENTIALS_DIRECTORY, a folder that systemd (LoadCredential=) opens to this service alone; the
group bits there are the mask of an ACL. Or its group is this process's own and has no other user, as in a container:
Kubernetes gives a mounted Secret to the group of `fsGroup`.
"""

import codecs
import grp
import os
import pwd
import re
import stat
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# zmq is imported where it is needed: `config check` is quick without keys
from ffstream.errors import ConfigError, StartBlocked
from ffstream.util.os_errors import path_error

PUBLIC = ".key"
SECRET = ".key_secret"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TEXT_BYTES = 40  # a key of 32 bytes in Z85
_TOKEN_MIN = 16
_TOKEN = re.compile(rb"[!-~]{%d,}" % _TOKEN_MIN)  # what a header can carry
_FILE_MAX_BYTES = 64 << 10
_KEY_FILE = re.compile(rb"^\s*(public|secret)-key\s*=", re.MULTILINE)
_KEYGEN = "ffstream keygen makes keys"
_CREDENTIALS = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85. Its secret half is not printed."""

    public: bytes
    secret: bytes = field(repr=False)


def create(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a new pair; returns the public and the secret file. Raises ConfigError, and never overwrites."""
    from zmq.auth import create_certificates

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
    import zmq

    _check_readable(path)
    public, secret = _load(path)
    if secret is None:  # said before its mode is looked at: chmod would not help
        raise ConfigError(
            f"{path} holds a public key, and the secret one is needed here", hint=_use_other(path, SECRET)
        )
    check_private(path)
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{path}: the two keys are not a pair", hint="ffstream keygen makes another")
    return KeyPair(public, secret)


def load_public(path: Path) -> bytes:
    """The public key in a public file, in Z85. Raises ConfigError, for a secret file too: it is its owner's alone."""
    _check_readable(path)
    public, secret = _load(path)
    if secret is not None:
        raise ConfigError(
            f"{path} holds a secret key, and the public one is needed here", hint=_use_other(path, PUBLIC)
        )
    return public


def _use_other(path: Path, suffix: str) -> str:
    other = path.with_suffix(suffix)
    return f"use {other}" if other.exists() else f"use the file that ends in {suffix}"


def is_secret_file(path: Path) -> bool | None:
    """Whether the file holds a secret key; None when it holds no key at all, or cannot be read."""
    try:
        return _load(path)[1] is not None
    except ConfigError:
        return None


def load_admitted(path: Path) -> bytes:
    """The same for a key that lets somebody in. Raises ConfigError if others could have put another in its place."""
    status = _status(path)
    _check_owner(path, status)
    if status.st_mode & 0o022:
        raise ConfigError(f"others may write to {path}", hint=f"chmod 644 {path}")
    return _load(path)[0]


def load_token(path: Path) -> bytes:
    """The bearer token in a file. Raises ConfigError."""
    make = f"openssl rand -hex 32 > {path}"
    _check_readable(path, make)
    try:
        content = path.read_bytes()[:_FILE_MAX_BYTES]
    except OSError as error:
        raise _unreadable(path, error, make) from error
    if _KEY_FILE.search(content):
        raise ConfigError(
            f"{path} is a key file, and a token is needed here",
            hint="name a file of its own; ffstream keygen is for keys",
        )
    check_private(path)
    token = content.removeprefix(codecs.BOM_UTF8).strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path} holds no token of at least {_TOKEN_MIN} characters", hint=make)
    return token


def _load(path: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # to open a FIFO would wait for whoever writes to it
            raise ValueError("no file")
        if status.st_size > _FILE_MAX_BYTES:
            raise ValueError("too long for a key")
        if not _KEY_FILE.search(path.read_bytes()):
            raise ValueError("not a key file")
        public, secret = load_certificate(path)
        for key in (public, secret):
            if key is not None and not _is_key(key):
                raise ValueError("not a key in Z85")
    except (OSError, ValueError, IndexError) as error:  # IndexError: a line without "="
        raise _unreadable(path, error) from error
    return public, secret


def _unreadable(path: Path, error: Exception, make: str = _KEYGEN) -> ConfigError | StartBlocked:
    if not isinstance(error, OSError) or error.errno is None:  # zmq raises OSError for a file without a key
        return ConfigError(f"{path}: {error}", hint=make)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ConfigError(f"{path}: {error.strerror}", hint=make)
    return path_error("the option that names it", path, error)


def _is_key(text: bytes) -> bool:
    from zmq.utils import z85

    try:
        return len(text) == _TEXT_BYTES and bool(z85.decode(text))
    except (KeyError, struct.error):  # no digit of Z85; five digits beyond 32 bits
        return False


def check_private(path: Path) -> None:
    """Raises ConfigError if the file is not there, or if other users may read or write it: see the rule above."""
    status = _check_readable(path)
    _check_owner(path, status)
    if status.st_mode & 0o077 and not _is_shared_by_root(path, status):
        raise ConfigError(f"{path} is open to others than its owner", hint=_private_hint(path, status))


def _check_readable(path: Path, make: str = _KEYGEN) -> os.stat_result:
    status = _status(path, make)
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is a folder, and a file is needed here", hint="name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is no file", hint="name a regular file")
    if not os.access(path, os.R_OK, effective_ids=True):
        own = os.geteuid()
        raise ConfigError(
            f"{path} belongs to uid {status.st_uid} and cannot be read by this process (uid {own})",
            hint=f"chown {own} {path}; in a systemd unit, LoadCredential= hands it over",
        )
    return status


def _status(path: Path, make: str = _KEYGEN) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error, make) from error


def _is_shared_by_root(path: Path, status: os.stat_result) -> bool:
    """Whether root, who may read every file, gave this one to this process and to no other user."""
    if status.st_uid != 0 or status.st_mode & 0o037:
        return False  # of another user; the group may write, or others may do something
    credentials = os.environ.get(_CREDENTIALS)
    if credentials and path.resolve().is_relative_to(Path(credentials).resolve()):
        return True
    return os.geteuid() != 0 and status.st_gid == os.getegid() and _has_no_other_user(status.st_gid)


def _has_no_other_user(gid: int) -> bool:
    own = {"root", *(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == os.geteuid())}
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid}
    with suppress(KeyError):  # a container has groups without a name
        members |= set(grp.getgrgid(gid).gr_mem)
    return members <= own


def _private_hint(path: Path, status: os.stat_result) -> str:
    if status.st_uid == os.geteuid():
        return f"chmod 600 {path}"
    return (
        f"copy it to a file of uid {os.geteuid()} with mode 0600, use LoadCredential= in a systemd unit, or make it"
        " 0440 with a group that no other user is in"
    )


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
