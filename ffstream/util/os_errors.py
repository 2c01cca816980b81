"""Turns errors of the operating system at the start of a daemon into errors with a hint.

StartBlocked if and only if the same start can succeed later without a changed option: exit code 75, and a service
manager tries again. Otherwise ConfigError: exit code 2, and it does not try again.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ffstream.errors import ConfigError, StartBlocked

if TYPE_CHECKING:
    import zmq  # not at run time, so that `config check` is quick

log = logging.getLogger(__name__)

_PERMANENT = {
    errno.EACCES,
    errno.EAFNOSUPPORT,
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOPROTOOPT,
    errno.ENOSYS,
    errno.ENOTDIR,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EPROTONOSUPPORT,
}
_OUT_OF_FILES = {
    errno.EMFILE: "this process may open no more files: raise its limit (ulimit -n; LimitNOFILE= in a unit)",
    errno.ENFILE: "the system has no file descriptor left: end programs that hold many, or raise fs.file-max",
    errno.ENOMEM: "the system has no memory left for this: end programs that use much",
    errno.ENOBUFS: "the system has no memory left for this: end programs that use much",
}
_OF_PATHS = _OUT_OF_FILES | {
    errno.EROFS: "that file system is mounted read-only: remount it writable, or name another path with {option}",
    errno.ENOSPC: "free space on that file system, or name another path with {option}",
    errno.EDQUOT: "the disk quota is used up: free space, or name another path with {option}",
    errno.ENOENT: "mount the disk that holds it, or create it, or name another path with {option}",
    errno.ENOTDIR: "{option} must name a folder, and each part of its path must be one",
    errno.EEXIST: "{option} must name a folder, but a file has that name",
    errno.ELOOP: "a symbolic link in the path points to itself, or is not allowed there",
    errno.ENOLCK: "that file system has no locks, or none left: name a folder on a local disk with {option}",
}
_OF_ADDRESSES = _OUT_OF_FILES | {
    errno.EADDRINUSE: "another program listens there: stop it, or set {option} to another address or port",
    errno.EADDRNOTAVAIL: "this machine does not have that address now: bring it up, or correct {option}",
    errno.ENODEV: "no interface or host has that name now: bring it up, or correct {option}",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE (AmbientCapabilities= in a unit): grant it, or set"
    " {option} to a higher port",
    errno.EAFNOSUPPORT: "this machine has no IPv6, or no IPv4: set {option} to an address of a family that it has",
}
_LISTEN_FORM = dict.fromkeys(("listen.http", "listen.standby_http"), "host:port")
_LISTEN_FORM_ZMQ = "tcp://address:port or ipc://path"


def no_files_hint(error: OSError) -> str:
    """What to do about a shortage of descriptors or memory; empty for other errors."""
    return _OUT_OF_FILES.get(error.errno or 0, "")


def path_error(option: str, path: Path, error: OSError) -> ConfigError | StartBlocked:
    """For the path in `option`, or one below it. Names the path that failed, which may be a folder above it."""
    failed = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(option, failed, reason)
    hint = _OF_PATHS.get(error.errno or 0, "check that disk (dmesg), or name another path with {option}")
    kind = ConfigError if error.errno in _PERMANENT else StartBlocked
    return kind(f"{failed}: {reason}", hint=hint.format(option=option))


def _denied(option: str, path: Path, reason: str) -> ConfigError | StartBlocked:
    own = f"uid {os.geteuid()}, gid {os.getegid()}"
    for folder in reversed(path.absolute().parents):
        if not os.access(folder, os.X_OK, effective_ids=True):
            return ConfigError(
                f"{path}: {reason}: {_describe(folder)} and cannot be entered by this process ({own})",
                hint=f"chmod o+x {folder}, or run it as that user, or name another path with {option}",
            )
    if not os.path.lexists(path):  # as on a mount point whose disk is not mounted
        folder = path.absolute().parent
        return StartBlocked(
            f"{path} cannot be created: {_describe(folder)} and cannot be written by this process ({own})",
            hint=f"is its disk mounted? otherwise chown {os.geteuid()} {folder}, or name another path with {option}",
        )
    return ConfigError(
        f"{_describe(path)}; this process ({own}) may not use it: {reason}",
        hint=f"run it as that user, or chown -R {os.geteuid()} {path}",
    )


def _describe(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return f"{path}"
    return f"{path} belongs to uid {status.st_uid}, gid {status.st_gid}, mode {stat.S_IMODE(status.st_mode):04o}"


def listen_error(option: str, address: str, error: "OSError | zmq.ZMQError") -> ConfigError | StartBlocked:
    """For the address in `option`, when it cannot be listened on."""
    number = error.errno or 0
    if number < 0:  # from getaddrinfo: a name server may answer later. ZeroMQ reports ENODEV for it
        number = errno.ENODEV
    form = _LISTEN_FORM.get(option, _LISTEN_FORM_ZMQ)
    hint = _OF_ADDRESSES.get(number, f"set {{option}} to {form}")
    known = number in errno.errorcode
    kind = StartBlocked if known and number not in _PERMANENT else ConfigError
    reason = (error.strerror or str(error)).partition(" (")[0]  # both libraries append the address
    return kind(f"cannot listen on {address} ({option}): {reason}", hint=hint.format(option=option))


@contextmanager
def as_start_errors() -> Iterator[None]:
    """Turns an unexpected OSError into a start error, and logs its traceback. Also works as a decorator."""
    try:
        yield
    except OSError as error:
        log.exception("start failed")
        if error.filename is not None:
            raise path_error("--state", Path(os.fsdecode(error.filename)), error) from error
        kind = ConfigError if error.errno in _PERMANENT else StartBlocked
        hint = no_files_hint(error) or "see the traceback in the log"
        raise kind(f"cannot start: {error}", hint=hint) from error
