"""Keys and tokens on disk: their format, and who may have access to the files.

A key pair is two files as written by `zmq.auth.create_certificates`: `NAME.key` contains the public key and may be
published; `NAME.key_secret` contains both keys. A secret file is accepted if and only if only its owner can read or
write it. A public key that grants access, and its folder, are accepted if and only if only their owner can write
them. The owner must be the user of this process, or root.

A secret file of root may also be readable by its group (mode 0440) in two cases. It is below $CREDENTIALS_DIRECTORY,
which systemd (LoadCredential=) makes accessible to this service only; the group bits there are the mask of an ACL.
Or its group is the group of this process and has no other user, as in a container: Kubernetes gives a mounted Secret
the group `fsGroup`.
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

# zmq is imported where it is needed, so that `config check` is fast without keys.
from ffstream.errors import ConfigError, StartBlocked
from ffstream.util.os_errors import path_error

PUBLIC = ".key"
SECRET = ".key_secret"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TEXT_BYTES = 40  # a key of 32 bytes in Z85
_TOKEN_MIN = 16
_TOKEN = re.compile(rb"[!-~]{%d,}" % _TOKEN_MIN)  # characters allowed in an HTTP header
_FILE_MAX_BYTES = 64 << 10
_KEY_FILE = re.compile(rb"^\s*(public|secret)-key\s*=", re.MULTILINE)
_KEYGEN = "ffstream keygen writes key files"
_CREDENTIALS = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair in Z85. `repr` does not show the secret key."""

    public: bytes
    secret: bytes = field(repr=False)


def create(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes a new key pair and returns the public and the secret file. Raises ConfigError. Overwrites nothing."""
    from zmq.auth import create_certificates

    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot be the name of a key", hint="it becomes a file name: letters, digits, - _ and ."
        )
    public, secret = folder / (name + PUBLIC), folder / (name + SECRET)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_folder(folder)
        # Written to a temporary folder, then linked: a link is atomic and never replaces a file.
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            new_public, new_secret = map(Path, create_certificates(temporary, name))
            new_public.chmod(0o644)
            new_secret.chmod(0o600)
            secret.hardlink_to(new_secret)
            try:
                public.hardlink_to(new_public)
            except OSError:
                secret.unlink()
                raise
    except FileExistsError as error:
        raise ConfigError(
            f"{folder} already contains a key {name}", hint="choose another name: existing keys are never replaced"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}", hint="choose a folder that can be written: --out") from error
    return public, secret


def load_pair(path: Path) -> KeyPair:
    """Reads the key pair in a secret file. Raises ConfigError."""
    import zmq

    _check_readable(path)
    public, secret = _load(path)
    if secret is None:  # checked before the mode, because chmod would not help
        raise ConfigError(f"{path} contains a public key, expected a secret key", hint=_use_other(path, SECRET))
    check_private(path)
    if zmq.curve_public(secret) != public:
        raise ConfigError(f"{path}: the two keys do not belong together", hint=_KEYGEN)
    return KeyPair(public, secret)


def load_public(path: Path) -> bytes:
    """Reads the public key in a public file, in Z85. Raises ConfigError, also for a secret file."""
    _check_readable(path)
    public, secret = _load(path)
    if secret is not None:
        raise ConfigError(f"{path} contains a secret key, expected a public key", hint=_use_other(path, PUBLIC))
    return public


def _use_other(path: Path, suffix: str) -> str:
    other = path.with_suffix(suffix)
    return f"use {other}" if other.exists() else f"use the file that ends in {suffix}"


def is_secret_file(path: Path) -> bool | None:
    """Whether the file contains a secret key; None if it contains no key or cannot be read."""
    try:
        return _load(path)[1] is not None
    except ConfigError:
        return None


def load_client_key(path: Path) -> bytes:
    """Reads a public key that grants access. Raises ConfigError, also if other users could have replaced the key."""
    status = _status(path)
    _check_owner(path, status)
    if status.st_mode & 0o022:
        raise ConfigError(f"other users may write to {path}", hint=f"chmod 644 {path}")
    return _load(path)[0]


def load_token(path: Path) -> bytes:
    """Reads the bearer token in a file. Raises ConfigError."""
    make = f"openssl rand -hex 32 > {path}"
    _check_readable(path, make)
    try:
        content = path.read_bytes()[:_FILE_MAX_BYTES]
    except OSError as error:
        raise _unreadable(path, error, make) from error
    if _KEY_FILE.search(content):
        raise ConfigError(
            f"{path} is a key file, expected a token",
            hint=f"keep the token in its own file: {make}",
        )
    check_private(path)
    token = content.removeprefix(codecs.BOM_UTF8).strip()
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path} does not contain a token of at least {_TOKEN_MIN} characters", hint=make)
    return token


def _load(path: Path) -> tuple[bytes, bytes | None]:
    from zmq.auth import load_certificate

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its writer
            raise ValueError("not a regular file")
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
    if not isinstance(error, OSError) or error.errno is None:  # zmq raises OSError for a file without a key, too
        return ConfigError(f"{path}: {error}", hint=make)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return ConfigError(f"{path}: {error.strerror}", hint=make)
    return path_error("the option that names it", path, error)


def _is_key(text: bytes) -> bool:
    from zmq.utils import z85

    try:
        return len(text) == _TEXT_BYTES and bool(z85.decode(text))
    except (KeyError, struct.error):  # not a digit of Z85; five digits that exceed 32 bits
        return False


def check_private(path: Path) -> None:
    """Raises ConfigError if the file is missing, or if other users may read or write it: see the module docstring."""
    status = _check_readable(path)
    _check_owner(path, status)
    if status.st_mode & 0o077 and not _is_shared_by_root(path, status):
        raise ConfigError(f"{path} can be accessed by users other than its owner", hint=_private_hint(path, status))


def _check_readable(path: Path, make: str = _KEYGEN) -> os.stat_result:
    status = _status(path, make)
    if stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{path} is a folder, expected a file", hint="use a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path} is not a regular file", hint="use a regular file")
    if not os.access(path, os.R_OK, effective_ids=True):
        own = os.geteuid()
        raise ConfigError(
            f"{path} belongs to uid {status.st_uid} and cannot be read by this process (uid {own})",
            hint=f"chown {own} {path}; in a systemd unit, use LoadCredential=",
        )
    return status


def _status(path: Path, make: str = _KEYGEN) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unreadable(path, error, make) from error


def _is_shared_by_root(path: Path, status: os.stat_result) -> bool:
    """Whether the file belongs to root, who may read everything, and only this user can read it as well."""
    if status.st_uid != 0 or status.st_mode & 0o037:
        return False  # owned by another user, writable by the group, or accessible for others
    credentials = os.environ.get(_CREDENTIALS)
    if credentials and path.resolve().is_relative_to(Path(credentials).resolve()):
        return True
    return os.geteuid() != 0 and status.st_gid == os.getegid() and _has_no_other_user(status.st_gid)


def _has_no_other_user(gid: int) -> bool:
    own = {"root", *(entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == os.geteuid())}
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == gid}
    with suppress(KeyError):  # in a container a group may have no name
        members |= set(grp.getgrgid(gid).gr_mem)
    return members <= own


def _private_hint(path: Path, status: os.stat_result) -> str:
    if status.st_uid == os.geteuid():
        return f"chmod 600 {path}"
    return (
        f"copy it to a file of uid {os.geteuid()} with mode 0600, use LoadCredential= in a systemd unit, or set mode"
        " 0440 and a group without other users"
    )


def check_folder(folder: Path, *, group_may_write: bool = False) -> bool:
    """Raises ConfigError if other users own the folder or may write into it. Returns whether they may read it."""
    status = folder.stat()
    _check_owner(folder, status)
    mode = status.st_mode
    if mode & (stat.S_IWOTH | (0 if group_may_write else stat.S_IWGRP)):
        raise ConfigError(f"other users may write into {folder}", hint=f"chmod 700 {folder}")
    return bool(mode & (stat.S_IRGRP | stat.S_IROTH))


def _check_owner(path: Path, status: os.stat_result) -> None:
    """The owner of a file can change its mode at any time."""
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{path} belongs to another user", hint=f"chown {os.geteuid()} {path}")
