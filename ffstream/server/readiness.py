"""Whether the daemon is ready for each of its two services: answering predictions and accepting samples.

The text begins with `ready`, with the daemon's state (`starting`, `draining`, `stopping`, `failed`), or with the
error code that producers get. It is public, so it names no files and no clients.
"""

from typing import NamedTuple, TypedDict, Unpack

_STATES = {
    "starting": "it recovers its state and will be ready",
    "draining": "no more samples are accepted; it stops when it has learned what is acked",
    "stopping": "no more samples are accepted; send again after its restart",
    "failed": "a thread has died or is stuck; see its log",
}


class Readiness(NamedTuple):
    """`text` gives the reason, in one line."""

    ready: bool
    text: str


class Hindrances(TypedDict):
    """What keeps a daemon from learning. `refusing`: the error code with which all samples are rejected now.
    `interrupted`: why stages that run elsewhere do not learn."""

    paused: bool
    refusing: str | None
    interrupted: str | None


def of_predictions(state: str, *, answers: bool, **hindrances: Unpack[Hindrances]) -> Readiness:
    """`answers`: whether the predict socket is served. The others are only mentioned in the text."""
    if state == "failed" or not answers:
        return _not_ready(state)
    mentioned, refusing = _mentioned(hindrances), hindrances["refusing"]
    if state in ("draining", "stopping"):
        mentioned.append(f"the daemon is {state}: no more samples are accepted")
    elif refusing is not None:
        mentioned.append(f"no samples are accepted: {refusing}")
    return Readiness(True, ", ".join(["ready", *mentioned]))


def of_samples(state: str, **hindrances: Unpack[Hindrances]) -> Readiness:
    """Samples are accepted while learning is paused or interrupted."""
    if state != "ready":
        return _not_ready(state)
    if (refusing := hindrances["refusing"]) is not None:
        return Readiness(False, f"{refusing}: no samples are accepted at present; see ffstream status")
    return Readiness(True, ", ".join(["ready", *_mentioned(hindrances)]))


def _mentioned(hindrances: Hindrances) -> list[str]:
    interrupted = hindrances["interrupted"]
    return [
        *(["learning is paused"] if hindrances["paused"] else []),
        *([] if interrupted is None else [f"learning is interrupted: {interrupted}"]),
    ]


def _not_ready(state: str) -> Readiness:
    return Readiness(False, f"{state}: {_STATES.get(state, 'not serving')}")
