"""The settings of the backprop peer: chosen by a random search on validation data, and kept for each preset.

The search has a fixed seed. Its first trial is the common default (Adam, 10⁻³, constant, no smoothing).
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ffstream.errors import ConfigError
from tools.benchmarks.accuracy.backprop import PeerSettings

FILE = Path(__file__).with_name("peer_settings.toml")
_RATES = (3e-4, 1e-2)
_SCHEDULES = (0.0, 1600.0, 6400.0, 25_600.0)
_SMOOTHINGS = (0.0, 0.05, 0.1, 0.2)


def kept() -> dict[str, Any]:
    """The sections of the file, by preset."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def settings_of(preset: str) -> PeerSettings:
    """The kept settings. Raises ConfigError for a preset without any."""
    found = kept()
    if preset not in found:
        raise ConfigError(
            f"the backprop peer of the preset {preset} has no settings in {FILE.name}",
            hint="choose them with --tune-peer N, or leave the peer out with --no-peer",
        )
    return PeerSettings(**found[preset]["settings"])


def proposals(trials: int) -> list[PeerSettings]:
    """The settings that a search of that many trials tries."""
    rng = np.random.default_rng(0)
    drawn = [
        PeerSettings(
            learning_rate=float(f"{np.exp(rng.uniform(*np.log(_RATES))):.2g}"),
            schedule_samples=float(rng.choice(_SCHEDULES)),
            smoothing=float(rng.choice(_SMOOTHINGS)),
        )
        for _ in range(trials - 1)
    ]
    return [PeerSettings(), *drawn]


def search(
    trials: int, error_of: Callable[[PeerSettings], float], on_trial: Callable[[PeerSettings, float], None]
) -> tuple[PeerSettings, float]:
    """The best settings of that many trials, and their error."""
    found = []
    for settings in proposals(trials):
        error = error_of(settings)
        on_trial(settings, error)
        found.append((error, settings))
    error, best = min(found, key=lambda each: each[0])
    return best, error


def as_toml(preset: str, settings: PeerSettings, **facts: Any) -> str:
    """The section of the file of kept settings."""
    lines = [f"[{preset}]", *(f"{name} = {_toml(value)}" for name, value in facts.items())]
    return "\n".join([*lines, f"settings = {{ {_table(settings)} }}"])


def _table(settings: PeerSettings) -> str:
    return ", ".join(f"{name} = {value!r}" for name, value in vars(settings).items())


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
