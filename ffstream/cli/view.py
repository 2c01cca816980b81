"""What a daemon is doing, drawn for a terminal from its status document. Used by `ffstream top` and `tools/demo`.

Older daemons lack some keys, and a figure that is not known yet is null: both are shown as `–`, never as 0.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from ffstream.cli.output import prequential_error
from ffstream.cli.states import duration, size

Status = Mapping[str, Any]

_UNKNOWN = "–"
_BARS = "▁▂▃▄▅▆▇█"
_RATE_S = 5.0  # over which a rate is measured if the daemon does not say it
_POINTS_MAX = 600
# What the two figures of a layer are, by what it compares. If one layer compares images, all do.
_COMPARED = {
    "labels": ("right label", "wrong labels"),
    "groups": ("right group", "wrong groups"),
    "images": ("real images", "negatives"),
}
_MIXED = ("right", "wrong")


class State(NamedTuple):
    """The state in one word, what it means in a sentence, and its style."""

    word: str
    meaning: str
    style: str


class Point(NamedTuple):
    """Figures at one time. `time_s` is monotonic."""

    time_s: float
    learned: int
    error: float | None
    rate: float | None


class Trend:
    """The figures of the last minutes, one point for each status."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=_POINTS_MAX)

    def add(self, status: Status, time_s: float) -> None:
        """Adds a status that arrived at that time."""
        learned = int(status["learned"])
        known = (status.get("rates") or {}).get("learned_per_s")
        rate = self._rate(learned, time_s) if known is None else float(known)
        self.points.append(Point(time_s, learned, status["prequential_error"], rate))

    @property
    def rate(self) -> float | None:
        """Samples learned a second; None while it is unknown."""
        return self.points[-1].rate if self.points else None

    def _rate(self, learned: int, time_s: float) -> float | None:
        before = [point for point in self.points if time_s - point.time_s <= _RATE_S]
        if not before or learned < before[0].learned:  # after a rollback
            return None
        return (learned - before[0].learned) / max(1e-3, time_s - before[0].time_s)


def state_of(status: Status, rate: float | None = None) -> State:
    """The state in words. `rate`: samples learned a second, if it is known."""
    if status["refusing"]:
        hint = status.get("refusing_hint")
        return State("REFUSING", f"new samples: {status['refusing']}" + (f"; {hint}" if hint else ""), "bold red")
    state = status["state"]
    if state == "ready":
        if status.get("interrupted"):
            return State("INTERRUPTED", "samples are stored, not learned; predictions go on", "bold yellow")
        if status["phase"] == "sleep":
            return State("READY", "asleep: learns from replayed samples only", "bold green")
        return State("READY", "learning" if status["backlog"] or rate else "waiting for samples", "bold green")
    meanings = {
        "starting": ("recovers what was learned", "bold yellow"),
        "paused": ("samples are stored, not learned; ffstream resume", "bold yellow"),
        "draining": ("learns what is stored, takes no samples, then stops", "bold yellow"),
        "stopping": ("writes a checkpoint", "bold yellow"),
        "failed": ("a thread has died; see the log", "bold red"),
    }
    return State(state.upper(), *meanings.get(state, ("", "bold")))


def lost(age_s: float, reason: str = "") -> State:
    """The state of a daemon that does not answer any more."""
    return State("LOST", f"no answer for {_age(age_s)}; these figures are old{reason and f': {reason}'}", "bold red")


def interruption(status: Status) -> str | None:
    """Why no stage learns, for how long, and how often stages were to be placed since; None if they learn."""
    now = status.get("interrupted")
    if not now:
        return None
    tries = f"{now['tries']:,} {'try' if now['tries'] == 1 else 'tries'}"
    hint = f"; {now['hint']}" if now["hint"] else ""
    return f"learning is interrupted for {_age(now['seconds'])}, {tries}: {now['reason']}{hint}"


def draw(status: Status, trend: Trend, *, width: int, gone: State | None = None) -> Group:
    """One frame of at least 60 columns. `gone`: the daemon is lost, and `status` is its last one."""
    state = gone or state_of(status, trend.rate)
    warnings = [Text(f"warning: {text}", "yellow") for text in (status.get("warnings") or {}).values()]
    if (text := interruption(status)) is not None:
        warnings.insert(0, Text(text, "yellow"))
    layers, places = _layers(status.get("layers") or []), places_of(status.get("stages") or [])
    body: RenderableType = Group(*warnings, _facts(status, trend, width), "", layers, *places)
    if gone is not None:
        body = Styled(body, "dim")
    return Group(Text.assemble((state.word, state.style), "  ", state.meaning), _name(status), "", body)


def _name(status: Status) -> Text:
    """Which daemon it is."""
    preset, uptime = status.get("preset"), status.get("uptime_s")
    parts = [f"ffstream {status['version']}", *([f"preset {preset}"] if preset else [])]
    parts += [f"up {duration(uptime)}"] if uptime is not None else []
    return Text(", ".join([*parts, f"page http://{status['endpoints']['http']}/"]), style="dim")


def _facts(status: Status, trend: Trend, width: int) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    lag_s = status.get("lag_s")
    waiting = f"{status['backlog']:,} waiting" + (f" ({_age(lag_s)} behind)" if lag_s else "")
    skipped = f", {status['skipped']:,} skipped" if status["skipped"] else ""
    table.add_row("samples", f"{status['accepted']:,} accepted, {status['learned']:,} learned{skipped}, {waiting}")
    table.add_row("a second", _rates(status, trend))
    table.add_row("error", prequential_error(status))
    table.add_row("snapshot", f"{_age(status['snapshot']['age_s'])} old, learned up to {status['snapshot']['seq']:,}")
    table.add_row("checkpoint", _checkpoint(status))
    if (drift_seq := status.get("drift_seq")) is not None:
        table.add_row("drift", f"detected at sample {drift_seq:,.0f}")
    if resources := status.get("resources"):
        table.add_row("memory, disk", f"{size(resources['memory_bytes'])}, {size(resources['disk_free_bytes'])} free")
    _add_sparklines(table, trend, width)
    return table


def _rates(status: Status, trend: Trend) -> str:
    rates = status.get("rates") or {}
    shown = [
        f"{_number(value, ',.0f')} {what}"
        for what, value in (
            ("accepted", rates.get("accepted_per_s")),
            ("learned", trend.rate),
            ("predictions", rates.get("predictions_per_s")),
        )
        if value is not None
    ]
    return ", ".join(shown) or _UNKNOWN


def _checkpoint(status: Status) -> str:
    newest = status.get("checkpoint")
    if newest:
        return f"{_age(newest['age_s'])} old, learned up to {newest['seq']:,}"
    return f"learned up to {status['checkpoint_seq']:,}" if status["checkpoint_seq"] else "none yet"


def _add_sparklines(table: Table, trend: Trend, width: int) -> None:
    points = list(trend.points)[-max(10, width - 42) :]
    if len(points) < 2:
        return
    seconds = round(points[-1].time_s - points[0].time_s)
    errors = [point.error for point in points]
    rates = [point.rate for point in points]
    for name, values, form in (("error", errors, ".2%"), ("learned/s", rates, ",.0f")):
        known = [value for value in values if value is not None]
        if known:
            scale = f"max {max(known):{form}} in {seconds} s"
            table.add_row(name, Text.assemble((sparkline(values), "blue"), f"  {scale}"))


def sparkline(values: Iterable[float | None]) -> str:
    """A bar for each value, on a scale from 0 to the largest. A space stands for an unknown value.

    >>> sparkline([0.0, 0.5, 1.0, None])
    '▁▅█ '
    """
    values = list(values)
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    last = len(_BARS) - 1
    return "".join(" " if value is None else _BARS[round(max(0.0, value) / top * last)] for value in values)


def _layers(layers: list[dict[str, Any]]) -> Table:
    kinds = {layer.get("compares") for layer in layers}
    heads = _COMPARED.get(str(*kinds), _MIXED) if len(kinds) == 1 else _MIXED
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("layer", *heads, "margin", "dead units", "queue", "step"):
        table.add_column(head, justify="left" if head == "layer" else "right", no_wrap=True)
    for layer in layers:
        kind = layer.get("compares")
        table.add_row(
            f"{layer['index']}" + (f" ({kind})" if len(kinds) > 1 else ""),
            *(_number(layer.get(key), ".3g") for key in ("goodness_positive", "goodness_negative", "margin")),
            _number(layer.get("dead_units"), ".1%"),
            _number(layer.get("queue_depth"), ","),
            _UNKNOWN if layer.get("step_s") is None else f"{layer['step_s'] * 1e3:.2f} ms",
        )
    return table


def places_of(stages: list[dict[str, Any]]) -> list[RenderableType]:
    """Where stages of a cluster run; nothing if they are threads of the daemon, or not placed yet."""
    placed = [stage for stage in stages if stage.get("node")]
    if not placed:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("stage", "node", "host", "process", "device"):
        table.add_column(head, justify="right" if head == "process" else "left", overflow="fold")
    for stage in placed:
        table.add_row(*(str(stage.get(key, _UNKNOWN)) for key in ("name", "node", "host", "pid", "device")))
    return ["", table]


def _number(value: float | None, form: str) -> str:
    return _UNKNOWN if value is None else f"{value:{form}}"


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)
