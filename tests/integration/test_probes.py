"""The health checks in `deploy/` work on a running daemon."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from tests.in_process import Running

DEPLOY = Path(__file__).parents[2] / "deploy"
DEAD = "http://127.0.0.1:1"  # no program listens there
WAIT_S = 60.0


def healthcheck(running: Running) -> int:
    """Exit code of the HEALTHCHECK of the image, with proxy variables that it must ignore."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.*\])$", text, re.MULTILINE)
    python, *arguments = json.loads(command)
    assert python == "python"
    assert sum("127.0.0.1:8757" in each for each in arguments) == 1
    assert "timeout=2)" in arguments[-1]
    # The machine may be slow.
    arguments[-1] = arguments[-1].replace("timeout=2)", f"timeout={WAIT_S})")
    arguments = [each.replace("127.0.0.1:8757", running.daemon.http.address) for each in arguments]
    proxies = {name: DEAD for each in ("http_proxy", "https_proxy", "all_proxy") for name in (each, each.upper())}
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment | proxies,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    return done.returncode


def test_a_container_is_healthy_while_its_daemon_lives_even_if_it_rejects_samples(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        assert healthcheck(running) == 0
        running.daemon.admission.draining = True
        address = running.daemon.http.address
        assert httpx.get(f"http://{address}/readyz/learn", trust_env=False, timeout=WAIT_S).status_code == 503
        assert healthcheck(running) == 0, "a restart would not make it accept samples"
        running.stop()
        assert healthcheck(running) != 0


@pytest.mark.parametrize("token", [False, True])
def test_every_kubernetes_probe_is_answered_without_a_token(tmp_path: Path, token: bool) -> None:
    settings = []
    if token:
        (tmp_path / "token").write_text("t" * 32)
        (tmp_path / "token").chmod(0o600)
        settings = [f"security.http_token={tmp_path / 'token'}"]
    manifest = yaml.safe_load((DEPLOY / "kubernetes" / "statefulset.yaml").read_text(encoding="utf-8"))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    paths = {probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
    assert paths == {"/healthz", "/readyz"}
    with Running(tmp_path / "state", *settings) as running:
        for path in paths:
            answer = httpx.get(f"http://{running.daemon.http.address}{path}", trust_env=False, timeout=WAIT_S)
            assert answer.status_code == 200, path
