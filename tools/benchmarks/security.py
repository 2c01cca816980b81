"""Ack rate with encryption (CURVE), beside the ack rate without."""

import statistics
import tempfile
from pathlib import Path

from ffstream.security import keys
from tests.harness.daemon import temporary_daemon
from tools.benchmarks.ingest import produce
from tools.benchmarks.report import Report

SETTINGS = ("network.preset=fast",)
_BATCH = 64


def run(report: Report, rounds: int, *, samples: int = 240_000) -> None:
    """Messages of 64 samples, plain and encrypted in turn. The last rows are the medians."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = _settings(root)
        own = (root / "bench.key_secret", root / "daemon.key")
        plain, secure = [], []
        for _ in range(rounds):
            plain.append(_acked(samples))
            secure.append(_acked(samples, *settings, own=own))
            report.add("security/batch64/acked_with_curve", secure[-1], "samples/s", "plain", plain[-1])
    report.add("security/batch64/median", statistics.median(secure), "samples/s", "plain", statistics.median(plain))
    ratios = [with_keys / without for with_keys, without in zip(secure, plain, strict=True)]
    report.add("security/batch64/median_ratio", statistics.median(ratios), "of plain")


def _settings(root: Path) -> list[str]:
    for name in ("daemon", "bench"):
        keys.create(root, name)
    folders = [f"security.{name}_clients={root}" for name in ("learn", "predict", "control")]
    return [f"security.server_key={root / 'daemon.key_secret'}", *folders]


def _acked(samples: int, *settings: str, own: tuple[Path, Path] | None = None) -> float:
    """Samples acked per second while the daemon learns."""
    with temporary_daemon(*SETTINGS, *settings) as daemon:
        produce(daemon.endpoints["learn"], 5_120, _BATCH, own)
        return produce(daemon.endpoints["learn"], samples, _BATCH, own)[0]
