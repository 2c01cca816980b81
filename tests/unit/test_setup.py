"""tools/setup --system: what it asks apt-get for, and that a machine where it cannot install anything goes on."""

import os
import subprocess
import sys
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
    assert (done.returncode, done.stdout) == (0, "\n")
    (line,) = done.stderr.splitlines()
    assert "promtool chromium zsh fish not installed" in line
    assert "skipped" in line


@AS_ROOT
def test_only_missing_packages_are_installed(path: Path, tmp_path: Path) -> None:
    stub(path, "chromium")
    stub(path, "apt-get", f'echo "$@" >> {tmp_path / "asked"}')
    done = setup(path, "--system")
    assert (done.returncode, done.stdout) == (0, "chromium promtool zsh fish\n")
    update, install = (tmp_path / "asked").read_text().splitlines()
    assert update.endswith(" update")
    assert install.endswith(" install -y --no-install-recommends prometheus zsh fish")


@AS_ROOT
def test_a_failing_apt_get_is_reported_and_success(path: Path) -> None:
    stub(path, "chromium")
    stub(path, "apt-get", "echo no network >&2; exit 100")
    done = setup(path, "--system")
    assert (done.returncode, done.stdout) == (0, "chromium\n"), "what could not be installed need not be there"
    assert done.stderr.splitlines()[-1] == (
        "tools/setup: apt-get could not install prometheus zsh fish (no network): tests are skipped"
    )


def test_nothing_is_done_when_nothing_is_missing(path: Path) -> None:
    for command in ("promtool", "chromium", "zsh", "fish"):
        stub(path, command)
    stub(path, "apt-get", "exit 100")
    done = setup(path, "--system")
    assert (done.returncode, done.stdout, done.stderr) == (0, "promtool chromium zsh fish\n", "")


def test_an_unknown_option_is_refused(path: Path) -> None:
    done = setup(path, "--sytem")
    assert (done.returncode, done.stderr) == (2, "usage: tools/setup [--system]\n")


SKIPPED = {
    "marked": "@pytest.mark.skipif(True, reason='sonar is not installed')\ndef test(): pass",
    "within": "def test(): pytest.skip('sonar is not installed')",
    "as_a_file": "pytest.skip('sonar is not installed', allow_module_level=True)",
}


@pytest.mark.parametrize(("commands", "outcome"), [("node sonarr", "3 skipped"), ("sonar", "1 failed, 2 errors")])
def test_a_skip_because_of_a_command_that_must_be_there_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: str, outcome: str
) -> None:
    """In a pytest of its own, with the hooks of tests/conftest.py."""
    for name, test in SKIPPED.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{test}\n")
    monkeypatch.setenv("FFSTREAM_TEST_COMMANDS", commands)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--continue-on-collection-errors", "-c", os.devnull, "--rootdir=/", str(tmp_path)],
        cwd=SETUP.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
