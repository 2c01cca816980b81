"""Measurements of `tools/bench` run and report, with few samples.

Not those that need a daemon which learns for as long as they measure: `checkpoint`, and `predict` while learning.
"""

import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ffstream.data import Dataset, Split, load
from ffstream.data.dataset import Part
from ffstream.ff.presets import recipe
from ffstream.history.history import History
from tests.harness.browser import find_chromium
from tests.harness.daemon import temporary_daemon
from tools.benchmarks import (
    combinations,
    drift,
    hardware,
    ingest,
    learn,
    page,
    phases,
    predict,
    questions,
    recovery,
    security,
    viewers,
)
from tools.benchmarks.accuracy import figures as accuracy
from tools.benchmarks.accuracy.backprop import PeerSettings
from tools.benchmarks.cluster import measured
from tools.benchmarks.report import ROOT, Failed, Report, Row


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, Row]:
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["value"] > 0 for row in found if row["unit"] != "points")
    assert all(row["ratio"] == row["value"] / row["peer_value"] for row in found if "peer" in row)
    return {row["name"]: row for row in found}


@pytest.fixture
def report() -> Report:
    return Report(True, "a test")


def test_learn(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    layers = [
        {"connection": {"kind": "conv", "channels": 4, "pool": 4}},
        {"connection": {"kind": "local", "channels": 4}},
        {"connection": {"kind": "dense", "units": 10}},
    ]
    stack = recipe("fast", layers=layers, batch_size=16, warmup_samples=0)
    dense = recipe("fast", widths=[20, 20], warmup_samples=0)
    groups = dense.change(label_scheme="groups")
    cases = [
        learn.Case("conv", stack, 4),
        learn.Case("vectors", dense, 4, full_batch=100),
        learn.Case("groups", groups, 4),
    ]
    learn.run(report, 1, cases)
    others = ("vectors/over_overlay_method", "vectors/over_backprop", "groups/over_vectors")
    figures = ("conv/share_of_conv", "vectors/share_of_gemm", "groups/share_of_gemm", *others)
    serial = [f"{name}/pipeline_over_serial" for name in ("conv", "vectors", "groups")]
    assert rows(capsys).keys() == {
        f"learn/{name}/{dtype}/{figure}"
        for dtype in ("fp32", "bf16")
        for name, figure in (each.split("/") for each in (*figures, *serial))
    }


def test_accuracy(report: Report, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = accuracy.Options(
        preset="fast", seeds=2, runs=tmp_path, plot=tmp_path / "curves.png", through_daemon=True, peer=PeerSettings()
    )
    accuracy.run(report, few_digits(), options)
    found = rows(capsys)
    for figure in ("test", "prequential", "test_equal_minutes"):
        row, difference = (found[f"accuracy/fast/embedded/1_pass/{figure}{end}"] for end in ("", "/difference"))
        assert 0 < row["value"] < 100
        assert row["peer"] == "backprop"
        assert difference["lowest"] <= difference["value"] <= difference["highest"]
    for figure in ("test", "prequential"):
        proof = found[f"accuracy/fast/embedded/1_pass/through_daemon/{figure}"]
        assert proof["value"] == proof["peer_value"]
    assert (tmp_path / "curves.png").stat().st_size > 0
    accuracy.run(report, few_digits(), replace(options, through_daemon=False, plot=None))  # all runs are there
    again = rows(capsys)
    assert {name: row["value"] for name, row in again.items()} == {
        name: row["value"] for name, row in found.items() if "through_daemon" not in name
    }
    with pytest.raises(Failed, match="passed 300 samples without a measurement: use another folder"):
        accuracy.run(report, few_digits(), replace(options, samples=300, through_daemon=False, plot=None))


def test_accuracy_with_a_part_of_the_labels(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    options = accuracy.Options(preset="unsupervised", seeds=1, through_daemon=True, label_fraction=0.2)
    accuracy.run(report, few_digits(), options)
    found = rows(capsys)
    for figure in ("test", "prequential"):
        proof = found[f"accuracy/unsupervised/embedded/1_pass/20_percent_labels/through_daemon/{figure}"]
        assert proof["value"] == proof["peer_value"]
    with pytest.raises(Failed, match="needs a label for each sample"):
        accuracy.run(report, few_digits(), replace(options, preset="fast"))


def test_tuning_the_peer(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    options = accuracy.Options(preset="fast")
    section = tomllib.loads(accuracy.tune_peer(report, few_digits(), options, 2))["fast"]
    trials = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    best = min(trials, key=lambda trial: trial["value"])
    assert section["settings"] == {name: best[name] for name in section["settings"]}
    assert section["error"] == round(best["value"], 2)


@pytest.mark.parametrize(("validation", "split"), [(False, "test"), (True, "validation")])
def test_the_label_in_pixels_method_is_judged_on_the_split_that_is_held_out(
    report: Report, capsys: pytest.CaptureFixture[str], validation: bool, split: str
) -> None:
    accuracy.overlay_method(report, few_digits(), 2, validation=validation)
    assert rows(capsys).keys() == {f"accuracy/overlay_method/embedded/2_updates/{split}"}


def test_phases(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Four wake microbatches and four sleep microbatches, in turn, learn digits."""
    phases.run(
        report, few_digits(), lengths=(4,), seeds=1, passes=1, validation=False, settings=("network.replay=0",)
    )
    found = rows(capsys)
    assert found.keys() == {f"phases/embedded/4/seed0/after_{phase}" for phase in ("wake", "sleep")}
    assert all(row["value"] < 60 for row in found.values())


def test_deprivation(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    phases.deprivation(
        report, few_digits(), length=3, seed=0, passes=1, microbatches=20, recovery=4, validation=False, settings=()
    )
    figures = ("rested", "wake_20", "sleep_1", "sleep_1_wake", "sleep_2", "sleep_2_wake")
    assert rows(capsys).keys() == {f"deprivation/embedded/3/seed0/{figure}" for figure in figures}


def test_combinations(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [
        each for each in combinations.combinations() if each.name in ("groups/-sum/relu", "vectors/sum_squares/gelu")
    ]
    combinations.run(report, few_digits(), chosen, trial_samples=256)
    found = rows(capsys)
    assert found.keys() == {f"combinations/embedded/{each.name}" for each in chosen}
    for row in found.values():
        assert row["value"] < 60
        assert row["alpha"] in combinations.ALPHAS["sum"] + combinations.ALPHAS["sum_squares"]


def few_digits() -> Dataset:
    """A thousand images each to learn and to test."""
    digits = load("embedded")
    parts: dict[Part, Split] = {"train": digits.train, "test": digits.test}
    return Dataset("embedded", lambda part: Split(parts[part].images[:1000], parts[part].labels[:1000]))


def test_drift(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    small = recipe("stream", widths=[32, 32], batch_size=32, warmup_samples=0, replay=32, replay_buffer=500)
    drift.run(report, few_digits(), list(drift.DRIFTS), small, 1)
    found = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    for kind in drift.DRIFTS:
        for way in ("served", "live", "unchanged"):
            assert 0 < found[f"drift/embedded/{kind}/{way}/error/seed0"]["value"] < 100
        assert found[f"drift/embedded/{kind}/restarts/seed0"]["value"] >= 0
        assert (f"drift/embedded/{kind}/served/reached/seed0" in found) == (kind != "stationary")
    assert 0 < found["drift/embedded/stationary/test/seed0"]["value"] < 50


def test_hardware(report: Report, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = hardware.run(report, few_digits(), ["ideal", "hard", "change50"], 1, validation=False)
    names = {name.removeprefix("hardware/embedded/") for name in rows(capsys)}
    whens = ("before", "after", "8_later", "16_later", "end")
    changes = {f"change50/{way}/{when}" for way in ("aware", "signs", "unaware") for when in whens}
    assert names == {"ideal/through", "hard/through", "hard/moved", *changes}
    compared = {kind: found[kind] for kind in ("ideal", "hard")}
    hardware.draw(tmp_path / "errors.png", compared, "test")
    assert (tmp_path / "errors.png").stat().st_size > 0
    assert len(hardware.table(compared).splitlines()) == 4
    assert hardware.table(compared).endswith(f"{found['hard']['backprop through'][0]:.2f} |")


def test_questions(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    questions.run(report)
    assert {name.partition("/")[0] for name in rows(capsys)} == questions.QUESTIONS.keys()


def test_a_curve_says_when_the_last_thousand_were_good() -> None:
    curve, labels = drift.Curve(100), torch.zeros(50, dtype=torch.int64)
    for number in range(2, 60):  # wrong up to 600 samples after the change, and before it
        curve.add(50 * number, labels, labels + (number < 14))
    # The last 1,000 are good once fewer than 100 of the wrong ones are among them.
    assert curve.reached == 600 + 1000 - 50
    curve.add(0, labels, labels + 1)  # before the change: not counted
    assert curve.wrong_after == 600


def test_ingest(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(report, 1, long=False, samples=6400)
    names = {"batch64/acked", "batch64/acked_and_learned", "single/acked"}
    assert rows(capsys).keys() == {f"ingest/{name}" for name in names}


def test_predict(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_daemon(*predict.SETTINGS) as daemon:
        predict.while_idle(report, daemon, alone_ms=1.0, queries=50)
    assert rows(capsys).keys() == {"predict/idle/p50", "predict/idle/p99"}


def test_recovery(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    recovery.run(report, 1, samples=1000)
    assert {"recovery/ready", "recovery/taken_over", "recovery/catching_up"} <= rows(capsys).keys()


def test_security(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    security.run(report, 1, samples=6400)
    assert rows(capsys)["security/batch64/acked_with_curve"]["peer"] == "plain"


def test_viewers(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    viewers.run(report, 1, samples=20_000, learn_s=0.2, idle_s=1.0, scrapes=5)
    found = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    for figure in ("acked", "learned", "learned_per_processor_second"):
        pair = found[f"viewers/10_readers/{figure}"]
        assert pair["peer"] == "no_readers"
        assert found[f"viewers/10_readers/{figure}/pairs"]["value"] == pytest.approx(pair["ratio"])
    assert found["viewers/learning/metrics/p99"]["value"] >= found["viewers/learning/metrics/p50"]["value"] > 0
    assert found["viewers/history_30_days/memory"]["value"] < 20
    assert 0 < found["viewers/history_30_days/disk"]["value"] < 50


def test_the_history_that_is_measured_is_as_full_as_one_can_be() -> None:
    history = History(4)
    viewers.fill_thirty_days(history, lambda: None)
    for span, seconds in {"10m": 600, "3h": 3 * 3600, "1d": 86_400, "30d": 30 * 86_400}.items():
        document = history.document(span)
        times = document["columns"]["time"]
        assert (times[-1] - times[0]) // document["interval_s"] + 1 == len(times), "no interval is empty"
        assert times[-1] - times[0] >= seconds - 2 * document["interval_s"]


def test_page(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    if find_chromium() is None:
        pytest.skip("chromium is not installed; tools/setup --system installs it")
    page.run(report, 1)
    found = {name.removeprefix("page/") for name in rows(capsys)}
    assert found == {"first_paint", "first_data", "first_chart", "frozen_daemon_is_lost", "killed_daemon_is_lost"}


def test_cluster(tmp_path: Path) -> None:
    """In a process of its own: Ray reads its environment when it is imported."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    network, file = "784-512-512", tmp_path / "measured.json"
    size = ["--network", network, "--batch", "64", "--rounds", "1", "--kills", "1", "--share", "0.01"]
    command = [sys.executable, "-m", "tools.benchmarks", "cluster", *size, "--measured", str(file), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    pair = found[f"cluster/{network}/64/ray_over_threads"]
    assert pair["peer"] == "threads"
    assert pair["ratio"] == pair["value"] / pair["peer_value"]
    lost = {
        f"{what}/{figure}" for what in ("actor", "raylet") for figure in ("noticed", "learning_again", "longest_ack")
    }
    assert found.keys() == {
        *(f"cluster/recovery/{name}" for name in lost),
        *(f"cluster/{network}/64/{name}" for name in ("ray_over_threads", "overhead_per_hop")),
        *(f"cluster/layer/{shape}/64" for shape in ("784-512", "512-512")),
        *(f"cluster/hop/{kind}/{cost}" for kind in ("plain", "encrypted") for cost in ("fixed", "per_megabyte")),
        *(f"cluster/{name}" for name in ("merge", "journal", "feed")),
    }
    for what in ("actor", "raylet"):
        assert (
            found[f"cluster/recovery/{what}/learning_again"]["value"]
            > found[f"cluster/recovery/{what}/noticed"]["value"]
        )
    kept = measured.load(file)
    assert [each.samples_per_s for each in kept.rates] == [pair["peer_value"], pair["value"]]
    assert kept.network(network, 64).layers[0].seconds > 0
