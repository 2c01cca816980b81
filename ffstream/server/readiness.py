"""Whether the daemon is ready for each of its two services: answering predictions and accepting samples.

The text begins with `ready`, with the daemon's state (`starting`, `draining`, `stopping`, `failed`), or with the
error code that producers get. It is public, so it names no files and no clients.
"""

from typing import NamedTuple

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


def of_predictions(state: str, *, answers: bool, paused: bool, refusing: str | None) -> Readiness:
    """`answers`: whether the predict socket is served. `refusing` is only mentioned in the text."""
    if state == "failed" or not answers:
        return _not_ready(state)
    mentioned = ["learning is paused"] if paused else []
    if state in ("draining", "stopping"):
        mentioned.append(f"the daemon is {state}: no more samples are accepted")
    elif refusing is not None:
        mentioned.append(f"no samples are accepted: {refusing}")
    return Readiness(True, ", ".join(["ready", *mentioned]))


def of_samples(state: str, *, paused: bool, refusing: str | None) -> Readiness:
    """`refusing`: the error code with which all samples are rejected now."""
    if state != "ready":
        return _not_ready(state)
    if refusing is not None:
        return Readiness(False, f"{refusing}: no samples are accepted at present; see ffstream status")
    return Readiness(True, "ready, learning is paused" if paused else "ready")


def _not_ready(state: str) -> Readiness:
    return Readiness(False, f"{state}: {_STATES.get(state, 'not serving')}")
