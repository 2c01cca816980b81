"""One tree of errors. Each says what failed (message), under which stable name (code) and what to do (hint).

A code is part of the protocol: it travels in error replies and labels the `reason` of rejection counters,
so it comes from the closed list below, never from input.
"""

import re
from typing import ClassVar, NamedTuple


class FFStreamError(Exception):
    """Base of all errors that ffstream raises on purpose."""

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f" - {self.hint}" if self.hint else "")


class ConfigError(FFStreamError):
    """An option is unknown, ill-typed or out of range."""

    code = "config"


class StartBlocked(FFStreamError):
    """The daemon cannot start now but may start later with the same options: a port is taken, an address or a disk is
    not there yet, the state folder is in use. The process exits with code 75, so a service manager tries again."""

    code = "start_blocked"


class DataError(FFStreamError):
    """A data set is missing, damaged or could not be downloaded."""

    code = "data"


class ProtocolError(FFStreamError):
    """A message that breaks the wire protocol. The sender gets an error; other clients are not affected."""

    code = "protocol"


class BadFrames(ProtocolError):
    """The message has too few or too many frames."""

    code = "bad_frames"


class BadHeader(ProtocolError):
    """The header is not msgpack, not a map, or a field is missing or ill-typed."""

    code = "bad_header"


class UnknownType(ProtocolError):
    """The header's type is not one this socket answers."""

    code = "unknown_type"


class UnsupportedVersion(ProtocolError):
    """The header speaks a protocol version this daemon does not."""

    code = "unsupported_version"


class BadDtype(ProtocolError):
    """The images are neither uint8 nor float32."""

    code = "bad_dtype"


class BadShape(ProtocolError):
    """The images do not have the shape the network was built for."""

    code = "bad_shape"


class BadSize(ProtocolError):
    """A payload frame does not have the number of bytes its header promises."""

    code = "bad_size"


class LabelOutOfRange(ProtocolError):
    """A label is not below the number of labels."""

    code = "label_out_of_range"


class LabelRequired(ProtocolError):
    """A sample has no label, and the network cannot learn without one."""

    code = "label_required"


class NotFinite(ProtocolError):
    """A float image holds NaN or infinity."""

    code = "not_finite"


class ValueOutOfRange(ProtocolError):
    """A float image holds a number below 0 or above 1."""

    code = "value_out_of_range"


class TooLarge(ProtocolError):
    """A message is over a limit: bytes, or samples."""

    code = "too_large"


class NameTaken(ProtocolError):
    """Another connection said hello under this client name later. Says nothing about what is on disk."""

    code = "name_taken"


class BelowBase(ProtocolError):
    """The client had declared this message number resolved. It may or may not have been stored."""

    code = "below_base"


class StoredDifferently(ProtocolError):
    """This message number is on disk with other samples. The samples of this message were not stored."""

    code = "stored_differently"


class Unavailable(FFStreamError):
    """The daemon cannot do this now; the same request may succeed later."""

    code = "unavailable"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class JournalFull(Unavailable):
    """The journal holds as many bytes as it may."""

    code = "journal_full"


class BacklogFull(Unavailable):
    """As many samples wait to be learned as may: learning has to catch up first."""

    code = "backlog_full"


class DiskFull(Unavailable):
    """The disk is full."""

    code = "disk_full"


class MemoryFull(Unavailable):
    """The process holds as much memory as it may."""

    code = "memory_full"


class TooManyFiles(Unavailable):
    """Nearly every descriptor that the process may have is in use."""

    code = "too_many_files"


class TooManyClients(Unavailable):
    """The limit on clients, or on those of one key, is reached."""

    code = "too_many_clients"


class RateLimited(Unavailable):
    """This client, or its key, sends more samples per second than it may. `retry_after_s` is always set."""

    code = "rate_limited"


class TooManyUnresolved(Unavailable):
    """This client, or its key, has too many stored messages at or above its `base`."""

    code = "too_many_unresolved"


class Busy(Unavailable):
    """Too many commands are running, or another command of this kind is."""

    code = "busy"


class Paused(Unavailable):
    """Learning is paused, so what was asked for would wait until somebody resumes it."""

    code = "paused"


class Draining(Unavailable):
    """The daemon accepts no more samples because it is stopping."""

    code = "draining"


class Unauthorized(FFStreamError):
    """The client has no key that this socket admits, or no longer has it."""

    code = "unauthorized"


class JournalDamaged(FFStreamError):
    """The journal's file is not what this program wrote."""

    code = "journal_damaged"


class JournalIncompatible(ConfigError):
    """A journal is whole but belongs to another network, or to a newer ffstream."""

    code = "journal_incompatible"


class CheckpointDamaged(FFStreamError):
    """A checkpoint's files do not match its manifest."""

    code = "checkpoint_damaged"


class CheckpointIncompatible(ConfigError):
    """A checkpoint is whole but belongs to another network or recipe."""

    code = "checkpoint_incompatible"


class SequenceUnknown(FFStreamError):
    """No checkpoint reaches the sequence number asked for."""

    code = "sequence_unknown"


class BadRequest(FFStreamError):
    """An HTTP request whose arguments are missing or wrong."""

    code = "bad_request"


class NoSamples(FFStreamError):
    """There is no sample yet to look at."""

    code = "no_samples"


class NotShown(FFStreamError):
    """The network has nothing of this kind to look at."""

    code = "not_shown"


class StageFailed(FFStreamError):
    """A thread of the pipeline died or made no progress. The daemon ends with a non-zero code."""

    code = "stage_failed"


class StagesLost(FFStreamError):
    """Stages in other processes are gone, or cannot be placed now. Learning begins again when they are placed.

    The message begins with what anybody may read. Names of machines and details follow a colon, or are in brackets.
    """

    code = "stages_lost"

    @property
    def summary(self) -> str:
        """The message without details."""
        return re.split(r" \(|: ", self.message, maxsplit=1)[0]


class Reason(NamedTuple):
    """Why a client waits: what the daemon said last, or what is wrong with the connection."""

    code: str
    message: str
    hint: str
    since: float  # time.monotonic() when it was first received

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class DeadlineExceeded(FFStreamError):
    """The other side did not answer in time. `reason` says why, if a client knows."""

    code = "deadline_exceeded"

    def __init__(self, message: str, *, hint: str = "", reason: Reason | None = None) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class Unreachable(DeadlineExceeded):
    """There is no connection: nobody listens at the endpoint, or its host cannot be reached."""

    code = "unreachable"


class WrongThread(FFStreamError):
    """A client is used by a second thread, or in a forked process."""

    code = "wrong_thread"


class RequestRefused(FFStreamError):
    """The daemon answered with an error. `remote_code` is the code that it gave."""

    code = "refused"

    def __init__(self, remote_code: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({remote_code})", hint=hint)
        self.remote_code = remote_code
