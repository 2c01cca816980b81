"""A pipeline whose stages are actors learns what the serial reference learns, bit for bit."""

import importlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ffstream.errors import StageFailed
from ffstream.ff.presets import PRESETS
from ffstream.ff.recipe import Recipe
from ffstream.metrics import Metrics
from tests.harness.crashing.presets import small_recipe
from tests.unit.pipeline.cluster.local import Engines
from tests.unit.pipeline.run import (
    BATCH,
    CONDITIONED,
    DEADLINE_S,
    EVOKED,
    QUIET,
    RECIPE,
    UNSUPERVISED,
    Options,
    Run,
    Serial,
    Store,
    Stream,
    assert_same,
    resume_state,
)

STEPS = 24
SENSITIVE = {"kind": "restart", "threshold": 0.5, "every": 1, "rows": 4}


def stream_for(recipe: Recipe, steps: int) -> Stream:
    stream = Stream.random(steps * recipe.batch_size, inputs=recipe.inputs, labels=recipe.labels)
    return stream.without_some_labels() if recipe.learns_unlabelled else stream


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (RECIPE, QUIET),
        (RECIPE.change(replay=3), replace(QUIET, stages=(3,))),
        (CONDITIONED.change(replay=3, replay_buffer=9), replace(QUIET, stages=(1, 2), queue_depth=1)),
        (RECIPE.change(replay=3, drift=SENSITIVE), replace(QUIET, queue_depth=40)),
        (RECIPE.change(warmup_samples=9 * BATCH, replay=6), QUIET),
        (CONDITIONED.change(replay=3), replace(QUIET, wake=2, sleep=2)),
        (EVOKED.change(replay=3), replace(QUIET, wake=5, sleep=4)),
        (UNSUPERVISED, QUIET),
        (UNSUPERVISED.change(replay=3), replace(QUIET, stages=(2, 1))),
    ],
    ids=["each", "one", "conditioned", "drift", "warm-up", "phases", "evoked", "readout", "readout-replay"],
)
def test_every_barrier_has_the_state_of_its_step(
    store: Store, engines: Engines, recipe: Recipe, options: Options
) -> None:
    stream = stream_for(recipe, STEPS)
    serial = Serial(recipe, stream, wake=options.wake, sleep=options.sleep)
    store.write(stream.images, stream.labels)
    run = Run(store, recipe, options, engine=engines, checkpoint_every_samples=5 * BATCH).start()
    run.wait_applied(STEPS * BATCH)
    run.stop()
    assert [each.version for each in run.barriers] == list(range(1, len(run.barriers) + 1))
    saving = [each for each in run.barriers if each.saves]
    assert len(saving) > STEPS // 5
    for barrier in saving:
        assert barrier.seq == serial.seqs[barrier.step]
        assert_same(barrier.tensors, serial.states[barrier.step])
    assert saving[-1].step == len(serial.phases)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset(store: Store, engines: Engines, preset: str) -> None:
    recipe = small_recipe(preset)
    wake, sleep = recipe.wake, recipe.sleep
    stream = stream_for(recipe, 10)
    own = Store(store.journal.path.parent, recipe.inputs, recipe.labels, name="own")
    own.write(stream.images, stream.labels)
    runs = [Run(own, recipe, engine=engines, wake=wake, sleep=sleep), Run(own, recipe, wake=wake, sleep=sleep)]
    store.runs.extend(runs)
    found = []
    for run in runs:
        run.start().wait_applied(len(stream.labels))
        found.append(run.stop())
    own.journal.close()
    remote, local = found
    assert_same(remote.tensors, Serial(recipe, stream, wake=wake, sleep=sleep).states[remote.step])
    assert all(torch.equal(remote.weights[name], value) for name, value in local.weights.items())
    assert remote.progress == local.progress | {"version": remote.progress["version"]}


def test_a_run_goes_on_from_a_barrier_with_the_same_actors(store: Store, engines: Engines) -> None:
    recipe = UNSUPERVISED.change(replay=3)
    stream = stream_for(recipe, STEPS)
    half = STEPS // 2 * BATCH
    store.write(stream.images[:half], stream.labels[:half])
    first = Run(store, recipe, engine=engines).start()
    first.wait_applied(half)
    barrier = first.stop()
    engine = engines.made[-1]
    second = Run(store, recipe, engine=lambda config, metrics: engine, resume=resume_state(barrier)).start()
    store.write(stream.images[half:], stream.labels[half:])
    second.wait_applied(len(stream.labels))
    last = second.stop()
    assert_same(last.tensors, Serial(recipe, stream).states[last.step])
    assert engines.keeper.placed == [[1, 2, 3], [1, 2, 3]]
    assert engines.keeper.killed == []


def test_what_is_queued_when_a_run_stops_is_learned(store: Store, engines: Engines) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, engine=engines, queue_depth=STEPS, publish_every=1).start()
    run.wait_applied(BATCH)
    last = run.stop()
    assert_same(last.tensors, Serial(RECIPE, stream).states[last.step])


def test_an_aborted_run_leaves_its_actors_for_the_next_one(store: Store, engines: Engines) -> None:
    stream = Stream.random(40 * BATCH)
    store.write(stream.images, stream.labels)
    first = Run(store, RECIPE, engine=engines).start()
    first.wait_applied(BATCH)
    assert first.pipeline.abort(30.0)
    engine = engines.made[-1]
    second = Run(store, RECIPE, engine=lambda config, metrics: engine).start()
    second.wait_applied(len(stream.labels))
    assert_same(second.stop().tensors, Serial(RECIPE, stream).states[-1])
    assert first.failures == second.failures == []
    assert engines.keeper.placed[0] == engines.keeper.placed[1]


def test_the_metrics_and_the_status_show_the_stages(store: Store, engines: Engines) -> None:
    stream = Stream.random(STEPS * BATCH)
    store.write(stream.images, stream.labels)
    run = Run(store, RECIPE, engine=engines, stages=(2, 1)).start()
    run.wait_applied(len(stream.labels))
    described = run.pipeline.describe()
    assert [(each["layers"], each["last_seq"], each["node"]) for each in described] == [
        ([0, 1], len(stream.labels), "node"),
        ([2], len(stream.labels), "node"),
    ]
    run.stop()
    value = run.metrics.registry.get_sample_value
    assert run.learned == len(stream.labels)
    for stage in ("0", "1"):
        assert value("ffstream_stage_step_seconds_count", {"stage": stage}) == STEPS
        assert (value("ffstream_hop_bytes_total", {"stage": stage}) or 0) > np.prod(stream.images.shape)
        assert (value("ffstream_hop_seconds_total", {"stage": stage, "part": "receive"}) or 0) > 0
    for layer in run.pipeline.describe_layers():
        assert layer["loss"] is not None
        assert layer["step_s"] > 0


def test_an_actor_imports_parts_from_outside(
    store: Store, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts_of_my_own.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    run = Run(store, RECIPE.change(parts=["parts_of_my_own"]), engine=engines)
    monkeypatch.delitem(sys.modules, "parts_of_my_own", raising=False)
    run.start().stop()
    assert "parts_of_my_own" in sys.modules


def test_a_part_that_a_node_does_not_have_is_named(
    store: Store, engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "parts_of_the_daemon.py"
    path.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    run = Run(store, RECIPE.change(parts=["parts_of_the_daemon"]), engine=engines)
    monkeypatch.delitem(sys.modules, "parts_of_the_daemon", raising=False)
    path.unlink()
    importlib.invalidate_caches()
    with pytest.raises(StageFailed, match=r"network.parts = .*cannot import parts_of_the_daemon") as failure:
        run.start()
    assert failure.value.hint == "every node needs the same packages as the daemon"
    assert run.pipeline.abort(DEADLINE_S)


def test_the_daemon_bounds_the_products_that_are_compiled_for_its_predictions(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    engines(QUIET.config(RECIPE), Metrics())
    assert {"LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"} <= os.environ.keys()
