"""Where `ffstream plot` gets its records: from a daemon over HTTP, or from a state folder without one.

Both give the records that `/api` gives, so a picture does not depend on where they come from.
"""

import json
import sqlite3
import urllib.error
import urllib.request
from http.client import BadStatusLine, HTTPException
from pathlib import Path
from typing import Any, Protocol

from ffstream.errors import ConfigError, DataError, FFStreamError, NoSamples, Unreachable

_TIMEOUT_S = 30.0
DREAMS = 8  # of each label

Record = dict[str, Any]


class Source(Protocol):
    """Records of one daemon. Methods raise FFStreamError."""

    def history(self, span: str) -> Record:
        """As /api/history."""

    def compares(self) -> list[str]:
        """What each layer compares: "labels", "groups" or "images"."""

    def goodness(self) -> Record:
        """As /api/goodness."""

    def mistakes(self) -> Record:
        """As /api/mistakes. From a state folder also `seq`, `first_seq` and `last_seq`: see `learning.offline`."""

    def activities(self, label: int | None) -> Record:
        """As /api/activities for a recent sample, which is there as `image`, with `image_shape`."""

    def filters(self, layer: int, limit: int) -> Record:
        """As /api/filters."""

    def dreams(self) -> Record:
        """As /api/dreams."""


class Refused(ConfigError):
    """The daemon answered with an error."""

    code = "refused"


class Http:
    """A running daemon."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def history(self, span: str) -> Record:
        """As /api/history."""
        return self._ask(f"/api/history?span={span}")

    def compares(self) -> list[str]:
        """What each layer compares."""
        return [layer["compares"] for layer in self._ask("/status")["layers"]]

    def goodness(self) -> Record:
        """As /api/goodness."""
        return self._ask("/api/goodness")

    def mistakes(self) -> Record:
        """As /api/mistakes."""
        return self._ask("/api/mistakes")

    def activities(self, label: int | None) -> Record:
        """As /api/activities for a recent sample."""
        query = "" if label is None else f"?label={label}"
        sample = self._ask(f"/api/sample{query}")
        shape = self._ask("/status")["image_shape"]
        answer = self._ask("/api/activities", {"image": sample["image"], "label": sample["label"]})
        return answer | {"image": sample["image"], "image_shape": shape}

    def filters(self, layer: int, limit: int) -> Record:
        """As /api/filters."""
        return self._ask(f"/api/filters?layer={layer}&limit={limit}")

    def dreams(self) -> Record:
        """As /api/dreams."""
        return self._ask(f"/api/dreams?limit={DREAMS}")

    def _ask(self, path: str, body: Record | None = None) -> Record:
        url = f"{self._url}{path}"
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json", "X-FFStream": "1"})
        try:
            request = urllib.request.Request(url, data, headers)
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                answer: Record = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            raise _refusal(error, url) from error
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError; HTTPException is not
            reason = getattr(error, "reason", error)
            reason = getattr(reason, "strerror", None) or reason  # without its number
            if isinstance(error, BadStatusLine):  # its text is what was received, which may be binary
                reason = "what listens there does not answer in HTTP"
            hint = (
                "start the daemon with `ffstream serve`, or give its HTTP address with --at, as "
                "http://127.0.0.1:8757; --state reads a folder without a daemon"
            )
            raise Unreachable(f"no answer from {url}: {reason}", hint=hint) from error


def _refusal(error: urllib.error.HTTPError, url: str) -> FFStreamError:
    if error.code == 401:
        return Refused(f"{url}: a token is required", hint="--token FILE, with the file of security.http_token")
    text = error.read().decode(errors="replace")
    try:
        body = json.loads(text)
        if body["code"] == NoSamples.code:
            return NoSamples(body["message"], hint=body["hint"])
        return Refused(f"{url}: {body['message']}", hint=body["hint"])
    except (ValueError, KeyError, TypeError):
        old = "; a daemon of an older version lacks it" if error.code == 404 else ""
        return Refused(
            f"{url}: {error.code} {text.strip()[:200] or error.reason}", hint=f"is it the daemon's address?{old}"
        )


class State:
    """A state folder. A daemon may be running on it; nothing is written."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if there is no such folder."""
        if not folder.is_dir():
            raise ConfigError(f"no state folder at {folder}", hint="use --state with the state folder of a daemon")
        self._folder = folder

    def history(self, span: str) -> Record:
        """As /api/history, up to the last seconds that were stored."""
        from ffstream.history.file import HISTORY, Unfit, read

        path = self._folder / HISTORY
        if not path.is_file():
            hint = "it is there once a daemon of this version has run for a few seconds; a backup has none"
            raise ConfigError(f"no history at {path}", hint=hint)
        try:
            return read(path).document(span)
        except (Unfit, sqlite3.Error) as error:
            raise DataError(f"{path}: {error}", hint="a daemon replaces a damaged history at its start") from error

    def compares(self) -> list[str]:
        """What each layer compares."""
        from ffstream.checkpoint.manifest import CHECKPOINTS
        from ffstream.checkpoint.weights import of_newest

        return list(of_newest(self._folder / CHECKPOINTS).recipe.compares)

    def goodness(self) -> Record:
        """As /api/goodness."""
        from ffstream.learning import offline

        return offline.newest(self._folder).goodness()

    def mistakes(self) -> Record:
        """As /api/mistakes, of samples that the checkpoint has not learned."""
        from ffstream.learning import offline

        return offline.mistakes(self._folder)

    def activities(self, label: int | None) -> Record:
        """As /api/activities for the newest sample in the journal."""
        from ffstream.learning import offline

        inspector = offline.newest(self._folder)
        sample = inspector.sample(label)
        answer = inspector.activities(sample["image"], sample["label"])
        return answer | {"image": sample["image"], "image_shape": list(inspector.image_shape)}

    def filters(self, layer: int, limit: int) -> Record:
        """As /api/filters."""
        from ffstream.learning import offline

        return offline.newest(self._folder).filters(layer, limit)

    def dreams(self) -> Record:
        """As /api/dreams."""
        from ffstream.learning import offline

        return offline.newest(self._folder).dreams(DREAMS)
