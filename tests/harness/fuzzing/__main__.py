"""The command `tools/fuzz`. Each target runs in its own process, because the fuzzer ends its process at a finding."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
from platformdirs import user_cache_path

from tests.harness.fuzzing.targets import TARGETS

_ATHERIS = "atheris==3.0.0"  # not a dependency, because it has wheels for few Python versions and platforms
_UNAVAILABLE = 3
_FINDINGS_MAX = 5  # of a target, which is restarted after each finding
_GRACE_S = 60.0
_INPUT_MAX_BYTES = 4096
_RUNS = re.compile(r"^(?:Done (\d+) runs|#(\d+)\s)", re.MULTILINE)


class Result(NamedTuple):
    """The outcome of one target. `findings` are files, inputs that lead to an unexpected exception."""

    name: str
    runs: int
    seconds: float
    findings: list[str]


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(sorted(TARGETS)))
@click.option("--seconds", default=60.0, show_default=True, help="Time for each target.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end; everything else on stderr.")
def main(targets: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Fuzz the targets, by default all of them. Any exception other than an FFStreamError is a finding.

    Fetches the fuzzer (atheris) on first use. Exit code 1: a finding; 3: the fuzzer is not available for this Python
    version and platform.
    """
    place = user_cache_path("ffstream") / "fuzz"
    tools = _atheris(place / f"python{sys.version_info.major}.{sys.version_info.minor}")
    if tools is None:
        sys.exit(_UNAVAILABLE)
    results = []
    for name in targets or sorted(TARGETS):
        result = _fuzz(name, seconds, tools, place)
        results.append(result)
        click.echo(
            f"{name}: {result.runs:,} runs in {result.seconds:.0f} s, {len(result.findings)} findings", err=as_json
        )
        for finding in result.findings:
            command = f".venv/bin/python -m tests.harness.fuzzing.targets {name} {finding}"
            click.echo(f"  reproduce with: {command}", err=as_json)
    found = sum(len(result.findings) for result in results)
    if as_json:
        click.echo(json.dumps({"targets": [result._asdict() for result in results], "findings": found}))
    sys.exit(1 if found else 0)


def _atheris(place: Path) -> Path | None:
    """The folder of the fuzzer, which is fetched on first use; None when it is not available."""
    if importlib.util.find_spec("atheris") is None and not (place / "atheris").is_dir():
        click.echo(f"tools/fuzz: fetching {_ATHERIS} into {place}", err=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        only_wheels = ["--only-binary", ":all:", "--target", str(place), _ATHERIS]
        done = subprocess.run([*pip, *only_wheels], capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            click.echo(done.stderr.strip(), err=True)
            click.echo(f"tools/fuzz: {_ATHERIS} is not available for this Python version and platform", err=True)
            return None
    return place


def _fuzz(name: str, seconds: float, tools: Path, place: Path) -> Result:
    corpus, findings = place / "corpus" / name, place / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    start = time.monotonic()
    runs = crashes = code = 0
    while (left_s := int(seconds - (time.monotonic() - start))) > 0 and crashes < _FINDINGS_MAX:
        output, code = _run(name, left_s, corpus, findings, tools)
        counts = [int(one or other) for one, other in _RUNS.findall(output)]
        runs += max(counts, default=0)
        if not code:
            break
        crashes += 1
        click.echo(output[-4000:], err=True)
        if not counts:  # the target did not start
            break
    new = sorted(str(path) for path in set(findings.iterdir()) - before)
    return Result(name, runs, time.monotonic() - start, new or [f"exit code {code}"] * bool(crashes))


def _run(name: str, seconds: int, corpus: Path, findings: Path, tools: Path) -> tuple[str, int]:
    command = [sys.executable, "-m", "tests.harness.fuzzing.targets", name, str(corpus)]
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_INPUT_MAX_BYTES}",
        f"-artifact_prefix={findings}/{name}-",
        "-rss_limit_mb=4096",
        "-timeout=20",
    ]
    path = os.pathsep.join(filter(None, (str(tools), os.environ.get("PYTHONPATH"))))
    # The fuzzer ends its process without cleaning up, so its temporary files are deleted here.
    with tempfile.TemporaryDirectory(prefix="ffstream-fuzz-") as temporary:
        done = subprocess.run(
            [*command, *options],
            env=os.environ | {"PYTHONPATH": path, "TMPDIR": temporary},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds + _GRACE_S,
            check=False,
        )
    return done.stderr + done.stdout, done.returncode


main()
