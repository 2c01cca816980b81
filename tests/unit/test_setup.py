"""tools/setup --system: what it asks apt-get for, and that a machine where it cannot install anything goes on."""

import os
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "tools" / "setup"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may install system packages")


def stub(folder: Path, name: str, script: str = "") -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of the few commands that the script itself uses; the only one in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "tail"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    stub(folder, "timeout", 'shift; exec "$@"')
    return folder


def setup(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(SETUP), *arguments],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_missing_packages_without_apt_are_one_line_and_success(path: Path) -> None:
    done = setup(path, "--system")
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert "promtool node not installed" in line
    assert "skipped" in line


@AS_ROOT
def test_only_missing_packages_are_installed(path: Path, tmp_path: Path) -> None:
    stub(path, "node")
    stub(path, "apt-get", f'echo "$@" >> {tmp_path / "asked"}')
    assert setup(path, "--system").returncode == 0
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update.endswith(" update")
    assert install.endswith(" install -y --no-install-recommends prometheus")


@AS_ROOT
def test_a_failing_apt_get_is_reported_and_success(path: Path) -> None:
    stub(path, "apt-get", "echo no network >&2; exit 100")
    done = setup(path, "--system")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == (
        "tools/setup: apt-get could not install prometheus nodejs (no network): tests are skipped"
    )


def test_nothing_is_done_when_nothing_is_missing(path: Path) -> None:
    stub(path, "node")
    stub(path, "promtool")
    stub(path, "apt-get", "exit 100")
    done = setup(path, "--system")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_unknown_option_is_refused(path: Path) -> None:
    done = setup(path, "--sytem")
    assert (done.returncode, done.stderr) == (2, "usage: tools/setup [--system]\n")
