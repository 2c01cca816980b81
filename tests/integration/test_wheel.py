"""The package as it is installed: a wheel, in an environment and a working directory where the source tree is not."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.harness.daemon import DaemonProcess, start_daemon
from tests.harness.daemon_directory import DaemonDirectory
from tools.benchmarks.report import ROOT

DEADLINE_S = 120.0

QUERY = """
import sys
import numpy as np
import ffstream.client
from ffstream.data import load
test = load("embedded").test
with ffstream.client.Predictor(sys.argv[1]) as predictor:
    labels = predictor.predict(test.images[:500]).labels
print(ffstream.__file__)
print("torch" in sys.modules)
print((labels != test.labels[:500]).mean())
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Its stdout. Raises CalledProcessError."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=ROOT)
    (built,) = folder.glob("ffstream-*.whl")
    return built


@pytest.fixture(scope="module")
def bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel in it. It finds the dependencies in this environment; a path
    that a .pth file adds is not searched for .pth files, so it does not find the source tree."""
    environment = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment)
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment / "bin" / "python",
        "--disable-pip-version-check",
    ]
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel, cwd=environment)
    (site,) = environment.glob("lib/python3.*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return environment / "bin"


@pytest.fixture
def daemon(bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonProcess]:
    monkeypatch.chdir(tmp_path)
    directory = DaemonDirectory(tmp_path / "state", ["network.preset=fast"])
    with start_daemon(directory, program=[str(bin / "ffstream")]) as daemon:
        daemon.await_ready()
        yield daemon


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    files = {path for path in (ROOT / "ffstream").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {path.relative_to(ROOT).as_posix() for path in files}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    for data in ("py.typed", "wire/SPEC.md", "wire/vectors.json", "server/page/index.html"):
        assert f"ffstream/{data}" in found
    assert len([name for name in found if name.startswith("ffstream/data/embedded/")]) == 4


def test_an_installed_daemon_learns_digits_and_answers(bin: Path, daemon: DaemonProcess, tmp_path: Path) -> None:
    replayed = json.loads(
        run(bin / "ffstream", "replay", "embedded", "--limit", "5000", "--to", daemon.learn, "--json", cwd=tmp_path)
    )
    assert (replayed["acked"], replayed["rejected"]) == (5000, 0)
    run(bin / "ffstream", "status", "--at", daemon.control, "--wait-idle", str(DEADLINE_S), cwd=tmp_path)
    imported, has_torch, error = run(bin / "python", "-c", QUERY, daemon.predict, cwd=tmp_path).splitlines()
    assert Path(imported).is_relative_to(bin.parent)
    assert has_torch == "False"
    assert float(error) < 0.2
    page = httpx.get(f"{daemon.http}/", timeout=DEADLINE_S)
    assert page.text == (ROOT / "ffstream" / "server" / "page" / "index.html").read_text(encoding="utf-8")
    assert daemon.terminate() == 0


def test_the_installed_command_and_its_metadata_have_one_version(bin: Path, tmp_path: Path) -> None:
    program = (
        "import importlib.metadata, ffstream; print(importlib.metadata.version('ffstream'), ffstream.__version__)"
    )
    metadata, attribute = run(bin / "python", "-c", program, cwd=tmp_path).split()
    assert metadata == attribute
    assert metadata in run(bin / "ffstream", "--version", cwd=tmp_path)
