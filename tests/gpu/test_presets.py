"""Every preset, and parts that no preset has, on a CUDA device: the pipeline equals the serial reference bit for bit,
also after a crash."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ffstream.ff.placement import Placement
from ffstream.ff.presets import PRESETS
from ffstream.ff.recipe import Recipe
from tests import battery
from tests.gpu.conftest import DRY
from tests.harness.crashing.presets import small_recipe
from tests.unit.pipeline.run import QUIET, Run, Serial, Store, Stream, assert_same
from tools.benchmarks.report import ROOT

pytestmark = pytest.mark.gpu
STEPS = 40
KILLS = 1 if DRY else 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _dreams(preset: str) -> Recipe:
    return small_recipe(preset).change(negatives="dreams", decoder="linear")


_ANALOG = {"kind": "analog", "mismatch": 0.5, "noise": 0.1, "stuck": 0.1, "bits": 3, "dead": 0.3}
RECIPES: Mapping[str, Recipe] = {preset: small_recipe(preset) for preset in PRESETS} | {
    "analog hardware": small_recipe("stream").change(hardware=_ANALOG),
    "dreams in sleep": _dreams("wake-sleep"),
    "dreams without labels": _dreams("unsupervised"),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_pipeline_equals_the_serial_reference(
    recipe: Recipe, precision: str, tmp_path: Path, device: str
) -> None:
    stream = Stream.random(STEPS * recipe.batch_size, inputs=recipe.inputs, labels=recipe.labels)
    if recipe.learns_unlabelled:
        stream = stream.without_some_labels()
    placement = Placement(torch.device(device), DTYPES[precision])
    wake, sleep = recipe.wake, recipe.sleep
    serial = Serial(recipe, stream, wake=wake, sleep=sleep, placement=placement)
    options = replace(QUIET, device=device, precision=precision, wake=wake, sleep=sleep)
    for stages in ((), (len(recipe.layers),)):
        store = Store(tmp_path, name=f"journal-{len(stages)}", inputs=recipe.inputs, labels=recipe.labels)
        store.write(stream.images, stream.labels)
        run = Run(store, recipe, replace(options, stages=stages)).start()
        try:
            run.wait_applied(serial.seqs[-1])
            last = run.stop()
        finally:
            run.end()
            store.journal.close()
        assert_same(last.tensors, serial.states[last.step])


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_state_is_close_to_that_on_the_cpu(recipe: Recipe, device: str) -> None:
    battery.check_device(recipe, torch.device(device))


@pytest.mark.parametrize("preset", ["fast"] if DRY else ["stream", "conv", "unsupervised", "wake-sleep"])
def test_a_daemon_that_is_killed_learns_the_same_weights(preset: str, device: str) -> None:
    options = ["--preset", preset, "--kills", str(KILLS), "--power-losses", "0", "--json"]
    command = [sys.executable, "-m", "tests.harness.crashing", *options, "--set", f"pipeline.device={device}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=200, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert (found["kills"], found["lost"], found["twice"], found["weights_equal"]) == (KILLS, 0, 0, True)
