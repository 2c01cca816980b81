"""A rise of the prequential error is counted and logged. Learning, whose error falls, is not a drift."""

import logging
import sys

import pytest
import torch

from ffstream.config import PrequentialSection
from ffstream.errors import ConfigError
from ffstream.metrics import Metrics
from ffstream.serving.drift_detector import DriftDetector, make_detector

BATCH = 50


def fed(metrics: Metrics, detector: DriftDetector, errors: list[float]) -> list[int]:
    """The `seq` of each drift, in a stream of 1,000 samples at each of these errors."""
    generator, found, seq = torch.Generator().manual_seed(0), [], 0
    for error in errors:
        for _ in range(1000 // BATCH):
            seq += BATCH
            before = drifts(metrics)
            detector.add(torch.rand(BATCH, generator=generator) < error, seq)
            if drifts(metrics) > before:
                found.append(seq)
    return found


def drifts(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("ffstream_drifts_total") or 0.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def detector(metrics: Metrics) -> DriftDetector:
    made = make_detector(PrequentialSection(drift_detector="adwin"), metrics)
    assert made is not None
    return made


def test_a_rise_is_found_soon_counted_and_logged(
    metrics: Metrics, detector: DriftDetector, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = fed(metrics, detector, [0.03] * 8 + [0.9])
    assert len(found) >= 1
    assert 8000 < found[0] < 8300
    assert metrics.registry.get_sample_value("ffstream_drift_last_seq") == found[-1]
    assert f"drift detected seq={found[0]} error=" in caplog.text


def test_a_steady_and_a_falling_error_are_no_drift(metrics: Metrics, detector: DriftDetector) -> None:
    assert fed(metrics, detector, [0.6, 0.3, 0.1] + [0.05] * 9) == []
    assert metrics.registry.get_sample_value("ffstream_drift_last_seq") is None


def test_there_is_none_by_default(metrics: Metrics) -> None:
    assert make_detector(PrequentialSection(), metrics) is None


def test_a_missing_package_names_the_extra(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ConfigError, match="river is not installed") as caught:
        make_detector(PrequentialSection(drift_detector="adwin"), metrics)
    assert 'pip install "ffstream[drift]"' in caught.value.hint
