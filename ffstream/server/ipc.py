"""The claim on an ipc endpoint: one process at a time listens on a path.

libzmq deletes whatever has the path when it binds: the socket of a daemon that serves, or any other file. So before
the bind a process takes a lock (flock) on the file PATH.lock, and keeps it until its socket is closed. The kernel
releases the lock when the process dies; the socket file of a dead process is taken over. Both files stay behind.
"""

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from ffstream.errors import ConfigError
from ffstream.util.os_errors import listen_error, path_error

_SCHEME = "ipc://"


class IpcClaim:
    """On the path of one endpoint. `release` it once the context of its socket has ended."""

    def __init__(self, option: str, endpoint: str) -> None:
        """Raises StartBlocked if another process listens there, ConfigError if the path is no place for a socket."""
        self._option, self._endpoint = option, endpoint
        self._path = Path(endpoint.removeprefix(_SCHEME))
        self._lock = -1
        try:
            self._take_lock()
            self._check_path()
        except BaseException:
            self.release()
            raise

    def _take_lock(self) -> None:
        try:
            self._lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._is_in_use() from error
        except FileNotFoundError as error:
            error.filename = str(self._path.parent)  # a bare name is in the working folder, which may be gone
            raise path_error(self._option, self._path, error) from error
        except OSError as error:
            raise path_error(self._option, self._path, error) from error

    def _check_path(self) -> None:
        """Asks a program that takes no lock, by a connection."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(
                f"cannot listen on {self._endpoint} ({self._option}): {self._path} exists and is not a socket",
                hint=f"set {self._option} to a path that does not exist; listening would delete what is there",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            found = probe.connect_ex(str(self._path))
        if found in (0, errno.EAGAIN, errno.EINPROGRESS):  # EAGAIN: so many wait that it takes no more
            raise self._is_in_use()
        if found not in (errno.ECONNREFUSED, errno.ENOENT):  # those: its program is dead
            raise path_error(self._option, self._path, OSError(found, os.strerror(found), str(self._path)))

    def _is_in_use(self) -> Exception:
        return listen_error(self._option, self._endpoint, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))

    def release(self) -> None:
        """Lets another process listen there."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def claim(option: str, endpoint: str) -> IpcClaim | None:
    """For an endpoint that is a path; None for others: the kernel keeps two from having the same."""
    path = endpoint.removeprefix(_SCHEME)
    if path == endpoint or path.startswith("@") or path in ("", "*"):
        return None
    return IpcClaim(option, endpoint)
