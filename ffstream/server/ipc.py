"""A lock on an ipc endpoint, so that only one process listens on a path.

When libzmq binds an ipc endpoint it deletes any file with that path: the socket of a daemon that is running, or any
other file. So a process first locks the file PATH.lock (flock), and keeps the lock until its socket is closed. The
kernel releases the lock when the process dies. The socket file of a dead process is replaced. Neither file is ever
removed.
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


class IpcLock:
    """The lock on the path of one endpoint. `release` it when the context of the socket has ended."""

    def __init__(self, option: str, endpoint: str) -> None:
        """Raises StartBlocked if another process listens there, ConfigError if the path cannot be used."""
        self._option, self._endpoint = option, endpoint
        self._path = Path(endpoint.removeprefix(_SCHEME))
        self._file = -1
        try:
            self._lock()
            self._check_path()
        except BaseException:
            self.release()
            raise

    def _lock(self) -> None:
        try:
            self._file = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        except FileNotFoundError as error:
            error.filename = str(self._path.parent)  # a relative path is in the working folder, which may be deleted
            raise path_error(self._option, self._path, error) from error
        except OSError as error:
            raise path_error(self._option, self._path, error) from error

    def _check_path(self) -> None:
        """Connects to the path, to find a listening program that does not use the lock."""
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(
                f"cannot listen on {self._endpoint} ({self._option}): {self._path} exists and is not a socket",
                hint=f"set {self._option} to a path that does not exist; listening would delete this file",
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            found = probe.connect_ex(str(self._path))
        if found in (0, errno.EAGAIN, errno.EINPROGRESS):  # EAGAIN: its queue of connections is full
            raise self._in_use()
        if found not in (errno.ECONNREFUSED, errno.ENOENT):  # these two: its program has ended
            raise path_error(self._option, self._path, OSError(found, os.strerror(found), str(self._path)))

    def _in_use(self) -> Exception:
        return listen_error(self._option, self._endpoint, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))

    def release(self) -> None:
        """Lets another process listen there."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def lock(option: str, endpoint: str) -> IpcLock | None:
    """Locks an endpoint that is a path. None for other endpoints: the kernel allows only one listener there."""
    path = endpoint.removeprefix(_SCHEME)
    if path == endpoint or path.startswith("@") or path in ("", "*"):
        return None
    return IpcLock(option, endpoint)
