"""The example of parts from outside the package in `ffstream/README.md` works as it is printed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ffstream
from ffstream.client import Producer
from ffstream.ff.presets import recipe
from tests import battery
from tests.harness.daemon import Daemons
from tests.unit.ff.formulas import SMALL

README = Path(ffstream.__file__).parent.joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|toml)\n(.*?)```", README, re.DOTALL)
PARTS = next(text for _, text in BLOCKS if text.startswith("# my_parts.py"))
OPTIONS = next(text for kind, text in BLOCKS if kind == "toml")
ALONE = next(text for _, text in BLOCKS if "weights.load(" in text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module, from which daemons and this process can import it."""
    (tmp_path / "my_parts.py").write_text(PARTS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    yield tmp_path
    sys.modules.pop("my_parts", None)


@pytest.mark.parametrize(
    "options",
    [
        {"goodness": "quartic"},
        {"activation": "softsign"},
        {"objective": {"kind": "hinge", "margin": 50.0, "alpha": 0.1}},
        {"objective": "paired", "negatives": "next"},
        {"layers": [{"connection": {"kind": "dense", "units": 12}}, {"connection": "diagonal"}]},
    ],
    ids=" ".join,
)
def test_each_part_passes_the_tests_of_every_layer(folder: Path, options: dict[str, object]) -> None:
    battery.check_layer(SMALL.change(**recipe_parts(), **options), folder / "runs")


def recipe_parts() -> dict[str, list[str]]:
    """Imports the module as a daemon does, and returns the option for a recipe."""
    recipe(parts=["my_parts"])
    return {"parts": ["my_parts"]}


def test_a_killed_daemon_with_outside_parts_resumes(folder: Path, daemons: Daemons) -> None:
    config = folder / "ffstream.toml"
    config.write_text(OPTIONS, encoding="utf-8")
    settings = ("learning.partial=wait", "checkpoint.every_samples=512", "network.warmup_samples=0")
    daemon = daemons.start(*settings, config=config)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (2048, 784), dtype=np.uint8), rng.integers(0, 10, 2048)
    with Producer(daemon.learn, client="one") as producer:
        for at in range(0, 1024, 64):
            producer.send(images[at : at + 64], labels[at : at + 64])
    assert daemon.status(idle=True)["learned"] == 1024
    daemon.kill()
    again = daemons.start(*settings, config=config)
    with Producer(again.learn, client="one") as producer:
        for at in range(1024, 2048, 64):
            producer.send(images[at : at + 64], labels[at : at + 64])
    assert again.status(idle=True)["learned"] == 2048
    assert again.terminate() == 0


def test_a_network_is_trained_saved_and_used_without_a_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "digits.safetensors").is_file()
    assert float(done.stdout.split("%")[0]) < 12
